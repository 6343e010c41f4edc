"""Conversions of single operators that are made here, and not by TVM's converters.

``Pad`` and ``Clip`` stay one Relax call each, which patterns can see; TVM's converters lower them to ``call_tir`` at
once. ``Gemm`` keeps a constant weight and bias plain constants. ``Split`` becomes slices, each of one tensor alone,
``Max`` and ``Min`` element-wise operators. ``Gather`` reads in bounds. ``Slice`` may have its bounds as attributes.
What a converter creates around a constant to change its layout (a bias reshaped for broadcasting, a weight transposed)
is evaluated on the spot by :func:`fold_layout`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .arithmetic_converters import ARITHMETIC_CONVERTERS
from .integer_converters import (
    convert_boolean_maximum,
    convert_boolean_minimum,
    convert_integer_mean,
    convert_mixed_power,
    convert_unsigned_sign,
)
from .relax_constants import constant, constant_array
from .resize_conversion import convert_resize, convert_upsample
from .scatter_conversion import convert_scatter_elements
from .special_value_converters import SPECIAL_VALUE_CONVERTERS
from .transposed_convolution import convert_conv_transpose


class ConverterInputs(list[Any]):
    """A node's inputs; reading past the end gives ``None``, as converters expect for optional inputs."""

    def __getitem__(self, index: Any) -> Any:
        """The input, a list of inputs for a slice, or ``None``."""
        if isinstance(index, slice):
            stop = len(self) if index.stop is None else index.stop
            return [self[i] for i in range(*slice(index.start, stop, index.step).indices(stop))]
        return super().__getitem__(index) if index < len(self) else None


