"""Trees with synthetic nodes: stepwise addition, annealing over regrafts, descent.

The depth-bounded Steiner tree problem in Hamming space, known to biologists as maximum parsimony. Every step takes a
subtree off and prices all places where it could go, exactly, all synthetic vectors chosen anew (see
``kernels.forest``); the heat bath then draws one of them. Because a step sees all places at once, a few regrafts per
channel do what random moves need thousands for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels import forest as links_of
from .kernels.forest import make_forest
from .kernels.regraft import COST_SHIFT, anneal, build, descend, resolve, shuffle
from .noise import gumbel_table, heat
from .problem import SignMatrix, TreeOptions, unpack_bits
from .step_budgets import synthetic_budget

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

# In mismatches, times the square root of N, because so spread the distances of unrelated places. Between 0.2 and 0.9
# this was best on trained and random layers of 64 to 1024 channels; a linear fall of the heat beat a square one.
_HEAT_PER_SQRT_N = 0.6
_DESCENTS = 4
_CHUNKS = 20


@dataclass(frozen=True, eq=False)
class FoundTree:
    """Parents (-1 minus root, -2 plus root) and vectors of all nodes, channels first."""

    parents: Ints
    vectors: npt.NDArray[np.uint8]


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """The search was interrupted; ``found`` is the best tree so far."""

    def __init__(self, found: FoundTree | None) -> None:
        """``found`` is None if there was no tree yet."""
        super().__init__("interrupted")
        self.found = found


def search_synthetic(matrix: SignMatrix, options: TreeOptions, progress: Callable[[float], None]) -> FoundTree:
    """Find a cheap tree with synthetic nodes.

    Raises:
        Interrupted: on Ctrl-C, with the best tree so far.
    """
    plus, minus = matrix.planes()
    budget = synthetic_budget(options.effort, matrix.channels, plus.shape[1])
    overhead = round(options.node_overhead * (1 << COST_SHIFT))
    random = np.array([options.seed], np.uint64)
    noise = gumbel_table()
    best: FoundTree | None = None
    best_cost = math.inf
    links, rows = make_forest(plus, minus)
    hot = heat(_HEAT_PER_SQRT_N * math.sqrt(matrix.weights))
    work = budget.restarts * (_CHUNKS + _DESCENTS)
    done = 0
    try:
        for _ in range(budget.restarts):
            links, rows = make_forest(plus, minus)
            sequence = np.arange(links_of.ROOTS, links_of.ROOTS + matrix.channels)
            shuffle(sequence, random)
            build(links, rows, sequence, options.max_depth, overhead, noise, random)
            for chunk in range(_CHUNKS):
                steps = matrix.channels * budget.sweeps * (chunk + 1) // _CHUNKS
                steps -= matrix.channels * budget.sweeps * chunk // _CHUNKS
                from_heat, to_heat = (hot * (_CHUNKS - at) // _CHUNKS for at in (chunk, chunk + 1))
                anneal(links, rows, steps, from_heat, to_heat, options.max_depth, overhead, noise, random)
                done += 1
                progress(done / work)
            nodes = np.arange(links_of.ROOTS, links.shape[1])
            for _ in range(_DESCENTS):
                shuffle(nodes, random)
                change = descend(links, rows, nodes, options.max_depth, overhead, noise, random)
                done += 1
                progress(done / work)
                if change == 0:
                    break
            found, cost = _read(links, rows, matrix, options.node_overhead)
            if cost < best_cost:
                best, best_cost = found, cost
    except KeyboardInterrupt:
        # Machine code is never left in the middle, so the forest is whole unless it is still being built.
        if np.all(links[links_of.PARENT, links_of.ROOTS : links_of.ROOTS + matrix.channels] >= 0):
            found, cost = _read(links, rows, matrix, options.node_overhead)
            if cost < best_cost:
                best = found
        raise Interrupted(best) from None
    assert best is not None
    return best


def _read(links: Ints, rows: Words, matrix: SignMatrix, node_overhead: float) -> tuple[FoundTree, float]:
    """Choose vectors, drop synthetic nodes equal to a neighbour, and number the nodes anew."""
    packed = np.zeros((links.shape[1], rows.shape[1]), np.uint64)
    resolve(links, rows, packed)
    parents = links[links_of.PARENT].copy()
    alive = links[links_of.KIND] != links_of.UNUSED
    _drop_copies(parents, alive, packed, links_of.ROOTS + matrix.channels)
    kept = np.flatnonzero(alive[links_of.ROOTS :]) + links_of.ROOTS
    number = np.full(parents.size, -1)
    number[kept] = np.arange(kept.size)
    above = parents[kept]
    new_parents = np.where(above >= links_of.ROOTS, number[above], -1 - above)
    vectors = unpack_bits(packed[kept], matrix.weights)
    edges = int(np.bitwise_count(packed[kept] ^ packed[above]).sum())
    synthetic = kept.size - matrix.channels
    return FoundTree(new_parents, vectors), edges + node_overhead * synthetic


def _drop_copies(parents: Ints, alive: npt.NDArray[np.bool_], packed: Words, fixed: int) -> None:
    """Merge each synthetic node into a parent or a child of the same vector: an overhead less, at no greater depth."""
    changed = True
    while changed:
        changed = False
        # The padding of the roots' vectors and of all others is 0, so equal words are equal vectors.
        same = np.flatnonzero(alive & (parents >= 0) & np.all(packed == packed[parents], axis=1))
        for node in same.tolist():
            parent = int(parents[node])
            if not alive[node] or not np.array_equal(packed[node], packed[parent]):
                continue
            if node >= fixed:
                parents[parents == node] = parent
                alive[node] = False
            elif parent >= fixed:
                parents[node] = parents[parent]
                parents[parents == parent] = node
                alive[parent] = False
            else:
                continue
            changed = True
            break
