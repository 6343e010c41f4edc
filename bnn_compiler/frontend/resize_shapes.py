"""Lengths of resized axes as ONNX Runtime computes them, where ONNX's shape inference has others.

ONNX Runtime multiplies length and scale in float32, inference in double precision: 10 · 2.3 (which is 2.29999995) is 23
here and 22 there. Policies that keep the aspect ratio round differently, too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, numpy_helper

from bnn_compiler.errors import UnsupportedOperatorError

from .onnx_graph import attribute_value, describe_node, static_shape, tensor_types
from .resize_form import read_form

_RESIZES = frozenset({"Resize", "Upsample"})


def resizes(graph: onnx.GraphProto) -> int:
    """How many nodes of the main graph resize."""
    return sum(1 for node in graph.node if node.op_type in _RESIZES)


def stand_in_resizes(skeleton: onnx.ModelProto, inferred: onnx.ModelProto, opset: int) -> int:
    """Let nodes of ``skeleton`` that inference is wrong about become ``Reshape`` nodes of the right shape; how many.

    The skeleton serves shape inference alone, which does not count elements.
    """
    graph = skeleton.graph
    types = tensor_types(inferred.graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    replaced = 0
    for node in graph.node:
        if node.op_type not in _RESIZES:
            continue
        shape = _resized_shape(node, types, constants, opset)
        found = types.get(node.output[0])
        known = None if found is None else static_shape(found)
        if shape is None or known == shape:
            continue
        target = f"{node.output[0]}/resized_shape"
        graph.initializer.append(numpy_helper.from_array(np.asarray(shape, np.int64), target))
        stand_in = onnx.helper.make_node("Reshape", [node.input[0], target], [node.output[0]], name=node.name)
        node.CopyFrom(stand_in)
        replaced += 1
    return replaced


def _resized_shape(
    node: NodeProto, types: Mapping[str, TypeProto], constants: Mapping[str, TensorProto], opset: int
) -> tuple[int, ...] | None:
    """The shape of a node's result, where inputs say it and the node is one that can be compiled."""
    source = types.get(node.input[0])
    shape = None if source is None else static_shape(source)
    names = list(node.input)[1:]
    if shape is None or any(name and name not in constants for name in names):
        return None
    inputs = [numpy_helper.to_array(constants[name]) if name else None for name in names]
    attributes = {attribute.name: attribute_value(node, attribute.name) for attribute in node.attribute}
    try:
        return read_form(describe_node(node), node.op_type, opset, shape, "float32", inputs, attributes).shape
    except UnsupportedOperatorError:
        return None  # the importer will say so
