"""Definitions of operators in place of TVM's, which give other results for NaN, infinities and zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import te, tirx

from .float_nan import is_number
from .float_rounding import fence


def sign(x: Any) -> Any:
    """−1, 0 or 1; NaN of NaN, and 0 of −0."""

    def value(*indices: Any) -> Any:
        element = x(*indices)
        one, zero = tirx.const(1, x.dtype), tirx.const(0, x.dtype)
        # What is neither above nor below 0 is ±0 or NaN; of integers, 0.
        rest = tirx.abs(element) if str(x.dtype).startswith("float") else zero
        negative = rest if str(x.dtype).startswith("uint") else tirx.Select(element < zero, -one, rest)
        return tirx.Select(element > zero, one, negative)

    return te.compute(x.shape, value)


def prelu(x: Any, slope: Any, axis: int) -> Any:
    """x, or x · slope where x < 0, with the slope [1] or [C] of ``axis``; of 0 it is 0, whatever the slope."""

    def value(*indices: Any) -> Any:
        element = x(*indices)
        factor = slope(0) if int(slope.shape[0]) == 1 else slope(indices[axis])
        return tirx.Select(element < tirx.const(0, x.dtype), element * factor, element)

    return te.compute(x.shape, value)


def zero_over(x: Any) -> Any:
    """0 / x, which is NaN for 0 and NaN; TVM folds it to 0."""
    return te.compute(x.shape, lambda *indices: fence(tirx.const(0, x.dtype)) / x(*indices))


def plus_zero(x: Any) -> Any:
    """x + 0, which is 0 for -0; TVM folds it to x."""
    return te.compute(x.shape, lambda *indices: x(*indices) + fence(tirx.const(0, x.dtype)))


def extreme(x: Any, axes: Sequence[int], keepdims: bool, larger: bool) -> Any:
    """The largest or smallest float along ``axes``; NaN where the first element is, as ``float_reduce`` says."""

    def combine(found: Any, other: Any) -> Any:
        return tirx.Select(other > found if larger else other < found, other, found)

    reducer = te.comm_reducer(
        combine, lambda dtype: tirx.const(-math.inf if larger else math.inf, dtype), name="extreme"
    )
    reduced = {axis: te.reduce_axis((0, x.shape[axis]), name=f"k{axis}") for axis in axes}
    kept = [axis for axis in range(len(x.shape)) if axis not in reduced]

    def place(indices: Sequence[Any], at: Mapping[int, Any]) -> list[Any]:
        """The position in x of an element of the result."""
        outer = dict(zip(kept, [indices[axis] for axis in kept] if keepdims else indices, strict=True))
        return [at[axis] if axis in at else outer[axis] for axis in range(len(x.shape))]

    def passing_over_nan(*indices: Any) -> Any:
        return reducer(x(*place(indices, reduced)), axis=list(reduced.values()))

    def value(*indices: Any) -> Any:
        first = x(*place(indices, dict.fromkeys(reduced, tirx.const(0, "int64"))))
        return tirx.Select(is_number(first), best(*indices), first)

    shape = [1 if axis in reduced else x.shape[axis] for axis in (range(len(x.shape)) if keepdims else kept)]
    best = te.compute(shape, passing_over_nan, name="extreme")
    return te.compute(shape, value, name="extreme_or_first")


def index_of_extreme(x: Any, axis: int, keepdims: bool, larger: bool, last: bool) -> Any:
    """The index (int64) of the largest or smallest element along ``axis``; of equal ones the first or the last.

    The search starts at the first element and goes on to what compares as better, as in ONNX Runtime: a NaN is found
    where it comes first, and passed over elsewhere.
    """

    def better(found: Any, other: Any) -> Any:
        if larger:
            return other >= found if last else other > found
        return other <= found if last else other < found

    def combine(found: Any, other: Any) -> Any:
        take = tirx.Or(found[0] < tirx.const(0, "int64"), better(found[1], other[1]))
        return tuple(tirx.Select(take, b, a) for a, b in zip(found, other, strict=True))

    def start(index_dtype: Any, dtype: Any) -> Any:
        return tirx.const(-1, index_dtype), tirx.const(0, dtype)

    search = te.comm_reducer(combine, start, name="index_of_extreme")
    extent = x.shape[axis]
    position = te.reduce_axis((0, extent), name="position")
    shape = [size for i, size in enumerate(x.shape) if i != axis]
    result_shape = [*shape[:axis], 1, *shape[axis:]] if keepdims else shape

    def element(*indices: Any) -> Any:
        outer = [index for i, index in enumerate(indices) if i != axis] if keepdims else list(indices)
        place = [*outer[:axis], position, *outer[axis:]]
        return search((position.var.astype("int64"), x(*place)), axis=position)

    return te.compute(result_shape, element, name="index_of_extreme")[0]


def order_key(x: Any) -> Any:
    """Integers in the order of floats, as many bits wide: zeros of both signs are equal, NaN comes last."""
    bits = "int64" if str(x.dtype) == "float64" else "int32"
    highest = tirx.max_value(bits)

    def value(*indices: Any) -> Any:
        element = x(*indices)
        pattern = tirx.reinterpret(bits, element)
        # Of negative numbers, more bits are less: all but the sign are inverted.
        ordered = tirx.Select(pattern < tirx.const(0, bits), pattern ^ highest, pattern)
        unsigned_zero = tirx.Select(element.equal(tirx.const(0, x.dtype)), tirx.const(0, bits), ordered)
        return tirx.Select(is_number(element), unsigned_zero, highest)

    return te.compute(x.shape, value, name="order_key")
