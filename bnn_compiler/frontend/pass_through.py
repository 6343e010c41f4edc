"""Removal of nodes whose first result is their first input: ``Identity``, and ``Dropout`` at inference."""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto

from bnn_compiler.errors import UnsupportedOperatorError

from .onnx_graph import describe_node


def remove_pass_through(model: onnx.ModelProto) -> int:
    """Drop such nodes and let their readers read the input, in place; the number of nodes dropped.

    A node stays as an ``Identity`` where its result is an output of the graph: the border keeps its names.

    Raises:
        UnsupportedOperatorError: a ``Dropout`` in training mode, or one whose mask is used.
    """
    graph = model.graph
    outputs = {output.name for output in graph.output}
    used = outputs | {name for node in graph.node for name in node.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    renamed: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        if node.op_type == "Dropout":
            _check_dropout(node, used, constants)
        if node.op_type not in {"Identity", "Dropout"}:
            kept.append(node)
        elif node.output[0] in outputs:
            kept.append(NodeProto(op_type="Identity", name=node.name, input=node.input[:1], output=node.output[:1]))
        else:
            renamed[node.output[0]] = node.input[0]
    dropped = len(graph.node) - len(kept)
    del graph.node[:]
    graph.node.extend(kept)
    return dropped


def _check_dropout(node: NodeProto, used: set[str], constants: dict[str, TensorProto]) -> None:
    if len(node.output) > 1 and node.output[1] in used:
        raise UnsupportedOperatorError(f"{describe_node(node)}: its mask is used, which is not supported")
    if len(node.input) > 2 and node.input[2]:
        mode = constants.get(node.input[2])
        if mode is None or onnx.numpy_helper.to_array(mode).any():
            raise UnsupportedOperatorError(f"{describe_node(node)} is in training mode, which is not supported")