def _convert_pad(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Pad`` in constant mode with constant amounts as ``R.nn.pad``; negative amounts crop by a slice first."""
    data = inputs[0]
    if attributes.get("mode", b"constant") != b"constant" or np.dtype(str(data.ty.dtype)).kind not in "fiu":
        return None
    rank = len(data.ty.shape.values)
    amounts, value, axes = attributes.get("pads"), attributes.get("value", 0.0), None
    if amounts is None:
        pads, fill, chosen = (constant_array(inputs[index]) for index in (1, 2, 3))
        if pads is None or (inputs[2] is not None and fill is None) or (inputs[3] is not None and chosen is None):
            return None
        amounts, axes = pads.reshape(-1).tolist(), None if chosen is None else chosen.reshape(-1).tolist()
        value = 0.0 if fill is None else fill.reshape(-1)[0].item()
    if abs(value) > 2**53 and np.dtype(str(data.ty.dtype)).kind != "f":
        return None  # R.nn.pad holds its value as a double
    axes = list(range(rank)) if axes is None else [axis % rank for axis in axes]
    before, after = amounts[: len(axes)], amounts[len(axes) :]
    cropped = [i for i in range(len(axes)) if before[i] < 0 or after[i] < 0]
    if any(int(data.ty.shape.values[axes[i]]) + min(before[i], 0) + min(after[i], 0) <= 0 for i in cropped):
        shape = [int(extent) for extent in data.ty.shape.values]
        for i, axis in enumerate(axes):
            shape[axis] += before[i] + after[i]
        return constant(np.full(shape, value, str(data.ty.dtype)))  # nothing of the data is left
    if cropped:
        extents = [int(data.ty.shape.values[axes[i]]) for i in cropped]
        data = relax.op.strided_slice(
            data,
            axes=[axes[i] for i in cropped],
            begin=[max(-before[i], 0) for i in cropped],
            end=[extent - max(-after[i], 0) for i, extent in zip(cropped, extents, strict=True)],
        )
    width = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        width[2 * axis], width[2 * axis + 1] = max(before[i], 0), max(after[i], 0)
    return relax.op.nn.pad(data, width, "constant", float(value)) if any(width) or not cropped else data


def _convert_clip(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Clip`` with constant bounds as ``R.clip``; an absent bound is the dtype's own limit, finite for floats too."""
    data = inputs[0]
    dtype = np.dtype(str(data.ty.dtype))
    bounds: list[float | int] = []
    for index, attribute in ((1, "min"), (2, "max")):
        bound = constant_array(inputs[index])
        if inputs[index] is not None and (bound is None or bound.size != 1):
            return None
        value = attributes.get(attribute) if bound is None else bound.reshape(-1)[0].item()
        if value is None:
            limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
            value = limits.min if index == 1 else limits.max
        elif np.isnan(value):  # ONNX Runtime takes a NaN bound as none
            value = -np.inf if index == 1 else np.inf
        bounds.append(float(value) if dtype.kind == "f" else int(value))
    bounds[0] = min(bounds[0], bounds[1])  # ONNX: when min exceeds max, every element becomes max
    return relax.op.clip(data, bounds[0], bounds[1])


def _convert_gemm(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Gemm`` with a constant B as ``matmul(A, alpha * B') + beta * C``: constants stay plain constants."""
    weight, bias = constant_array(inputs[1]), constant_array(inputs[2])
    if weight is None or (inputs[2] is not None and bias is None) or weight.dtype.kind != "f":
        return None
    data = relax.op.permute_dims(inputs[0], [1, 0]) if attributes.get("transA", 0) else inputs[0]
    weight = weight.T if attributes.get("transB", 0) else weight
    weight = np.ascontiguousarray(weight * weight.dtype.type(attributes.get("alpha", 1.0)))
    product = relax.op.matmul(data, constant(weight))
    if bias is None:
        return product
    return relax.op.add(product, constant(np.asarray(bias * bias.dtype.type(attributes.get("beta", 1.0)))))


def _convert_split(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Split`` as one slice per part, each a part of one tensor's values on its own."""
    data, given = inputs[0], constant_array(inputs[1])
    if inputs[1] is not None and given is None:
        return None
    axis, parts = int(attributes.get("axis", 0)), int(attributes["tvm_custom"]["num_outputs"])
    extent = int(data.ty.shape.values[axis])
    sizes = list(attributes.get("split", ())) if given is None else given.reshape(-1).tolist()
    if not sizes:  # equal parts, the last one smaller if need be
        ends = [min((index + 1) * -(-extent // parts), extent) for index in range(parts)]
    else:
        ends = np.cumsum(sizes).tolist()
    if len(ends) != parts or ends[-1] != extent:
        return None
    begins = [0, *ends[:-1]]
    slices = [relax.op.strided_slice(data, [axis], [b], [e]) for b, e in zip(begins, ends, strict=True)]
    return relax.Tuple(slices)


def _convert_slice(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Slice`` with constant bounds (attributes before operator set 10) as a slice inside the tensor's bounds.

    TVM cuts bounds to 32 bits, and joins indices that fall with those of a reshape behind it to wrong ones. So what a
    negative step gives is gathered.
    """
    data = inputs[0]
    if isinstance(data, relax.ShapeExpr | tvm.ir.GenericConst):
        return None
    if "starts" in attributes:
        starts, ends, axes, steps = (attributes.get(name) for name in ("starts", "ends", "axes", "steps"))
    else:
        given = [constant_array(expression) for expression in inputs[1:5]]
        if any(known is None for known, expression in zip(given, inputs[1:5], strict=True) if expression is not None):
            return None
        starts, ends, axes, steps = (None if known is None else known.reshape(-1).tolist() for known in given)
    if starts is None or ends is None:
        return None
    rank = len(data.ty.shape.values)
    axes = [int(axis) % rank for axis in (range(len(starts)) if axes is None else axes)]
    extents = [int(data.ty.shape.values[axis]) for axis in axes]
    slices = [
        # Python's rules are ONNX's.
        slice(int(start), int(end), int(step)).indices(extent)
        for start, end, step, extent in zip(starts, ends, steps or [1] * len(axes), extents, strict=True)
    ]
    for axis, bounds in zip(axes, slices, strict=True):
        if bounds[2] < 0:
            data = relax.op.take(data, constant(np.arange(*bounds, dtype=np.int64)), axis, mode="clip")
    forward = [(axis, *bounds) for axis, bounds in zip(axes, slices, strict=True) if bounds[2] > 0]
    if not forward:
        return data
    axes, starts, ends, steps = (list(column) for column in zip(*forward, strict=True))
    return relax.op.strided_slice(data, axes, starts, ends, [min(step, 2**31 - 1) for step in steps])


def _convert_gather(_: Any, inputs: ConverterInputs, attributes: dict[str, Any]) -> Any:
    """``Gather`` that never reads out of bounds: constant indices are checked here, computed ones are clipped.

    ONNX Runtime refuses to run where a computed index is out of range.
    """
    data, indices = inputs[0], inputs[1]
    if isinstance(data, relax.ShapeExpr) or isinstance(indices, relax.ShapeExpr):
        return None
    axis = int(attributes.get("axis", 0)) % len(data.ty.shape.values)
    extent = int(data.ty.shape.values[axis])
    known = constant_array(indices)
    if known is None:
        dtype = str(indices.ty.dtype)
        wrapped = relax.op.add(indices, relax.const(extent, dtype))
        indices = relax.op.where(relax.op.less(indices, relax.const(0, dtype)), wrapped, indices)
        return relax.op.take(data, indices, axis, mode="clip")
    if known.size and not (-extent <= known.min() and known.max() < extent):
        raise ValueError(f"an index of {int(known.min())} to {int(known.max())} into an axis of {extent}")
    return relax.op.take(data, constant(np.where(known < 0, known + extent, known)), axis, mode="clip")


def _convert_maximum(_: Any, inputs: ConverterInputs, __: dict[str, Any]) -> Any:
    """``Max`` as a chain of element-wise maxima, which analyses know, and not a reduction of a stack."""
    return functools.reduce(relax.op.maximum, inputs)


def _convert_minimum(_: Any, inputs: ConverterInputs, __: dict[str, Any]) -> Any:
    """``Min``, likewise."""
    return functools.reduce(relax.op.minimum, inputs)


def _convert_prelu(_: Any, inputs: ConverterInputs, __: dict[str, Any]) -> Any:
    """``PRelu`` of a scalar, for which TVM's operator has no axis."""
    data, slope = inputs[0], inputs[1]
    if data.ty.shape.values:
        return None
    zero = relax.const(0, str(data.ty.dtype))
    return relax.op.where(relax.op.less(data, zero), relax.op.multiply(data, slope), data)


OWN_CONVERTERS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    **ARITHMETIC_CONVERTERS,
    "Clip": _convert_clip,
    "ConvTranspose": convert_conv_transpose,
    "Gather": _convert_gather,
    "Gemm": _convert_gemm,
    "Max": _convert_maximum,
    "Min": _convert_minimum,
    "Pad": _convert_pad,
    "Pow": convert_mixed_power,
    "PRelu": _convert_prelu,
    "ReduceMax": convert_boolean_maximum,
    "ReduceMean": convert_integer_mean,
    "ReduceMin": convert_boolean_minimum,
    "Resize": convert_resize,
    "Scatter": convert_scatter_elements,
    "ScatterElements": convert_scatter_elements,
    "Sign": convert_unsigned_sign,
    "Slice": _convert_slice,
    "Split": _convert_split,
    "Upsample": convert_upsample,
    **SPECIAL_VALUE_CONVERTERS,
}
"""Each gives ``None`` where the form is left to TVM's converter."""


def fold_layout(expression: Any) -> Any:
    """Evaluate the layout changes of constants inside an expression that is not bound yet."""
    if not isinstance(expression, relax.Call):
        return expression
    arguments = [fold_layout(argument) for argument in expression.args]
    name = getattr(expression.op, "name", "")
    if name in _LAYOUT_OPERATORS and isinstance(arguments[0], tvm.ir.GenericConst):
        source, axes = arguments[0].value.numpy(), getattr(expression.attrs, "axes", None)
        if name == "relax.permute_dims":
            folded = source.transpose(None if axes is None else [int(axis) for axis in axes])
            return constant(np.asarray(folded, order="C"))
        if name == "relax.reshape" and isinstance(arguments[1], relax.ShapeExpr):
            return constant(source.reshape([int(extent) for extent in arguments[1].values]))
    if all(new is old for new, old in zip(arguments, expression.args, strict=True)):
        return expression
    return relax.Call(expression.op, arguments, expression.attrs, expression.ty_args)


_LAYOUT_OPERATORS = frozenset({"relax.reshape", "relax.permute_dims"})
