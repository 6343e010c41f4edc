"""In which order of axes should each tensor of a graph be stored, so that the fewest elements are transposed?

*The graph.* A node is a tensor together with the operator that computes it, where that operator is indifferent to the
order of axes: operands and result are then permuted alike. Its *layout* is the permutation π by which it is stored:
axis i of what is stored is axis π[i] of the tensor as the model has it. Other operators read and give the model's own
order: a *fixed* node has the identity. A net is a tensor with its readers; a reader sees the tensor through the
model's transposes, joined to one permutation σ. It finds what it reads in place if π_tensor = σ∘π_reader (π_tensor = σ
if the reader is fixed), else a transposed copy is made, one for all readers that want the same. A net costs its
elements per copy.

*Frames.* Within a connected part, frames g with g_tensor = σ∘g_reader along the nets make layouts comparable: with
π = g∘ℓ, a copy is made exactly where the labels ℓ of tensor and reader differ. (A cycle whose transposes do not cancel,
as in x + xᵀ, leaves a reader for which no such g exists; wherever it stands a copy is made. The cut below does not see
it, the comparison at the end does.)

*The cut.* Labels are then found by α-expansion (Boykov, Veksler, Zabih: Fast approximate energy minimization via graph
cuts, 2001): for one label after the other, the set of nodes that take it is a minimum cut, nets being hyperedges with
an auxiliary node on either side. With two labels, and one of them everywhere at first, the first expansion is the
optimum; networks rarely have more than NCHW and NHWC. Of equal costs, that wins which changes fewer nodes.

The result never costs more than the model as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Permutation = tuple[int, ...]


def compose(first: Permutation, second: Permutation) -> Permutation:
    """The permutation that is ``first``, then ``second`` (as ``transpose`` of a transposed array)."""
    return tuple(first[axis] for axis in second)


def inverse(permutation: Permutation) -> Permutation:
    """The permutation that undoes ``permutation``."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def identity(rank: int) -> Permutation:
    """The permutation that changes nothing."""
    return tuple(range(rank))


@dataclass(frozen=True, eq=False)
class Node:
    """A tensor of ``rank`` axes that may be stored as ``allows`` says; the identity is always allowed."""

    rank: int
    fixed: bool = False
    allows: Callable[[Permutation], bool] = lambda _: True


@dataclass(frozen=True)
class Net:
    """The tensor of node ``driver``, of ``elements`` elements, and who reads it: a node (None if fixed) and its σ."""

    driver: int
    elements: int
    readers: tuple[tuple[int | None, Permutation], ...]


def transposed_elements(nets: Sequence[Net], layouts: Sequence[Permutation]) -> int:
    """How many elements the copies hold that ``layouts`` (one per node) need."""
    total = 0
    for net in nets:
        wanted = {sigma if reader is None else compose(sigma, layouts[reader]) for reader, sigma in net.readers}
        total += net.elements * len(wanted - {layouts[net.driver]})
    return total


def assign_layouts(nodes: Sequence[Node], nets: Sequence[Net]) -> list[Permutation]:
    """The layout of every node; see the module's docstring."""
    frames, parts = _frames(nodes, nets)
    layouts = [identity(node.rank) for node in nodes]
    for members in parts:
        inside = set(members)
        own = [net for net in nets if net.driver in inside]
        part = _Part(nodes, frames, members, own)
        for labels in part.candidates():
            found = list(layouts)
            for node in members:
                found[node] = compose(frames[node], labels[node])
            if part.true_cost(found) < part.true_cost(layouts):
                layouts = found
    return layouts


def _frames(nodes: Sequence[Node], nets: Sequence[Net]) -> tuple[list[Permutation], list[list[int]]]:
    """A frame per node, and the connected parts."""
    neighbours: dict[int, list[tuple[int, Permutation]]] = defaultdict(list)
    for net in nets:
        for reader, sigma in net.readers:
            if reader is not None:
                neighbours[net.driver].append((reader, inverse(sigma)))
                neighbours[reader].append((net.driver, sigma))
    frames: dict[int, Permutation] = {}
    parts = []
    for start in range(len(nodes)):
        if start in frames:
            continue
        frames[start] = identity(nodes[start].rank)
        part = [start]
        for node in part:  # grows while it is walked
            for other, step in neighbours[node]:
                if other not in frames:
                    frames[other] = compose(step, frames[node])
                    part.append(other)
        parts.append(part)
    return [frames[node] for node in range(len(nodes))], parts


