"""Which integer inputs of a network select elements of a tensor, and of how many.

An index is followed through what moves or casts integers to the gathers and scatters that read it; the smallest of
their axes is the limit. Verification draws such inputs below it, because ONNX Runtime refuses to run on others
(:func:`bnn_compiler.verification.reference.sample_feeds`).
"""

from __future__ import annotations

import onnx
from onnx import NodeProto

from .onnx_graph import integer_attribute, static_shape, tensor_types

_INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})
_MOVES = frozenset(
    {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"}
)
"""Operators whose results are elements of their operands."""
_BY_AXIS = frozenset({"Gather", "GatherElements", "ScatterElements"})
_BY_COORDINATES = frozenset({"GatherND", "ScatterND"})


def index_limits(model: onnx.ModelProto) -> dict[str, int]:
    """Limits by the names of inputs. Nodes must be sorted, and shapes inferred."""
    graph = model.graph
    shapes = {name: static_shape(kind) for name, kind in tensor_types(graph).items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    sources = {info.name: {info.name} for info in graph.input if info.type.tensor_type.elem_type in _INTEGERS}
    limits: dict[str, int] = {}
    for node in graph.node if sources else ():
        if node.op_type in _MOVES:
            operands = node.input[1:] if node.op_type == "Where" else node.input[:1]
            sources[node.output[0]] = set().union(*(sources.get(name, set()) for name in operands))
        limit = _limit(node, shapes.get(node.input[0]) if node.input else None)
        if limit is not None:
            for name in sources.get(node.input[1], ()):
                limits[name] = min(limit, limits.get(name, limit))
    return limits


def _limit(node: NodeProto, shape: tuple[int, ...] | None) -> int | None:
    """How many elements the second operand of a node chooses among."""
    if not shape:
        return None
    if node.op_type in _BY_AXIS:
        return shape[integer_attribute(node, "axis", 0)]
    return min(shape) if node.op_type in _BY_COORDINATES else None
