"""Convolutions and matrix products of 8-bit integers, requantised as ONNX Runtime does.

The sums are exact (:mod:`bnn_compiler.frontend.integer_products`), then

    y = saturate(round(float32(sum + bias) * ((s_x * s_w) / s_y)) + z_y)

where the scale is rounded to float32 after each operation, the product is clipped to the bounds of the type less z_y,
and ties round to even. ``MatMulInteger`` and ``ConvInteger`` give the sums as int32. ``QGemm`` (com.microsoft) is a
matrix product with a bias, transposes and alpha as a further factor of the scale; without s_y it gives float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from bnn_compiler.errors import ModelError

from .integer_products import (
    IntegerOperand,
    IntegerSum,
    emit_biased,
    emit_centred,
    emit_floats,
    emit_integers,
    emit_product,
)
from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import TENSOR_DTYPES, attribute_value, describe_node, integer_attribute
from .quantisation_operators import emit_saturated
from .versioned_operators import emit_reshape

_SHAPES = "the shapes of its operands are not known"


def _operand(node: NodeProto, index: int) -> str:
    return node.input[index] if index < len(node.input) else ""


def operands_known(node: NodeProto, emit: NodeEmitter) -> bool:
    """Whether shapes and types of all inputs are known."""
    return all(emit.shape(name) is not None and emit.element_type_of(name) for name in node.input if name)


def _requantise(emit: NodeEmitter, total: IntegerSum, scale: str, zero: str) -> None:
    kind = emit.element_type_of(zero)
    scaled = emit("Mul", emit_floats(emit, total), scale)
    emit.result("Cast", emit_saturated(emit, scaled, zero, np.dtype(TENSOR_DTYPES[kind])), to=kind)


def _column(emit: NodeEmitter, name: str, trailing: int) -> str:
    """A number, or one per channel in a shape that broadcasts over ``trailing`` axes."""
    shape = emit.shape(name) or ()
    return name if not shape else emit_reshape(emit, name, [] if shape == (1,) else [-1, *[1] * trailing])


def _one_or_list(node: NodeProto, emit: NodeEmitter, name: str, count: int) -> None:
    shape = emit.shape(name) if name else ()
    if shape not in ((), (1,), (count,)):
        raise ModelError(
            f"{describe_node(node)} has {name!r} of shape {list(shape or ())}; one or {count} are expected"
        )


def _conv(node: NodeProto, emit: NodeEmitter, names: tuple[str, str, str, str]) -> IntegerSum:
    """The sums of a convolution of data, its zero point, weight, its zero point."""
    data, zero, weight, weight_zero = names
    shape, kernel = emit.shape(data) or (), emit.shape(weight) or ()
    group = integer_attribute(node, "group", 1)
    if len(shape) < 3 or len(kernel) != len(shape) or kernel[1] * group != shape[1]:
        raise ModelError(f"{describe_node(node)} has data of shape {list(shape)} but a weight of shape {list(kernel)}")
    _one_or_list(node, emit, weight_zero, kernel[0])
    _one_or_list(node, emit, zero, 1)
    per_channel = weight_zero and (emit.shape(weight_zero) or ()) not in ((), (1,))
    first = emit_centred(emit, data, zero)
    second = emit_centred(emit, weight, weight_zero, (-1, *[1] * (len(kernel) - 1)) if per_channel else ())
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    taps = int(np.prod(kernel[2:], dtype=np.int64))
    return emit_product(node, emit, "Conv", (first, second), (1, 1), (kernel[1], taps), **attributes)


def _matmul(
    node: NodeProto, emit: NodeEmitter, names: tuple[str, str, str, str], shapes: tuple[tuple[int, ...], ...]
) -> IntegerSum:
    """The sums of a matrix product of a, its zero point (of one number or per row), b, its zero point (per column)."""
    left, zero, right, right_zero = names
    a, b = shapes
    if not a or not b or a[-1] != b[max(len(b) - 2, 0)]:
        raise ModelError(f"{describe_node(node)} has operands of shapes {list(a)} and {list(b)}")
    zero_shape, right_shape = (emit.shape(name) or () if name else () for name in (zero, right_zero))
    rows = zero_shape if len(zero_shape) != 1 else (-1, 1) if zero_shape != (1,) else ()
    first = emit_centred(emit, left, zero, rows)
    second = emit_centred(emit, right, right_zero, right_shape if right_shape != (1,) else ())
    axes = len(a) - 1, max(len(b) - 2, 0)
    return emit_product(node, emit, "MatMul", (first, second), axes, (a[-1], 1))


def _lower_qlinear_conv(node: NodeProto, emit: NodeEmitter) -> str | None:
    if not operands_known(node, emit):
        return _SHAPES
    data, data_scale, data_zero, weight, weight_scale, weight_zero, scale, zero = node.input[:8]
    trailing = len(emit.shape(data) or ()) - 2
    total = _conv(node, emit, (data, data_zero, weight, weight_zero))
    total = emit_biased(emit, total, _operand(node, 8), lambda name: emit_reshape(emit, name, [-1, *[1] * trailing]))
    _one_or_list(node, emit, weight_scale, (emit.shape(weight) or (1,))[0])
    factor = emit("Mul", _column(emit, data_scale, 0), _column(emit, weight_scale, trailing))
    _requantise(emit, total, emit("Div", factor, _column(emit, scale, 0)), zero)
    return None


def _lower_conv_integer(node: NodeProto, emit: NodeEmitter) -> str | None:
    if not operands_known(node, emit):
        return _SHAPES
    total = _conv(node, emit, (node.input[0], _operand(node, 2), node.input[1], _operand(node, 3)))
    emit.result("Cast", emit_integers(emit, total), to=int(TensorProto.INT32))
    return None


def _lower_matmul_integer(node: NodeProto, emit: NodeEmitter) -> str | None:
    if not operands_known(node, emit):
        return _SHAPES
    left, right = node.input[:2]
    shapes = emit.shape(left) or (), emit.shape(right) or ()
    total = _matmul(node, emit, (left, _operand(node, 2), right, _operand(node, 3)), shapes)
    emit.result("Cast", emit_integers(emit, total), to=int(TensorProto.INT32))
    return None


def _lower_qlinear_matmul(node: NodeProto, emit: NodeEmitter) -> str | None:
    if not operands_known(node, emit):
        return _SHAPES
    left, left_scale, left_zero, right, right_scale, right_zero, scale, zero = node.input
    shapes = emit.shape(left) or (), emit.shape(right) or ()
    total = _matmul(node, emit, (left, left_zero, right, right_zero), shapes)
    columns = right_scale if emit.shape(right_scale) != (1,) else _column(emit, right_scale, 0)
    factor = emit("Mul", _column(emit, left_scale, 1), columns)
    _requantise(emit, total, emit("Div", factor, _column(emit, scale, 0)), zero)
    return None


def _lower_qgemm(node: NodeProto, emit: NodeEmitter) -> str | None:
    if not operands_known(node, emit):
        return _SHAPES
    left, left_scale, _, right, right_scale, right_zero = node.input[:6]
    shapes: list[tuple[int, ...]] = []
    turned: list[bool] = []
    for name, attribute in ((left, "transA"), (right, "transB")):
        shape = emit.shape(name) or ()
        if len(shape) != 2:
            raise ModelError(f"{describe_node(node)} has the operand {name!r} of rank {len(shape)}; it must be 2")
        turn = bool(integer_attribute(node, attribute, 0))
        shapes.append(shape[::-1] if turn else shape)
        turned.append(turn)
    _one_or_list(node, emit, right_zero, shapes[1][1])
    _one_or_list(node, emit, right_scale, shapes[1][1])
    total = _gemm_sums(node, emit, turned, shapes)
    total = emit_biased(emit, total, _operand(node, 6), lambda name: name)
    alpha = attribute_value(node, "alpha", 1.0)
    assert isinstance(alpha, float)
    columns = right_scale if emit.shape(right_scale) != (1,) else _column(emit, right_scale, 0)
    factor = emit("Mul", emit("Mul", emit.scalar(alpha), _column(emit, left_scale, 0)), columns)
    scale, zero = _operand(node, 7), _operand(node, 8)
    if not scale:
        emit.result("Mul", emit_floats(emit, total), factor)
        return None
    _requantise(emit, total, emit("Div", factor, _column(emit, scale, 0)), zero)
    return None


def _gemm_sums(node: NodeProto, emit: NodeEmitter, turned: list[bool], shapes: list[tuple[int, ...]]) -> IntegerSum:
    """The sums of a ``QGemm``: its operands are turned after they are centred, so that constants are seen as such."""
    left, left_zero, right, right_zero = (node.input[index] for index in (0, 2, 3, 5))
    first = emit_centred(emit, left, left_zero)
    per_column = (emit.shape(right_zero) or ()) not in ((), (1,))
    second = emit_centred(emit, right, right_zero, ((-1, 1) if turned[1] else (-1,)) if per_column else ())
    operands: list[IntegerOperand] = []
    for operand, turn in zip((first, second), turned, strict=True):
        if not turn:
            operands.append(operand)
            continue
        value = None if operand.value is None else operand.value.T
        operands.append(IntegerOperand(emit("Transpose", operand.name, perm=[1, 0]), value, operand.largest))
    return emit_product(node, emit, "MatMul", (operands[0], operands[1]), (1, 0), (shapes[0][1], 1))


PRODUCT_LOWERINGS: Mapping[str, Lowering] = {
    "ConvInteger": _lower_conv_integer,
    "MatMulInteger": _lower_matmul_integer,
    "QLinearConv": _lower_qlinear_conv,
    "QLinearMatMul": _lower_qlinear_matmul,
}
"""By operator of the standard domain."""

MICROSOFT_PRODUCT_LOWERINGS: Mapping[str, Lowering] = {"QGemm": _lower_qgemm}
"""By operator of the domain com.microsoft."""
