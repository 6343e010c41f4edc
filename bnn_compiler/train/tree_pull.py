"""Which way each weight would have to flip for a cheaper channel tree: the targets of ``ChannelTreeLoss``.

The cost of a tree changes by the flip of one weight of one channel by (neighbours in the tree that agree with it) −
(neighbours that do not), a neighbour being a parent, a child, a synthetic node or a root's constant vector. So the sum
of the neighbours' signs is what the tree wants of this weight, and how much (``forest``: who is a neighbour).
"""

from __future__ import annotations

import numpy as np

from bnn_compiler.trees.channel_tree import ALL_PLUS, ChannelTree

from .forest import Floats, cluster, edge_strengths
from .sign_matrices import Signs


def tree_pull(tree: ChannelTree, depth_weight: float = 0.0) -> Floats:
    """Sum of the neighbours' signs per channel and weight, each times its edge's strength, float32 [M, N]."""
    signs = tree.vectors.astype(np.float32) * 2 - 1
    above = tree.parents >= 0
    parents = np.where(above[:, None], signs[np.maximum(tree.parents, 0)], 0.0).astype(np.float32)
    plus = np.array([root == ALL_PLUS for root in tree.roots])
    parents[~above] = np.where(plus[~above, None], 1.0, -1.0)
    edge = edge_strengths(tree, depth_weight)
    pull = parents * edge[:, None]
    np.add.at(pull, tree.parents[above], signs[above] * edge[above, None])
    return pull[: tree.channels]


def centre_pull(signs: Signs, clusters: int, seed: int) -> Floats:
    """Signs of each channel's cluster centre, float32 [M, N], for ``signs`` uint8 [M, N]."""
    member, centres = cluster(signs, clusters, seed)
    pull: Floats = centres[member]
    return pull
