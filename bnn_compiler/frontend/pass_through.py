"""Removal of nodes whose first result is their first input: ``Identity``, and ``Dropout`` at inference."""

from __future__ import annotations

import onnx
from onnx import NodeProto


def remove_pass_through(model: onnx.ModelProto) -> int:
    """Drop such nodes and let their readers read the input, in place; the number of nodes dropped.

    The border keeps its names: where the result is an output of the graph, the tensor gets that output's name. Only
    where it has such a name already, or is an input or a constant, the node stays, as an ``Identity``.

    A ``Dropout`` that trains, or whose mask is used, has been lowered before (``selection_operators``).
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type not in {"Identity", "Dropout"}:
            kept.append(node)
        elif node.output[0] in outputs:
            kept.append(NodeProto(op_type="Identity", name=node.name, input=node.input[:1], output=node.output[:1]))
        else:
            renamed[node.output[0]] = node.input[0]
    kept = _give_output_names(kept, outputs)
    dropped = len(graph.node) - len(kept)
    del graph.node[:]
    graph.node.extend(kept)
    return dropped


def _give_output_names(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """The nodes without those that only give a node's result the name of a graph output."""
    produced = {name for node in nodes if node.op_type != "Identity" for name in node.output}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in nodes:
        source = node.input[0] if node.op_type == "Identity" else ""
        if source in produced and source not in outputs and source not in renamed:
            renamed[source] = node.output[0]
        else:
            kept.append(node)
    for node in kept:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    return kept
