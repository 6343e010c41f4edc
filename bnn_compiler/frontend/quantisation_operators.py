"""``QuantizeLinear`` and its kin as the arithmetic that ONNX Runtime does for them.

With scale s and zero point z, which are numbers, lists along ``axis``, or (``block_size``) one per block of it:

``QuantizeLinear(x, s, z)``
    saturate(round(x / s) + z): float32 division, ties to even, the bounds of the type of z. The value is clipped to
    the bounds less z first, as in ONNX Runtime, so that nothing behind leaves the integers that float32 holds.
``DequantizeLinear(x, s, z)``
    (x - z) * s. The difference of integers of up to 16 bits is exact in float32; 32-bit integers have no zero point.
``DynamicQuantizeLinear(x)``
    to uint8 with s = (max(x, 0) - min(x, 0)) / 255 and z = round(saturate(-min(x, 0) / s)); s = 1 where all is 0.

So recognition sees operators that it knows, and quantised activations are codes like all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import TENSOR_DTYPES, describe_node, dtype_name, integer_attribute
from .versioned_operators import emit_reshape, emit_slice

_Shape = tuple[int, ...]

_MAGIC = 1.5 * 2.0**23
"""Adding and subtracting it rounds a float32 of magnitude up to 2^22 to an integer, ties to even."""


def emit_round(emit: NodeEmitter, data: str) -> str:
    """``data``, of magnitude up to 2^22, rounded to integers, ties to even; ``Round`` came with operator set 11."""
    if emit.opset >= 11:
        return emit("Round", data)
    magic = emit.scalar(_MAGIC)
    return emit("Sub", emit("Add", data, magic), magic)


def emit_saturated(emit: NodeEmitter, scaled: str, zero: str, dtype: np.dtype[np.integer[Any]]) -> str:
    """``round(scaled) + zero`` as floats within the bounds of an integer type; ``zero`` names a tensor of that type.

    An empty ``zero`` is 0. A constant one of one element clips first, as ONNX Runtime does; others clip last, which
    gives the same numbers.
    """
    low, high = float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    value = np.zeros((), dtype) if not zero else emit.constant_value(zero)
    if value is not None and value.size == 1:
        shift = float(value.reshape(-1)[0])
        rounded = emit_round(emit, emit.clip(scaled, low - shift, high - shift))
        return emit("Add", rounded, emit.scalar(shift)) if shift else rounded
    # Beyond these bounds no zero point brings a value back into the type's range.
    rounded = emit_round(emit, emit.clip(scaled, 2 * (low - high), 2 * (high - low)))
    return emit.clip(emit("Add", rounded, emit("Cast", zero, to=emit.element_type)), low, high)


def emit_parameter(node: NodeProto, emit: NodeEmitter, name: str, shape: _Shape) -> str:
    """A scale or zero point in a shape that broadcasts to ``shape``, that of the data."""
    known = emit.shape(name)
    assert known is not None
    axis, block = integer_attribute(node, "axis", 1), integer_attribute(node, "block_size", 0)
    rank = len(shape)
    if not -rank <= axis < max(rank, 1) and known not in ((), (1,)):
        raise ModelError(f"{describe_node(node)} has the axis {axis}, but data of rank {rank}")
    if block:
        return _emit_blocks(node, emit, name, shape, block)
    if known in ((), (1,)):
        return name if known == () else emit_reshape(emit, name, [])
    if len(known) != 1 or known[0] != shape[axis % rank]:
        raise ModelError(
            f"{describe_node(node)} has a scale or zero point of shape {list(known)} for axis {axis} of data of shape "
            f"{list(shape)}"
        )
    return emit_reshape(emit, name, [-1, *[1] * (rank - 1 - axis % rank)])


def _emit_blocks(node: NodeProto, emit: NodeEmitter, name: str, shape: _Shape, block: int) -> str:
    """One number per block of the axis, repeated along it."""
    known = emit.shape(name)
    assert known is not None
    rank = len(shape)
    axis = integer_attribute(node, "axis", 1) % max(rank, 1)
    blocks = -(-shape[axis] // block) if block > 0 and rank else 0
    if known != (*shape[:axis], blocks, *shape[axis + 1 :]):
        raise ModelError(
            f"{describe_node(node)} has a scale or zero point of shape {list(known)} for data of shape {list(shape)} "
            f"in blocks of {block} along axis {axis}"
        )
    column = emit_reshape(emit, name, [*known[: axis + 1], 1, *known[axis + 1 :]])
    wide = emit("Expand", column, emit.integers([*known[: axis + 1], block, *known[axis + 1 :]]))
    merged = emit_reshape(emit, wide, [*known[:axis], blocks * block, *known[axis + 1 :]])
    return merged if blocks * block == shape[axis] else emit_slice(emit, merged, axis, 0, shape[axis])


def _lower_quantize(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, scale = node.input[:2]
    zero = node.input[2] if len(node.input) > 2 else ""
    operands = [name for name in (data, scale, zero) if name]
    if any(emit.shape(name) is None for name in operands):
        return "the shapes of its operands are not known"
    shape = emit.shape(data)
    assert shape is not None
    kind = emit.element_type_of(zero) if zero else integer_attribute(node, "output_dtype", 0) or TensorProto.UINT8
    dtype: np.dtype[Any] = np.dtype(TENSOR_DTYPES.get(kind, "float32"))
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} quantises to {dtype_name(kind)} at run time, which is not supported: "
            "integers of up to 16 bits are"
        )
    if emit.element_type_of(data) not in (TensorProto.FLOAT, emit.element_type):
        data = emit("Cast", data, to=emit.element_type)  # int32
    scaled = emit("Div", data, emit_parameter(node, emit, scale, shape))
    zero = _narrowest_parameter(node, emit, zero, shape)
    emit.result("Cast", emit_saturated(emit, scaled, zero, dtype), to=kind)
    return None


def _narrowest_parameter(node: NodeProto, emit: NodeEmitter, zero: str, shape: _Shape) -> str:
    """A zero point that broadcasts, or its own name where it is one constant number; empty where it is nothing."""
    value = emit.constant_value(zero) if zero else None
    if not zero or (value is not None and not value.any()):
        return ""
    return zero if value is not None and value.size == 1 else emit_parameter(node, emit, zero, shape)


def _lower_dequantize(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, scale = node.input[:2]
    zero = node.input[2] if len(node.input) > 2 else ""
    if any(emit.shape(name) is None for name in (data, scale, zero) if name):
        return "the shapes of its operands are not known"
    shape = emit.shape(data)
    assert shape is not None
    kind = integer_attribute(node, "output_dtype", 0) or emit.element_type
    if emit.element_type != TensorProto.FLOAT or kind != TensorProto.FLOAT:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} dequantises to {dtype_name(kind)}, which is not supported: float32 is"
        )
    values = emit("Cast", data, to=emit.element_type)
    zero = _narrowest_parameter(node, emit, zero, shape)
    if zero and emit.element_type_of(data) != TensorProto.INT32:
        wide = emit_parameter(node, emit, zero, shape) if zero == node.input[2] else zero
        values = emit("Sub", values, emit("Cast", wide, to=emit.element_type))
    emit.result("Mul", values, emit_parameter(node, emit, scale, shape))
    return None


def _lower_dynamic_quantize(node: NodeProto, emit: NodeEmitter) -> str | None:
    data = node.input[0]
    zero, top = emit.scalar(0.0), emit.scalar(255.0)
    smallest, largest = (emit(name, data, keepdims=0) for name in ("ReduceMin", "ReduceMax"))
    smallest, largest = emit("Min", smallest, zero), emit("Max", largest, zero)
    span = emit("Div", emit("Sub", largest, smallest), top)
    scale = emit("Where", emit("Equal", largest, smallest), emit.scalar(1.0), span)
    point = emit_round(emit, emit.clip(emit("Neg", emit("Div", smallest, scale)), 0.0, 255.0))
    rounded = emit_round(emit, emit("Div", data, scale))
    emit.result("Cast", emit.clip(emit("Add", rounded, point), 0.0, 255.0), to=int(TensorProto.UINT8))
    emit.result("Identity", scale, index=1)
    emit.result("Cast", point, index=2, to=int(TensorProto.UINT8))
    return None


QUANTISATION_LOWERINGS: Mapping[str, Lowering] = {
    "DequantizeLinear": _lower_dequantize,
    "DynamicQuantizeLinear": _lower_dynamic_quantize,
    "QuantizeLinear": _lower_quantize,
}
"""By operator of the standard domain."""
