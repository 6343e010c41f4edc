"""Names and order: what lets a report point at a node."""

from __future__ import annotations

import heapq
from collections import Counter

import onnx
from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .onnx_graph import describe_node, names_read


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a unique name, in place: its own, or ``<op_type>_<index>`` where it is empty or not the first."""
    taken = Counter(node.name for node in model.graph.node if node.name)
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.name or node.op_type}_{index}"
        while name in taken or name in seen:
            name += "_"
        seen.add(name)
        node.name = name


def sort_nodes(model: onnx.ModelProto) -> bool:
    """Order nodes so that each comes after those it reads from, in place; whether anything moved.

    Kahn's algorithm, taking the earliest ready node first, so that a sorted graph keeps its order.

    Raises:
        ModelError: a tensor comes from nowhere, is written twice, or nodes wait for each other in a cycle.
    """
    graph = model.graph
    available = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    available |= {sparse.values.name for sparse in graph.sparse_initializer}
    writer: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in writer or name in available):
                raise ModelError(f"the tensor {name!r} is written twice, the second time by {describe_node(node)}")
            if name:
                writer[name] = index
    reads = [names_read(node) for node in graph.node]
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in writer and name not in available:
                raise ModelError(f"{describe_node(node)} reads the tensor {name!r}, which nothing gives")
    order = _order([{writer[name] for name in names if name in writer} for names in reads])
    if len(order) < len(graph.node):
        stuck = min(set(range(len(graph.node))) - set(order))
        raise ModelError(f"the graph has a cycle: {describe_node(graph.node[stuck])} waits for its own result")
    if order == list(range(len(order))):
        return False
    nodes = [NodeProto.FromString(graph.node[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _order(waits_for: list[set[int]]) -> list[int]:
    """Indices in an order that respects the dependencies; those on or behind a cycle are missing."""
    readers: list[list[int]] = [[] for _ in waits_for]
    missing = [len(dependencies) for dependencies in waits_for]
    for index, dependencies in enumerate(waits_for):
        for dependency in dependencies:
            readers[dependency].append(index)
    ready = [index for index, count in enumerate(missing) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heapq.heappush(ready, reader)
    return order
