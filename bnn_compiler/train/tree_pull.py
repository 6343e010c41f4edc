"""Which way each weight would have to flip for a cheaper channel tree: the targets of ``ChannelTreeLoss``.

The cost of a tree changes by the flip of one weight of one channel by (neighbours in the tree that agree with it) −
(neighbours that do not), a neighbour being a parent, a child, a synthetic node or a root's constant vector. So the sum
of the neighbours' signs is what the tree wants of this weight, and how much. The variants differ in who is a neighbour:

edges
    parents and children in a plain tree, whose nodes are channels alone (MST-compression, ICCV 2023, section 3.3, pulls
    channels of its spanning tree together, too);
synthetic
    parents and children in a tree with synthetic nodes, the tree that the kernels use;
centres
    the centre of the channel's cluster alone (a star per cluster): k-modes, that is Lloyd's algorithm in Hamming space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from bnn_compiler.trees.channel_tree import ALL_PLUS, ChannelTree
from bnn_compiler.trees.solve import solve_channel_tree

from .sign_matrices import Signs

Variant = Literal["edges", "synthetic", "centres"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
Floats = npt.NDArray[np.float32]

_LLOYD_ROUNDS = 10


@dataclass(frozen=True)
class TreeShape:
    """What trees may look like, as of ``solve_channel_tree``: ``max_depth`` edges, planes per synthetic node."""

    max_depth: int = 8
    node_overhead: float = 24.0
    seed: int = 0


def solve_fast(signs: Signs, shape: TreeShape, *, synthetic: bool = True) -> ChannelTree:
    """The tree of one group at the least effort; the same signs give the same tree."""
    return solve_channel_tree(
        signs,
        max_depth=shape.max_depth,
        node_overhead=shape.node_overhead,
        synthetic=synthetic,
        effort="fast",
        seed=shape.seed,
    )


def tree_pull(tree: ChannelTree, depth_weight: float = 0.0) -> Floats:
    """Sum of the neighbours' signs per channel and weight, float32 [M, N].

    An edge between depths d − 1 and d counts 1 + ``depth_weight`` · (d − 1) / (D − 1), D the depth limit: channels far
    from the root are drawn in harder, which leaves trees that need less depth.
    """
    signs = tree.vectors.astype(np.float32) * 2 - 1
    above = tree.parents >= 0
    parents = np.where(above[:, None], signs[np.maximum(tree.parents, 0)], 0.0).astype(np.float32)
    plus = np.array([root == ALL_PLUS for root in tree.roots])
    parents[~above] = np.where(plus[~above, None], 1.0, -1.0)
    edge = (1 + depth_weight * (tree.depths - 1) / max(1, tree.max_depth - 1)).astype(np.float32)
    pull = parents * edge[:, None]
    np.add.at(pull, tree.parents[above], signs[above] * edge[above, None])
    return pull[: tree.channels]


def centre_pull(signs: Signs, clusters: int, seed: int) -> Floats:
    """Signs of each channel's cluster centre, float32 [M, N], for ``signs`` uint8 [M, N]."""
    values = signs.astype(np.float32) * 2 - 1
    random = np.random.default_rng(seed)
    # Centres start far apart: each new one is drawn with the squared distance to the nearest as its weight (k-means++).
    centres = values[[int(random.integers(len(values)))]]
    while len(centres) < min(clusters, len(values)):
        nearest = (values.shape[1] - (values @ centres.T).max(axis=1)).astype(np.float64) ** 2
        if not nearest.any():
            break
        chosen = int(random.choice(len(values), p=nearest / nearest.sum()))
        centres = np.concatenate([centres, values[[chosen]]])
    member = np.argmax(values @ centres.T, axis=1)
    for _ in range(_LLOYD_ROUNDS):
        for index in np.unique(member):
            sums = values[member == index].sum(axis=0)
            centres[index] = np.where(sums == 0, centres[index], np.sign(sums))
        before, member = member, np.argmax(values @ centres.T, axis=1)
        if np.array_equal(before, member):
            break
    pull: Floats = centres[member]
    return pull
