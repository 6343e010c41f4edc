"""Conversions of operators on integers, which TVM's converters take for floats.

- ``ReduceMean``: the sum, divided towards zero, as in ONNX Runtime. TVM widens the mean to 64 bits.
- ``Pow`` of integers: the power of doubles, cut, as in ONNX Runtime. TVM has one of floats alone, and of one type.
- ``ReduceMax`` and ``ReduceMin`` of booleans: of 0 and 1. TVM has no largest boolean.
- ``Sign`` of unsigned integers: the smaller of the number and 1. TVM makes a constant -1 of their type.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from .relax_constants import constant, constant_array


def convert_integer_mean(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ReduceMean`` with constant axes; ``None`` for floats."""
    data = inputs[0]
    if np.dtype(str(data.ty.dtype)).kind not in "iu":
        return None
    given = constant_array(inputs[1])
    if inputs[1] is not None and given is None:
        return None
    shape = [int(extent) for extent in data.ty.shape.values]
    axes = list(attributes.get("axes", ())) if given is None else given.reshape(-1).tolist()
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return data
        axes = list(range(len(shape)))
    axes = sorted({int(axis) % len(shape) for axis in axes})
    count = math.prod(shape[axis] for axis in axes)
    if not axes or count > np.iinfo(str(data.ty.dtype)).max:
        return None
    total = relax.op.sum(data, axes, bool(attributes.get("keepdims", 1)))
    return relax.op.divide(total, constant(np.asarray(count, str(data.ty.dtype))))


def convert_boolean_maximum(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ReduceMax``; ``None`` for numbers."""
    return _reduce_booleans(relax.op.max, inputs, attributes)


def convert_boolean_minimum(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ReduceMin``; ``None`` for numbers."""
    return _reduce_booleans(relax.op.min, inputs, attributes)


def _reduce_booleans(reduce: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    data = inputs[0]
    given = constant_array(inputs[1])
    if str(data.ty.dtype) != "bool" or (inputs[1] is not None and given is None):
        return None
    axes = list(attributes.get("axes", ())) if given is None else given.reshape(-1).tolist()
    if not axes and attributes.get("noop_with_empty_axes", 0):
        return data
    numbers = relax.op.astype(data, "uint8")
    reduced = reduce(numbers, [int(axis) for axis in axes] or None, bool(attributes.get("keepdims", 1)))
    return relax.op.astype(reduced, "bool")


def convert_unsigned_sign(_: Any, inputs: Any, __: dict[str, Any]) -> Any:
    """``Sign``; ``None`` for floats and signed integers."""
    dtype = np.dtype(str(inputs[0].ty.dtype))
    return relax.op.minimum(inputs[0], constant(np.asarray(1, dtype))) if dtype.kind == "u" else None


def convert_mixed_power(_: Any, inputs: Any, __: dict[str, Any]) -> Any:
    """``Pow`` with an integer in it; ``None`` for two floats of one type."""
    base, exponent = inputs[0], inputs[1]
    dtype, other = (np.dtype(str(operand.ty.dtype)) for operand in (base, exponent))
    if dtype.kind == "f":
        return None if dtype == other else relax.op.power(base, relax.op.astype(exponent, dtype.name))
    doubles = (relax.op.astype(operand, "float64") for operand in (base, exponent))
    return relax.op.astype(relax.op.power(*doubles), dtype.name)