class _Part:
    """One connected part of the graph."""

    def __init__(
        self, nodes: Sequence[Node], frames: Sequence[Permutation], members: Sequence[int], nets: Sequence[Net]
    ) -> None:
        self._nodes = nodes
        self._frames = frames
        self._members = members
        self._nets = nets
        # Weights are so large that a copy of one element outweighs a change of every node.
        self._unit = len(members) + 1
        self._forbidden = self._unit * (1 + sum(net.elements * len(net.readers) for net in nets))

    def candidates(self) -> list[dict[int, Permutation]]:
        """Labels for the members, one assignment per label to begin with; none if no transpose can be saved."""
        if (
            all(self._nodes[node].fixed for node in self._members)
            or transposed_elements(self._nets, self._as_modelled()) == 0
        ):
            return []
        fixed = {node: inverse(self._frames[node]) for node in self._members if self._nodes[node].fixed}
        wanted = [
            compose(inverse(self._frames[net.driver]), sigma)
            for net in self._nets
            for reader, sigma in net.readers
            if reader is None
        ]
        labels = list(dict.fromkeys((*fixed.values(), *wanted)))
        found = []
        for first in labels:
            start = {node: fixed.get(node, first) for node in self._members}
            found.append(self._expanded(start, labels))
        return found

    def true_cost(self, layouts: Sequence[Permutation]) -> int:
        """Elements of the copies, then the number of nodes that are not stored as in the model."""
        changed = sum(layouts[node] != identity(self._nodes[node].rank) for node in self._members)
        banned = sum(not self._nodes[node].allows(layouts[node]) for node in self._members)
        return self._unit * transposed_elements(self._nets, layouts) + changed + self._forbidden * banned

    def _as_modelled(self) -> list[Permutation]:
        return [identity(node.rank) for node in self._nodes]

    def _expanded(self, labels: dict[int, Permutation], choices: Sequence[Permutation]) -> dict[int, Permutation]:
        """Expand one label after the other until none gains."""
        best, cost = labels, self._cost_of(labels)
        improved = True
        while improved:
            improved = False
            for label in choices:
                found = self._expand(best, label)
                if (reached := self._cost_of(found)) < cost:
                    best, cost, improved = found, reached, True
        return best

    def _cost_of(self, labels: dict[int, Permutation]) -> int:
        layouts = self._as_modelled()
        for node, label in labels.items():
            layouts[node] = compose(self._frames[node], label)
        return self.true_cost(layouts)

    def _unary(self, node: int, label: Permutation) -> int:
        layout = compose(self._frames[node], label)
        if not self._nodes[node].allows(layout):
            return self._forbidden
        return int(layout != identity(len(layout)))

    def _expand(self, labels: dict[int, Permutation], alpha: Permutation) -> dict[int, Permutation]:
        """The best change in which any nodes take ``alpha`` and all others stay: source side stays, sink side takes."""
        cut = _Cut(2 * self._forbidden * (len(self._members) + 1))
        for node in self._members:
            if labels[node] == alpha:
                cut.force_sink(node)
            elif self._nodes[node].fixed:
                cut.force_source(node)
            else:
                cut.arc(node, cut.SINK, self._unary(node, labels[node]))
                cut.arc(cut.SOURCE, node, self._unary(node, alpha))
        for net in self._nets:
            self._add_net(cut, net, labels, alpha)
        stays = cut.source_side()
        return {node: label if node in stays else alpha for node, label in labels.items()}

    def _add_net(self, cut: _Cut, net: Net, labels: dict[int, Permutation], alpha: Permutation) -> None:
        driver, weight = net.driver, self._unit * net.elements
        frame = self._frames[driver]
        nodes: dict[Permutation, list[int]] = defaultdict(list)
        fixed: set[Permutation] = set()
        for reader, sigma in net.readers:
            if reader is None:
                fixed.add(compose(inverse(frame), sigma))
            elif compose(sigma, self._frames[reader]) == frame:
                nodes[labels[reader]].append(reader)
        own = labels[driver]
        for label in dict.fromkeys((*nodes, *fixed)):
            if label == alpha or (label != own and label in fixed):
                continue  # alpha is below; a fixed reader's copy is made in any case
            # A reader that stays wants a copy if the tensor is, or becomes, another label.
            target = driver if label == own else cut.SINK
            if label in fixed:
                cut.arc(cut.SOURCE, target, weight)
            else:
                cut.any_source(nodes[label], target, weight)
        if own != alpha:
            readers = [reader for group in nodes.values() for reader in group]
            if alpha in fixed:
                cut.arc(driver, cut.SINK, weight)
            else:
                cut.any_sink(readers, driver, weight)


class _Cut:
    """A minimum cut that is put together arc by arc; nodes are any integers from 0 on."""

    SOURCE, SINK = -1, -2

    def __init__(self, infinity: int) -> None:
        self._infinity = infinity
        self._index: dict[int, int] = {self.SOURCE: 0, self.SINK: 1}
        self._arcs: list[tuple[int, int, int]] = []
        self._auxiliary = -2

    def arc(self, tail: int, head: int, capacity: int) -> None:
        """Costs ``capacity`` where ``tail`` is on the source side and ``head`` on the sink side."""
        if capacity:
            ends = [self._index.setdefault(end, len(self._index)) for end in (tail, head)]
            self._arcs.append((ends[0], ends[1], capacity))

    def force_source(self, node: int) -> None:
        """Keep ``node`` on the source side."""
        self.arc(self.SOURCE, node, self._infinity)

    def force_sink(self, node: int) -> None:
        """Keep ``node`` on the sink side."""
        self.arc(node, self.SINK, self._infinity)

    def any_source(self, tails: Sequence[int], head: int, capacity: int) -> None:
        """Costs ``capacity`` once if any of ``tails`` is on the source side and ``head`` on the sink side."""
        self._auxiliary -= 1
        for tail in tails:
            self.arc(tail, self._auxiliary, self._infinity)
        self.arc(self._auxiliary, head, capacity)

    def any_sink(self, heads: Sequence[int], tail: int, capacity: int) -> None:
        """Costs ``capacity`` once if any of ``heads`` is on the sink side and ``tail`` on the source side."""
        self._auxiliary -= 1
        for head in heads:
            self.arc(self._auxiliary, head, self._infinity)
        self.arc(tail, self._auxiliary, capacity)

    def source_side(self) -> set[int]:
        """The source side of a minimum cut, without the source."""
        from ortools.graph.python import max_flow  # noqa: PLC0415

        flow = max_flow.SimpleMaxFlow()
        for tail, head, capacity in self._arcs:
            flow.add_arc_with_capacity(tail, head, capacity)
        status = flow.solve(0, 1)
        assert status == flow.OPTIMAL, "capacities are bounded by the elements of a network"
        side = set(flow.get_source_side_min_cut())
        return {node for node, index in self._index.items() if index in side and node != self.SOURCE}
