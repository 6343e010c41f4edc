"""The answer: a tree over channels and synthetic nodes, which can check itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bnn_compiler.errors import BnncError

if TYPE_CHECKING:
    import networkx

Ints = npt.NDArray[np.int64]

ALL_MINUS, ALL_PLUS, IN_FULL, INNER = "minus", "plus", "full", ""


class TreeError(BnncError):
    """A channel tree breaks a rule; its text names the node and the rule."""


@dataclass(frozen=True, eq=False)
class ChannelTree:
    """How to compute all output channels of a layer from one another.

    Nodes 0 … M-1 are the channels, the rest synthetic. ``vectors`` uint8[K, N] are their signs (1 for +1);
    ``parents`` int64[K] their parents, -1 where the node is computed from a root; ``roots`` says from which: ``minus``
    (adds its +1 planes to nothing), ``plus`` (takes its -1 planes from the sum V of all planes), ``full`` (all N
    planes: the paper's only root), and ``""`` below a node. ``negated`` bool[K]: computed from the complement of its
    parent, for one plane more. ``order`` int64[K] lists parents before children.

    ``edge_costs`` counts planes per node; ``cost`` is their sum plus ``node_overhead`` per synthetic node. V itself (N
    planes, once per layer and group) is needed by the epilogue in any case and is not part of it. ``lower_bound`` holds
    for the problem that ``bound_problem`` names.
    """

    parents: Ints
    roots: tuple[str, ...]
    negated: npt.NDArray[np.bool_]
    vectors: npt.NDArray[np.uint8]
    channels: int
    max_depth: int
    node_overhead: float
    lower_bound: float
    bound_problem: str
    method: str

    @property
    def rooted_parents(self) -> Ints:
        """``parents`` with the two free roots told apart: -1 all minus, -2 all plus. Not for trees of a single root."""
        assert IN_FULL not in self.roots, "a channel computed in full has no free root"
        return np.where(np.array(self.roots) == ALL_PLUS, -2, self.parents)

    @property
    def order(self) -> Ints:
        """All nodes, parents before children; by depth, then by number."""
        return np.argsort(self.depths, kind="stable").astype(np.int64)

    @property
    def depths(self) -> Ints:
        """Edges between each node and its root."""
        depths = np.zeros(self.parents.size, np.int64)
        above = self.parents.copy()
        for _ in range(self.parents.size + 1):
            depths += above != -2
            above = np.where(above >= 0, self.parents[above], -2)
            if np.all(above == -2):
                return depths
        raise TreeError("the parents form a cycle")

    @property
    def depth(self) -> int:
        """Edges on the longest way from a root."""
        return int(self.depths.max())

    @property
    def synthetic_nodes(self) -> int:
        """Nodes that are no channels."""
        return int(self.parents.size) - self.channels

    @property
    def edge_costs(self) -> Ints:
        """Planes added or taken away per node, int64[K]."""
        weights = self.vectors.shape[1]
        ones = self.vectors.sum(axis=1, dtype=np.int64)
        below = self.parents >= 0
        costs = np.zeros(self.parents.size, np.int64)
        costs[below] = (self.vectors[below] != self.vectors[self.parents[below]]).sum(axis=1)
        costs = np.where(self.negated, weights - costs + 1, costs)
        kind = np.array(self.roots)
        costs[kind == ALL_MINUS] = ones[kind == ALL_MINUS]
        costs[kind == ALL_PLUS] = weights - ones[kind == ALL_PLUS]
        costs[kind == IN_FULL] = weights
        return costs

    @property
    def differing_weights(self) -> Ints:
        """Hamming distance of each node to its parent, or to the root's vector (``full`` has none: N), int64[K]."""
        weights = self.vectors.shape[1]
        return np.where(self.negated, weights - (self.edge_costs - 1), self.edge_costs).astype(np.int64)

    @property
    def edge_cost(self) -> int:
        """Planes added or taken away in all."""
        return int(self.edge_costs.sum())

    @property
    def cost(self) -> float:
        """Planes, and the overhead of the synthetic nodes."""
        return self.edge_cost + self.node_overhead * self.synthetic_nodes

    @property
    def ratio(self) -> float:
        """Cost as a fraction of M·N, what computing every channel in full takes."""
        return self.cost / float(self.channels * self.vectors.shape[1])

    @property
    def gap(self) -> float:
        """How far the cost may be above the optimum, as a fraction of the cost; 0 where it is proven optimal."""
        return (self.cost - self.lower_bound) / self.cost if self.cost else 0.0

    def check(self, weights: npt.ArrayLike | None = None) -> None:
        """Recompute everything; ``weights``, if given, is the matrix that the tree must reproduce.

        Raises:
            TreeError: shapes or types are wrong, a node is not reached, too deep, has the wrong vector or no use, or
                the cost is below the bound.
        """
        count = int(self.parents.size)
        if self.vectors.ndim != 2 or self.vectors.shape[0] != count or len(self.roots) != count:
            raise TreeError(f"{count} parents, {len(self.roots)} roots, vectors of shape {self.vectors.shape}")
        if self.negated.shape != (count,) or not 1 <= self.channels <= count:
            raise TreeError(f"{self.channels} channels among {count} nodes, negated has shape {self.negated.shape}")
        if np.any(self.vectors > 1):
            raise TreeError("a vector holds something else than 0 and 1")
        if weights is not None and not np.array_equal(self.vectors[: self.channels], np.asarray(weights)):
            raise TreeError("the first rows of the vectors are not the weights")
        if np.any(self.parents < -1) or np.any(self.parents >= count):
            raise TreeError("a parent is no node")
        for node, (parent, root) in enumerate(zip(self.parents.tolist(), self.roots, strict=True)):
            if (parent == -1) != (root in {ALL_MINUS, ALL_PLUS, IN_FULL}) or (parent >= 0 and root != INNER):
                raise TreeError(f"node {node} has parent {parent} and root {root!r}")
            if parent == -1 and self.negated[node]:
                raise TreeError(f"node {node} is computed from the complement of a root")
        if self.depth > self.max_depth:
            raise TreeError(f"depth {self.depth} is more than {self.max_depth}")
        leaves = set(range(self.channels, count)) - set(self.parents.tolist())
        if leaves:
            raise TreeError(f"synthetic node {min(leaves)} has no children")
        if self.lower_bound > self.cost + 1e-6:
            raise TreeError(f"cost {self.cost} is below the lower bound {self.lower_bound}")

    def to_networkx(self) -> networkx.DiGraph[Any]:
        """A graph with edges from parents to children; the roots are the nodes ``minus``, ``plus``, ``full`` if used.

        Edges have ``cost`` and ``negated``, nodes ``synthetic`` and ``depth``.
        """
        import networkx  # noqa: PLC0415

        graph: networkx.DiGraph[Any] = networkx.DiGraph()
        depths, costs = self.depths.tolist(), self.edge_costs.tolist()
        for root in sorted(set(self.roots) - {INNER}):
            graph.add_node(root, synthetic=False, depth=0)
        for node, parent in enumerate(self.parents.tolist()):
            graph.add_node(node, synthetic=node >= self.channels, depth=depths[node])
            graph.add_edge(
                parent if parent >= 0 else self.roots[node], node, cost=costs[node], negated=bool(self.negated[node])
            )
        return graph
