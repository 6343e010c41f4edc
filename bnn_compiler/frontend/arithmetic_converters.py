"""Element-wise operators whose forms TVM's converters do not all know, or compute otherwise than ONNX says.

``BitShift``
    By any amount: one that is negative, or not below the number of bits, leaves 0, or the sign where a negative number
    is shifted right. The processor's instructions take it modulo that number.
``BitCast``
    The same bits as another type of the same size.
``Cosh``
    (e^|x| + e^-|x|) / 2, which does not overflow before the result does: e^|x| / 2 is the product of e^(|x|/2) / 2 and
    e^(|x|/2). LLVM has no such function.
``CumProd``
    A scan, backwards between two flips.
``IsInf``
    With either sign left out.
``Mod``
    Of floats with the sign of the divisor: the remainder with the sign of the dividend, moved by the divisor where the
    signs differ. x - floor(x / y) * y is NaN for an infinite y.
``Sinh``
    As ``Cosh`` with the difference, which cancels where |x| < 1: the series of powers there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax, te, tirx

from .relax_constants import constant, constant_array

_Inputs = Sequence[Any]


def _convert_bit_shift(_: Any, inputs: _Inputs, attributes: dict[str, Any]) -> Any:
    data, amount = inputs[0], inputs[1]
    dtype = np.dtype(str(data.ty.dtype))
    zero = constant(np.zeros((), dtype))
    within = relax.op.less(amount, constant(np.asarray(dtype.itemsize * 8, dtype)))
    if dtype.kind == "i":
        within = relax.op.logical_and(within, relax.op.greater_equal(amount, zero))
    safe = relax.op.where(within, amount, zero)
    if attributes["direction"] == b"LEFT":
        return relax.op.where(within, relax.op.left_shift(data, safe), zero)
    rest = zero
    if dtype.kind == "i":
        rest = relax.op.where(relax.op.less(data, zero), constant(np.asarray(-1, dtype)), zero)
    return relax.op.where(within, relax.op.right_shift(data, safe), rest)


def _convert_bit_cast(builder: Any, inputs: _Inputs, attributes: dict[str, Any]) -> Any:
    data = inputs[0]
    source, target = np.dtype(str(data.ty.dtype)), onnx.helper.tensor_dtype_to_np_dtype(attributes["to"])
    if source.itemsize != target.itemsize:
        raise ValueError(f"a cast of the bits of {source} to {target}, which has another size")
    if source == target:
        return data
    if "b" in (source.kind, target.kind):  # bytes of 0 and 1
        return relax.op.astype(data, target.name)

    def reinterpret(tensor: Any) -> Any:
        return te.compute(tensor.shape, lambda *index: tirx.reinterpret(target.name, tensor(*index)), name="bit_cast")

    return builder.emit_te(reinterpret, data)


def _convert_cosh(_: Any, inputs: _Inputs, __: dict[str, Any]) -> Any:
    data = inputs[0]
    half = constant(np.asarray(0.5, str(data.ty.dtype)))
    root = relax.op.exp(relax.op.multiply(relax.op.abs(data), half))
    large = relax.op.multiply(relax.op.multiply(root, half), root)
    return relax.op.add(large, relax.op.divide(half, relax.op.multiply(root, root)))


def _convert_sinh(_: Any, inputs: _Inputs, __: dict[str, Any]) -> Any:
    data = inputs[0]
    dtype = np.dtype(str(data.ty.dtype))
    zero, half, one = (constant(np.asarray(value, dtype)) for value in (0, 0.5, 1))
    magnitude = relax.op.abs(data)
    root = relax.op.exp(relax.op.multiply(magnitude, half))
    large = relax.op.multiply(relax.op.multiply(root, half), root)
    far = relax.op.subtract(large, relax.op.divide(half, relax.op.multiply(root, root)))
    far = relax.op.where(relax.op.less(data, zero), relax.op.negative(far), far)
    square = relax.op.multiply(data, data)
    series = one
    for power in range(_SINH_TERMS, 0, -1):  # Horner's scheme
        factor = relax.op.multiply(square, constant(np.asarray(1 / (2 * power * (2 * power + 1)), dtype)))
        series = relax.op.add(relax.op.multiply(factor, series), one)
    return relax.op.where(relax.op.less(magnitude, one), relax.op.multiply(data, series), far)


_SINH_TERMS = 8
"""The next one is below 2^-53 of the first where |x| < 1."""


def _convert_cum_prod(_: Any, inputs: _Inputs, attributes: dict[str, Any]) -> Any:
    data, given = inputs[0], constant_array(inputs[1])
    if given is None or given.size != 1:
        raise ValueError("an axis that is not constant")
    axis = int(given.reshape(-1)[0]) % len(data.ty.shape.values)
    reverse, exclusive = bool(attributes.get("reverse", 0)), bool(attributes.get("exclusive", 0))
    data = relax.op.flip(data, axis) if reverse else data
    product = relax.op.cumprod(data, axis, exclusive=exclusive)
    return relax.op.flip(product, axis) if reverse else product


def _convert_is_inf(_: Any, inputs: _Inputs, attributes: dict[str, Any]) -> Any:
    data = inputs[0]
    negative, positive = (bool(attributes.get(f"detect_{sign}", 1)) for sign in ("negative", "positive"))
    if negative and positive:
        return None
    infinity = np.asarray(np.inf if positive else -np.inf, str(data.ty.dtype))
    if not (negative or positive):
        return constant(np.zeros([int(extent) for extent in data.ty.shape.values], bool))
    return relax.op.equal(data, constant(infinity))


def _convert_mod(_: Any, inputs: _Inputs, attributes: dict[str, Any]) -> Any:
    data, divisor = inputs[0], inputs[1]
    dtype = np.dtype(str(data.ty.dtype))
    if dtype.kind != "f" or attributes.get("fmod", 0):
        return None
    zero = constant(np.zeros((), dtype))
    rest = relax.op.mod(data, divisor)
    other = relax.op.logical_xor(relax.op.less(rest, zero), relax.op.less(divisor, zero))
    moves = relax.op.logical_and(other, relax.op.not_equal(rest, zero))
    return relax.op.where(moves, relax.op.add(rest, divisor), rest)


ARITHMETIC_CONVERTERS = {
    "BitCast": _convert_bit_cast,
    "BitShift": _convert_bit_shift,
    "Cosh": _convert_cosh,
    "CumProd": _convert_cum_prod,
    "IsInf": _convert_is_inf,
    "Mod": _convert_mod,
    "Sinh": _convert_sinh,
}
"""Each gives ``None`` where the form is left to TVM's converter."""
