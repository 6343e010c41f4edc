"""Quantised element-wise operators and pools of the domain com.microsoft, as ONNX Runtime's quantiser writes them.

``QLinearAdd``
    saturate(round((F + a * (s_a / s_c)) + b * (s_b / s_c))), F = z_c - ((s_a / s_c) * z_a + (s_b / s_c) * z_b): float32
    after each operation; an operand that is one number for all of the last axis is added to F first.
``QLinearMul``
    saturate(round((a - z_a) * (b - z_b) * ((s_a * s_b) / s_c) + z_c)).
``QLinearConcat``, ``QLinearWhere``
    the elements, dequantised and quantised with the result's parameters.
``QLinearLeakyRelu``, ``QLinearSigmoid``
    a table of all 256 results, made by ONNX Runtime at compile time.
``QLinearGlobalAveragePool``
    the sum of x - z_x is an exact integer, requantised with s_x / (s_y * number of elements).

As everywhere, round is to even and saturate clips to the bounds of the type.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .constant_folding import evaluate_node
from .integer_products import EXACT, emit_centred
from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import TENSOR_DTYPES, describe_node, integer_attribute
from .quantisation_operators import emit_round, emit_saturated
from .quantised_products import MICROSOFT_PRODUCT_LOWERINGS, operands_known

_DOMAIN = "com.microsoft"
_NOT_KNOWN = "the shapes and types of its operands are not known"
_FLOAT = int(TensorProto.FLOAT)


def _require(node: NodeProto, *counts: int) -> None:
    if len(node.input) not in counts or not all(node.input[:2]) or len(node.output) != 1:
        raise ModelError(f"{describe_node(node)} has {len(node.input)} inputs; {counts[0]} are expected")


def _number(node: NodeProto, emit: NodeEmitter, name: str) -> str:
    """A scale or zero point as a tensor of rank 0."""
    shape = emit.shape(name)
    if shape not in ((), (1,)):
        raise UnsupportedOperatorError(
            f"{describe_node(node)} has the scale or zero point {name!r} of shape {list(shape or ())}; one number is "
            "supported"
        )
    return name if shape == () else emit("Reshape", name, emit.integers([]))


def _bounds(emit: NodeEmitter, data: str) -> tuple[int, float, float]:
    """The element type of codes, and its bounds."""
    kind = emit.element_type_of(data)
    limits = np.iinfo(TENSOR_DTYPES[kind])
    return kind, float(limits.min), float(limits.max)


def _float(node: NodeProto, emit: NodeEmitter, name: str) -> str:
    """A zero point as a float; 0 where it is absent."""
    return emit("Cast", _number(node, emit, name), to=_FLOAT) if name else emit.scalar(0.0)


def _codes_known(node: NodeProto, emit: NodeEmitter, *names: str) -> bool:
    if not operands_known(node, emit):
        return False
    for name in names:
        if emit.element_type_of(name) not in (TensorProto.INT8, TensorProto.UINT8):
            raise UnsupportedOperatorError(f"{describe_node(node)} has {name!r} of another type than int8 and uint8")
    return True


def _lower_add(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require(node, 8, 7)
    left, left_scale, left_zero, right, right_scale, right_zero, scale = node.input[:7]
    if not _codes_known(node, emit, left, right):
        return _NOT_KNOWN
    kind, low, high = _bounds(emit, left)
    divisor = _number(node, emit, scale)
    ratios = [emit("Div", _number(node, emit, name), divisor) for name in (left_scale, right_scale)]
    zeros = [_float(node, emit, name) for name in (left_zero, right_zero)]
    moved = emit("Add", *(emit("Mul", ratio, zero) for ratio, zero in zip(ratios, zeros, strict=True)))
    fixed = emit("Sub", _float(node, emit, node.input[7] if len(node.input) == 8 else ""), moved)
    terms = [
        emit("Mul", emit("Cast", data, to=_FLOAT), ratio) for data, ratio in zip((left, right), ratios, strict=True)
    ]
    if ((emit.shape(right) or ()) or (1,))[-1] == 1 and ((emit.shape(left) or ()) or (1,))[-1] != 1:
        terms = terms[::-1]
    total = emit("Add", emit("Add", fixed, terms[0]), terms[1])
    emit.result("Cast", _saturated(emit, total, low, high), to=kind)
    return None


def _saturated(emit: NodeEmitter, value: str, low: float, high: float) -> str:
    """Rounded to the integers of a type."""
    return emit_round(emit, emit.clip(value, low, high))


def _lower_mul(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require(node, 8, 7)
    left, left_scale, left_zero, right, right_scale, right_zero, scale = node.input[:7]
    if not _codes_known(node, emit, left, right):
        return _NOT_KNOWN
    kind, low, high = _bounds(emit, left)
    factors = [emit_centred(emit, data, zero).name for data, zero in ((left, left_zero), (right, right_zero))]
    both = emit("Mul", *(_number(node, emit, name) for name in (left_scale, right_scale)))
    ratio = emit("Div", both, _number(node, emit, scale))
    scaled = emit("Mul", emit("Mul", *factors), ratio)
    total = emit("Add", scaled, _float(node, emit, node.input[7] if len(node.input) == 8 else ""))
    emit.result("Cast", _saturated(emit, total, low, high), to=kind)
    return None


def _requantised(node: NodeProto, emit: NodeEmitter, codes: tuple[str, str, str], to: tuple[str, str]) -> str:
    """Codes (data, scale, zero point) with another scale and zero point, as floats that hold integers."""
    data, scale, zero = codes
    value = emit("Mul", emit_centred(emit, data, zero).name, _number(node, emit, scale))
    scaled = emit("Div", value, _number(node, emit, to[0]))
    return emit_saturated(emit, scaled, to[1], np.dtype(TENSOR_DTYPES[emit.element_type_of(to[1])]))


def _lower_concat(node: NodeProto, emit: NodeEmitter) -> str | None:
    if len(node.input) < 5 or len(node.input) % 3 != 2:
        raise ModelError(f"{describe_node(node)} has {len(node.input)} inputs; 2 and 3 for each tensor are expected")
    scale, zero = node.input[:2]
    triples = [(node.input[i], node.input[i + 1], node.input[i + 2]) for i in range(2, len(node.input), 3)]
    if not _codes_known(node, emit, zero, *(data for data, _, _ in triples)):
        return _NOT_KNOWN
    parts = [_requantised(node, emit, codes, (scale, zero)) for codes in triples]
    joined = emit("Concat", *parts, axis=integer_attribute(node, "axis", 0))
    emit.result("Cast", joined, to=emit.element_type_of(zero))
    return None


def _lower_where(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require(node, 9)
    condition, left, left_scale, left_zero, right, right_scale, right_zero, scale, zero = node.input
    if not _codes_known(node, emit, left, right, zero):
        return _NOT_KNOWN
    sides = [(left, left_scale, left_zero), (right, right_scale, right_zero)]
    chosen = emit("Where", condition, *(_requantised(node, emit, codes, (scale, zero)) for codes in sides))
    emit.result("Cast", chosen, to=emit.element_type_of(zero))
    return None


def _lower_table(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require(node, 5, 4)
    data = node.input[0]
    if not _codes_known(node, emit, data):
        return _NOT_KNOWN
    values = {name: emit.constant_value(name) for name in node.input[1:] if name}
    if any(value is None for value in values.values()):
        return "its scales and zero points are not constants"
    limits = np.iinfo(TENSOR_DTYPES[emit.element_type_of(data)])
    codes = np.arange(limits.min, limits.max + 1).astype(TENSOR_DTYPES[emit.element_type_of(data)])
    tensors = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()}
    tensors[data] = numpy_helper.from_array(codes, data)
    imports = [onnx.helper.make_opsetid("", emit.opset), onnx.helper.make_opsetid(_DOMAIN, 1)]
    results = evaluate_node(onnx.ModelProto(ir_version=8, opset_import=imports), node, tensors)
    if results is None:
        raise UnsupportedOperatorError(f"{describe_node(node)} has a form that ONNX Runtime cannot run")
    position = emit("Cast", data, to=int(TensorProto.INT32))
    if limits.min:
        position = emit("Sub", position, emit.constant(np.asarray(limits.min), np.int32))
    emit.result("Gather", emit.constant(results[0], results[0].dtype), position, axis=0)
    return None


def _lower_global_average_pool(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require(node, 5)
    data, data_scale, data_zero, scale, zero = node.input
    if not _codes_known(node, emit, data):
        return _NOT_KNOWN
    shape = emit.shape(data) or ()
    last = bool(integer_attribute(node, "channels_last", 0))
    axes = list(range(1, len(shape) - 1)) if last else list(range(2, len(shape)))
    size = int(np.prod([shape[axis] for axis in axes], dtype=np.int64))
    centred = emit_centred(emit, data, data_zero)
    if len(shape) < 3 or size * centred.largest > EXACT:
        raise UnsupportedOperatorError(f"{describe_node(node)} averages {size} elements, or none: too many or too few")
    if emit.opset < 13:
        total = emit("ReduceSum", centred.name, axes=axes, keepdims=1)
    else:
        total = emit("ReduceSum", centred.name, emit.integers(axes), keepdims=1)
    whole = emit("Mul", _number(node, emit, scale), emit.scalar(float(size)))
    scaled = emit("Mul", total, emit("Div", _number(node, emit, data_scale), whole))
    kind = emit.element_type_of(zero)
    emit.result("Cast", emit_saturated(emit, scaled, zero, np.dtype(TENSOR_DTYPES[kind])), to=kind)
    return None


MICROSOFT_LOWERINGS: Mapping[str, Lowering] = {
    **MICROSOFT_PRODUCT_LOWERINGS,
    "QLinearAdd": _lower_add,
    "QLinearConcat": _lower_concat,
    "QLinearGlobalAveragePool": _lower_global_average_pool,
    "QLinearLeakyRelu": _lower_table,
    "QLinearMul": _lower_mul,
    "QLinearSigmoid": _lower_table,
    "QLinearWhere": _lower_where,
}
"""By operator of the domain com.microsoft."""
