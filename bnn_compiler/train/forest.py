"""Who is whose neighbour: the forests along which training makes channels alike.

A node's row is a channel's signs or those of a hidden node, which no weight belongs to: a synthetic node of a channel
tree, or the centre of a cluster. Each node but a root is joined to its parent; roots of channel trees are joined to a
constant vector. The variants differ in who is joined:

edges
    parents and children in a plain tree, whose nodes are channels alone, as MST-compression has it (ICCV 2023);
synthetic
    parents and children in a tree with synthetic nodes, the tree that the kernels use;
centres
    each channel and the centre of its cluster, a star per cluster: k-modes, that is Lloyd's algorithm in Hamming
    space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bnn_compiler.trees.channel_tree import ALL_PLUS, ChannelTree
from bnn_compiler.trees.solve import solve_channel_tree

from .sign_matrices import Signs

Variant = Literal["edges", "synthetic", "centres"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

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


@dataclass(frozen=True, eq=False)
class Forest:
    """Nodes 0 … M−1 are a layer's output channels, those of all groups; the rest are hidden.

    ``parents`` int64 [K], -1 for roots; ``constants`` float32 [K]: ±1 for roots that are joined to a constant vector,
    else 0; ``strengths`` float32 [K] of the edge to the parent or the constant. ``overhead``: planes that the hidden
    nodes cost.
    """

    parents: Tensor
    constants: Tensor
    strengths: Tensor
    channels: int
    overhead: float = 0.0

    @cached_property
    def levels(self) -> list[Tensor]:
        """Nodes by depth, roots first: int64 [nodes of the level] each."""
        found, inner = [self.parents < 0], (self.parents >= 0)
        while inner.any():
            below = inner & found[-1][self.parents.clamp_min(0)]
            found.append(below)
            inner = inner & ~below
        return [level.nonzero().reshape(-1) for level in found]

    def state(self) -> dict[str, Any]:
        """What makes the same forest: tensors and numbers by the names of the fields."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to(self, device: torch.device) -> Forest:
        """The same forest with its tensors on ``device``."""
        return replace(
            self,
            parents=self.parents.to(device),
            constants=self.constants.to(device),
            strengths=self.strengths.to(device),
        )

    def planes(self, rows: Tensor) -> int:
        """Weights in which the ends of edges differ, for ``rows`` ±1 [K, N]."""
        inner = self.parents >= 0
        above = torch.where(inner[:, None], rows[self.parents.clamp_min(0)], self.constants[:, None])
        return int(((rows != above) & (above != 0)).sum())


def edge_strengths(tree: ChannelTree, depth_weight: float) -> Floats:
    """1 + ``depth_weight`` · (d − 1) / (D − 1) for an edge between depths d − 1 and d, D the depth limit.

    Channels far from the root are drawn in harder, which leaves trees that need less depth.
    """
    return (1 + depth_weight * (tree.depths - 1) / max(1, tree.max_depth - 1)).astype(np.float32)


def tree_forest(trees: Sequence[ChannelTree], depth_weight: float = 0.0) -> Forest:
    """The forest of a layer's trees, one per group, in the order of the groups."""
    channels = sum(tree.channels for tree in trees)
    count = sum(tree.parents.size for tree in trees)
    parents = np.full(count, -1, np.int64)
    constants, strengths = np.zeros(count, np.float32), np.zeros(count, np.float32)
    first, hidden = 0, channels
    for tree in trees:
        assert not tree.negated.any(), "training solves trees without negated edges"
        numbers = np.concatenate([np.arange(tree.channels) + first, np.arange(tree.synthetic_nodes) + hidden])
        parents[numbers] = np.where(tree.parents >= 0, numbers[tree.parents], -1)
        plus = np.array([root == ALL_PLUS for root in tree.roots])
        constants[numbers] = np.where(tree.parents >= 0, 0.0, np.where(plus, 1.0, -1.0))
        strengths[numbers] = edge_strengths(tree, depth_weight)
        first, hidden = first + tree.channels, hidden + tree.synthetic_nodes
    arrays = [torch.from_numpy(array) for array in (parents, constants, strengths)]
    return Forest(arrays[0], arrays[1], arrays[2], channels, sum(t.node_overhead * t.synthetic_nodes for t in trees))


def centre_forest(groups: Sequence[Signs], clusters: int, seed: int) -> Forest:
    """Stars: the channels of each group, and the centres of about ``clusters`` clusters per group."""
    channels = sum(len(signs) for signs in groups)
    parents, hidden = [], channels
    for signs in groups:
        member, centres = cluster(signs, clusters, seed)
        parents.append(member + hidden)
        hidden += len(centres)
    above = torch.from_numpy(np.concatenate([*parents, np.full(hidden - channels, -1)]).astype(np.int64))
    return Forest(above, torch.zeros(hidden), torch.ones(hidden), channels)


def cluster(signs: Signs, clusters: int, seed: int) -> tuple[Ints, Floats]:
    """Cluster of each channel, int64 [M], and the clusters' centres, ±1 float32 [clusters, N], for uint8 [M, N]."""
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
    return member.astype(np.int64), centres
