"""Constants of types that NumPy lacks, and 2- and 4-bit integers, in the next wider common type.

Every int4, uint4, int2 and uint2 tensor becomes int8 or uint8, with a ``Clip`` behind each ``QuantizeLinear`` to such a
type: the same numbers. Constants of bfloat16, float8 and float4 become float32, which holds them all; only operators
that move elements, ``Cast`` and ``DequantizeLinear`` (evaluated here) may read them, so that no rounding to the narrow
type is left out. What computes a tensor of such a type at run time is refused.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import FEW_BIT_TYPES, attribute_value, describe_node, dtype_name, integer_attribute, subgraphs

_Array = npt.NDArray[Any]

_INTEGERS: dict[int, tuple[int, int, int]] = {
    TensorProto.INT4: (TensorProto.INT8, -8, 7),
    TensorProto.UINT4: (TensorProto.UINT8, 0, 15),
    TensorProto.INT2: (TensorProto.INT8, -2, 1),
    TensorProto.UINT2: (TensorProto.UINT8, 0, 3),
}
"""The wider type, and the bounds."""

_MOVES = frozenset(
    {
        "Concat",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose results are elements of their inputs."""

_WAY_OUT = "export it in float32 or with integers of 8 bits"


def widen_few_bit_types(model: onnx.ModelProto) -> None:
    """Widen in place; the nodes must be sorted, and functions inlined.

    Raises:
        UnsupportedOperatorError: a node computes a tensor of such a type, or with one.
        ModelError: a ``DequantizeLinear`` of constants contradicts itself.
    """
    _Widening(model.graph, {}, {}).run()


