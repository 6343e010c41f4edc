"""``Resize`` and ``Upsample`` with constant scales or sizes as gathers and weighted sums, with ONNX Runtime's numbers.

1. Nearest: each axis is sliced, repeated or taken from by constant indices, operators that recognition knows as
   selections of elements.
2. Linear: one kernel (``schedules/resize_linear.py``).
3. Cubic and antialiased: one kernel per axis (``schedules/resize_axis.py``), from the last axis to the first.
4. ``tf_crop_and_resize``: results beyond the data are replaced by the extrapolation value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import relax

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.schedules import resize_axis, resize_linear
from bnn_compiler.schedules.resize_axis import AxisPlan, axis_kernel
from bnn_compiler.schedules.resize_linear import LinearPlan, linear_kernel

from .relax_constants import constant, constant_array
from .resize_coordinates import (
    Floats,
    Integers,
    ResizedAxis,
    beyond_axis,
    nearest_elements,
    original_coordinates,
)
from .resize_form import ResizeForm, read_form
from .resize_taps import Taps, antialias_taps, cubic_taps, linear_taps

_Mask = npt.NDArray[np.bool_]


def convert_resize(builder: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """The result of a ``Resize`` node."""
    return _convert("Resize", builder, inputs, attributes)


def convert_upsample(builder: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """The result of an ``Upsample`` node."""
    return _convert("Upsample", builder, inputs, attributes)


def _convert(operator: str, builder: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    node = f"{operator} node {attributes['tvm_custom']['name']!r}"
    data, given = inputs[0], [constant_array(value) for value in list(inputs)[1:]]
    if any(value is not None and array is None for value, array in zip(list(inputs)[1:], given, strict=True)):
        raise UnsupportedOperatorError(f"{node} computes its scales, sizes or roi at run time: make them constants")
    if isinstance(data, relax.ShapeExpr):
        raise UnsupportedOperatorError(f"{node} resizes a shape, which is int64: cast to float32 before, and back")
    shape = [int(extent) for extent in data.ty.shape.values]
    opset = int(attributes["tvm_custom"]["opset"])
    form = read_form(node, operator, opset, shape, str(data.ty.dtype), given, attributes)
    if form.is_copy:
        return data
    if 0 in form.shape:
        return constant(np.zeros(form.shape, str(data.ty.dtype)))
    return _resized(builder, data, form)


def _resized(builder: Any, data: Any, form: ResizeForm) -> Any:
    if form.mode == "nearest":
        # With one axis alone, ONNX Runtime moves the coordinates even where the scale is 1.
        moved = [i for i, axis in enumerate(form.axes) if axis.scale != 1 or len(form.axes) == 1]
    else:
        moved = list(form.interpolated)
    coordinates = {i: _coordinates(form.axes[i], form) for i in moved}
    # Without antialiasing, too, ONNX Runtime takes its filter where channels are last.
    filters = form.antialias or (form.mode == "cubic" and form.channels_last)
    if form.mode == "nearest":
        result = data
        for i, values in coordinates.items():
            elements = nearest_elements(form.axes[i], values, form.nearest_mode)
            result = builder.emit(_taken(result, form.axes[i].length, elements, i))
    elif form.mode == "linear" and not filters:
        result = _linear(builder, data, form, coordinates)
    else:
        result = data
        for i, values in reversed(coordinates.items()):
            if filters and form.axes[i].length == form.axes[i].resized:
                continue  # whatever the coordinates say
            result = _axis_sum(builder, result, form, i, values, filters)
    if not form.region:
        return result
    return _extrapolated(builder, result, form, coordinates, filters and form.channels_last)


def _coordinates(axis: ResizedAxis, form: ResizeForm) -> Floats:
    """ONNX Runtime leaves axes of scale 1 alone in interpolating modes."""
    if axis.scale == 1 and form.mode != "nearest":
        return np.arange(axis.resized, dtype=np.float32)
    return original_coordinates(axis, form.coordinate_mode)


def _taken(data: Any, length: int, elements: Integers, axis: int) -> Any:
    """``elements`` of an axis, by the operator that runs fastest."""
    times, rest = divmod(len(elements), length)
    if times and not rest and np.array_equal(elements, np.arange(len(elements)) // times):
        return relax.op.repeat(data, times, axis)
    return relax.op.take(data, constant(elements), axis, mode="clip")


def _linear(builder: Any, data: Any, form: ResizeForm, coordinates: dict[int, Floats]) -> Any:
    dtype, shape = str(data.ty.dtype), tuple(axis.length for axis in form.axes)
    fixed = form.channels_last and dtype in ("int8", "uint8")
    axes = form.interpolated
    plan = LinearPlan(shape, axes[0], tuple(form.axes[i].resized for i in axes), dtype, "fixed" if fixed else "float")
    tables = []
    for i in axes:
        taps = linear_taps(form.axes[i], coordinates[i])
        weights = _fixed_linear_weights(form.axes[i], coordinates[i], taps) if fixed else taps.weights
        tables += [_table(taps.elements.T.astype(np.int32)), _table(weights.T)]
    kernel = builder.add_func(linear_kernel(plan), "resize_linear")
    return relax.call_tir(kernel, [data, *tables], out_ty=relax.TensorType(form.shape, dtype))


def _fixed_linear_weights(axis: ResizedAxis, coordinates: Floats, taps: Taps) -> npt.NDArray[np.int32]:
    """The distances of multiples of 2^-10, each cut from its coordinate."""
    one = 1 << resize_linear.FIXED_BITS
    clipped = np.maximum(np.float32(0), np.minimum(coordinates, np.float32(axis.length - 1)))
    position = (clipped * np.float32(one)).astype(np.int64)
    distances = np.abs(position[:, None] - taps.elements * one)
    alone = taps.elements[:, :1] == taps.elements[:, 1:]
    return np.where(alone, one // 2, distances[:, ::-1]).astype(np.int32)


def _axis_sum(builder: Any, data: Any, form: ResizeForm, i: int, coordinates: Floats, filters: bool) -> Any:
    axis, dtype = form.axes[i], str(data.ty.dtype)
    coefficient = form.cubic_coefficient
    if filters:
        cubic = coefficient if form.mode == "cubic" else None
        taps = antialias_taps(axis, coordinates, cubic, form.exclude_outside)
    else:
        taps = cubic_taps(axis, coordinates, coefficient, form.exclude_outside)
    weights: npt.NDArray[Any] = taps.weights
    # ONNX Runtime divides the weights of columns beforehand, and the products of rows one by one.
    divides = not filters and form.exclude_outside and i != form.interpolated[-1]
    if not divides:
        weights = weights / taps.divisors[:, None]
    arithmetic: resize_axis.Arithmetic = "float"
    if dtype in ("int8", "uint8"):
        arithmetic, weights = "fixed", _fixed_filter_weights(weights)
    elif dtype == "int32":
        arithmetic = "rounded"
    shape = tuple(int(extent) for extent in data.ty.shape.values)
    plan = AxisPlan(shape, i, axis.resized, weights.shape[1], dtype, arithmetic, divides)
    tables = [_table(taps.elements.astype(np.int32)), _table(weights), _table(taps.counts.astype(np.int32))]
    if divides:
        tables.append(_table(taps.divisors))
    kernel = builder.add_func(axis_kernel(plan), "resize_axis")
    resized = (*shape[:i], axis.resized, *shape[i + 1 :])
    return builder.emit(relax.call_tir(kernel, [data, *tables], out_ty=relax.TensorType(resized, dtype)))


def _fixed_filter_weights(weights: Floats) -> npt.NDArray[np.int32]:
    """Multiples of 2^-22, halves away from zero."""
    scaled = (weights * np.float32(1 << resize_axis.FIXED_BITS)).astype(np.float64)
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _extrapolated(builder: Any, result: Any, form: ResizeForm, coordinates: dict[int, Floats], misplaced: bool) -> Any:
    """``result`` with the extrapolation value where a coordinate lies beyond its axis."""
    rank, mask = len(form.axes), np.zeros((1,) * len(form.axes), np.bool_)
    for i, values in coordinates.items():
        along = [1] * rank
        along[i] = -1
        mask = mask | beyond_axis(form.axes[i], values).reshape(along)
    if not mask.any():
        return result
    if misplaced:
        # ONNX Runtime's filters write the value as if channels were first in memory.
        _, rows, columns, channels = form.shape
        plane = np.broadcast_to(mask.reshape(rows, columns), (channels, rows, columns))
        mask = plane.reshape(1, rows, columns, channels)
    emitted = result if isinstance(result, relax.Var) else builder.emit(result)
    dtype = str(emitted.ty.dtype)
    fill = np.asarray(form.fill, np.float32).astype(dtype)
    return relax.op.where(constant(np.ascontiguousarray(mask)), constant(fill), emitted)


def _table(array: npt.NDArray[Any]) -> Any:
    return constant(np.ascontiguousarray(array))
