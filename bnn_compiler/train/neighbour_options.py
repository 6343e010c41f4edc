"""What the penalty and the agreeing signs have in common: which neighbours, found how, how often."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bnn_compiler.errors import UsageError
from bnn_compiler.trees.channel_tree import ChannelTree

from .forest import VARIANTS, TreeShape, Variant, solve_fast
from .sign_matrices import Signs


@dataclass(frozen=True)
class NeighbourOptions:
    """Who is whose neighbour.

    Attributes:
        variant: who is joined to whom (``forest``).
        solve_every: steps between two solves.
        depth_weight: extra weight of the deepest edges; 0 leaves depth to the solver's limit alone.
        clusters: channels per cluster centre of the variant ``centres``.
        tree: limits and prices of trees.
    """

    variant: Variant = "synthetic"
    solve_every: int = 100
    depth_weight: float = 0.0
    clusters: int = 8
    tree: TreeShape = field(default_factory=TreeShape)

    def __post_init__(self) -> None:
        """Check the options."""
        if self.variant not in VARIANTS:
            raise UsageError(f"variant {self.variant!r} is none of {', '.join(VARIANTS)}")
        if self.solve_every < 1 or self.clusters < 1:
            raise UsageError("solve_every and clusters must be 1 at least")
        if not (math.isfinite(self.depth_weight) and self.depth_weight >= 0):
            raise UsageError("depth_weight must not be negative")

    def solve(self, signs: Signs) -> ChannelTree:
        """The tree of one group, for the variants that have one."""
        return solve_fast(signs, self.tree, synthetic=self.variant == "synthetic")

    def cluster_count(self, signs: Signs) -> int:
        """Clusters of one group's channels."""
        return -(-len(signs) // self.clusters)