class _Widening:
    """One graph that sees the tensors of outer ones: ``types`` of narrow tensors, ``values`` of constants."""

    def __init__(
        self, graph: GraphProto, types: MutableMapping[str, int], values: MutableMapping[str, TensorProto]
    ) -> None:
        self._graph = graph
        self._types = ChainMap[str, int]({}, types)
        self._values = ChainMap[str, TensorProto]({}, values)
        self._nodes: list[NodeProto] = []

    def run(self) -> None:
        """Widen the graph."""
        graph = self._graph
        for info in (*graph.input, *graph.output):
            kind = info.type.tensor_type.elem_type
            if kind in FEW_BIT_TYPES:  # of a body: the main graph's border is checked before
                raise UnsupportedOperatorError(
                    f"the tensor {info.name!r} is {dtype_name(kind)}, which is not supported in a body: {_WAY_OUT}"
                )
        for tensor in graph.initializer:
            self._widen_constant(tensor, tensor.name)
        for node in graph.node:
            self._visit(node)
        if len(self._nodes) != len(graph.node) or any(a is not b for a, b in zip(self._nodes, graph.node, strict=True)):
            kept = [NodeProto.FromString(node.SerializeToString()) for node in self._nodes]
            del graph.node[:]
            graph.node.extend(kept)

    def _widen_constant(self, tensor: TensorProto, name: str) -> None:
        self._values[name] = tensor
        kind = tensor.data_type
        if kind not in FEW_BIT_TYPES:
            return
        self._types[name] = kind
        wide = onnx.helper.tensor_dtype_to_np_dtype(_INTEGERS[kind][0]) if kind in _INTEGERS else np.dtype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(wide), tensor.name))

    def _visit(self, node: NodeProto) -> None:
        for inner in subgraphs(node):
            _Widening(inner, self._types, self._values).run()
        value = attribute_value(node, "value")
        if isinstance(value, TensorProto):
            attribute = next(attribute for attribute in node.attribute if attribute.name == "value")
            self._widen_constant(attribute.t, node.output[0])
        asked = next((kind for name in ("to", "output_dtype", "dtype") if (kind := _kind(node, name))), 0)
        narrow = [name for name in node.input if name in self._types]
        if node.op_type == "QuantizeLinear" and (narrow or asked):
            self._quantise(node, asked)
            return
        if asked:
            raise UnsupportedOperatorError(
                f"{describe_node(node)} computes a {dtype_name(asked)} tensor at run time, which is not supported: "
                f"{_WAY_OUT}"
            )
        if node.op_type == "DequantizeLinear" and any(self._types[name] not in _INTEGERS for name in narrow):
            self._dequantise(node)
            return
        self._nodes.append(node)
        if node.op_type in _MOVES:
            kinds = [self._types[name] for name in node.input if name in self._types]
            self._types.update(dict.fromkeys(node.output, kinds[0]) if kinds else {})
        elif narrow and node.op_type not in {"Cast", "DequantizeLinear", "Shape", "Size"}:
            raise UnsupportedOperatorError(
                f"{describe_node(node)} computes with the {dtype_name(self._types[narrow[0]])} tensor {narrow[0]!r}, "
                f"which is not supported: {_WAY_OUT}, or cast it to float32 first"
            )

    def _quantise(self, node: NodeProto, asked: int) -> None:
        """Saturate to the wider type, then to the narrow one."""
        kind = asked or (self._types.get(node.input[2], 0) if len(node.input) > 2 else 0)
        if kind not in _INTEGERS or any(name in self._types for name in node.input[:2]):
            raise UnsupportedOperatorError(
                f"{describe_node(node)} quantises to or from a narrow float type at run time, which is not supported: "
                f"{_WAY_OUT}"
            )
        wide, low, high = _INTEGERS[kind]
        result, before = node.output[0], f"{node.output[0]}/wide"
        bounds = [f"{result}/low", f"{result}/high"]
        for name, bound in zip(bounds, (low, high), strict=True):
            array = np.asarray(bound, onnx.helper.tensor_dtype_to_np_dtype(wide))
            self._graph.initializer.append(numpy_helper.from_array(array, name))
        for attribute in node.attribute:
            if attribute.name == "output_dtype":
                attribute.i = wide
        node.output[0] = before
        clip = onnx.helper.make_node("Clip", [before, *bounds], [result], name=f"{node.name or result}/clip")
        self._nodes += [node, clip]
        self._types[result] = kind

    def _dequantise(self, node: NodeProto) -> None:
        """Evaluate it: its operands must be constants. Float types have a zero point of 0, if any."""
        operands = [self._values.get(name) for name in node.input[:2]]
        if None in operands or self._types.get(node.input[1]):
            raise UnsupportedOperatorError(
                f"{describe_node(node)} dequantises a narrow float type that is no plain constant, or by such a scale, "
                f"which is not supported: {_WAY_OUT}"
            )
        data, scale = (numpy_helper.to_array(tensor) for tensor in operands if tensor is not None)
        wide = _spread_scale(node, data.shape, scale.astype(np.float32))
        result = np.asarray(data * wide, scale.dtype)
        self._graph.initializer.append(numpy_helper.from_array(result, node.output[0]))
        self._values[node.output[0]] = self._graph.initializer[-1]


def _kind(node: NodeProto, name: str) -> int:
    """The narrow type that an attribute of this name asks for; 0 without one."""
    value = attribute_value(node, name)
    return value if isinstance(value, int) and value in FEW_BIT_TYPES else 0


def _spread_scale(node: NodeProto, shape: tuple[int, ...], scale: _Array) -> _Array:
    """The scale in a shape that broadcasts to the data's: one number, one per index of the axis, or one per block."""
    axis, block = integer_attribute(node, "axis", 1), integer_attribute(node, "block_size", 0)
    rank = len(shape)
    if scale.size == 1:
        return scale.reshape(())
    if -rank <= axis < rank:
        axis %= rank
        blocks = (*shape[:axis], -(-shape[axis] // max(block, 1)), *shape[axis + 1 :])
        if block > 0 and scale.shape == blocks:
            return np.take(np.repeat(scale, block, axis), np.arange(shape[axis]), axis)
        if block == 0 and scale.shape == (shape[axis],):
            return scale.reshape(-1, *[1] * (rank - 1 - axis))
    raise ModelError(
        f"{describe_node(node)} has a scale of shape {list(scale.shape)} for axis {axis} of data of shape {list(shape)}"
    )
