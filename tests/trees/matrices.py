"""Sign matrices for tests: hypothesis strategies, related channels, and an independent oracle."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

Signs = npt.NDArray[np.uint8]

sign_matrices = npst.arrays(
    np.uint8,
    st.tuples(st.integers(1, 9), st.integers(1, 80)),
    elements=st.integers(0, 1),
)


def related_channels(channels: int, weights: int, seed: int) -> Signs:
    """Channels that descend from few prototypes, as trained ones do: many medians pay."""
    random = np.random.default_rng(seed)
    prototypes = random.integers(0, 2, (3, weights), dtype=np.uint8)
    flips = (random.random((channels, weights)) < 0.25).astype(np.uint8)
    return prototypes[random.integers(0, 3, channels)] ^ flips


def cheapest_plain_tree(signs: Signs, max_depth: int) -> int:
    """Edges of the cheapest plain tree by trying every parent of every channel (-1: the nearer root)."""
    channels, weights = signs.shape
    best = int(channels * weights)
    for parents in itertools.product(range(-1, channels), repeat=channels):
        cost = 0
        for node, parent in enumerate(parents):
            ones = int(signs[node].sum())
            cost += min(ones, weights - ones) if parent < 0 else int((signs[node] != signs[parent]).sum())
        if cost < best and _depth(parents) <= max_depth:
            best = cost
    return best


def _depth(parents: tuple[int, ...]) -> float:
    deepest = 0.0
    for node in range(len(parents)):
        depth, at = 1, node
        while parents[at] >= 0:
            at, depth = parents[at], depth + 1
            if depth > len(parents):
                return float("inf")
        deepest = max(deepest, depth)
    return deepest


def cheapest_steiner_tree(signs: Signs, overhead: float) -> float:
    """Cost of the cheapest tree with any synthetic nodes and no depth limit (Dreyfus and Wagner over all 2^N vectors).

    The two roots are one terminal: going from one to the other costs nothing. Overheads make nodes cost: a state
    pays for its node when it is first used, channels and roots are free.
    """
    _, weights = signs.shape
    size = 1 << weights
    codes = [int(sum(int(bit) << place for place, bit in enumerate(row))) for row in signs]
    free = {*codes, 0, size - 1}
    price = np.array([0.0 if code in free else overhead for code in range(size)])
    numbers = np.arange(size)
    distance = np.array([[(a ^ b).bit_count() for b in range(size)] for a in range(size)], float)
    distance[0, size - 1] = distance[size - 1, 0] = 0.0
    # Paths may pass through the free jump between the roots.
    distance = np.minimum(distance, np.minimum(distance[:, [0]] + distance[[-1]], distance[:, [-1]] + distance[[0]]))
    terminals = [*dict.fromkeys(code for code in codes if code not in {0, size - 1})]
    if not terminals:
        return 0.0
    # tree[S][v]: cheapest tree that holds terminals S and node v, without the price of v.
    tree: dict[int, npt.NDArray[np.float64]] = {}
    for subset in range(1, 1 << len(terminals)):
        if subset.bit_count() == 1:
            join = np.full(size, np.inf)
            join[terminals[subset.bit_length() - 1]] = 0.0
        else:
            join = np.full(size, np.inf)
            part = (subset - 1) & subset
            while part:
                join = np.minimum(join, tree[part] + tree[subset ^ part])
                part = (part - 1) & subset
        tree[subset] = np.minimum(join, (join + price + distance[:, numbers]).min(axis=1))
    return float(min(tree[(1 << len(terminals)) - 1][[0, size - 1]]))
