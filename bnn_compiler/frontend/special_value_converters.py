"""Conversions of operators for which TVM's give other results where a value is NaN or infinite, or a zero negative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax

from bnn_compiler.schedules.float_definitions import index_of_extreme, order_key


def _convert_thresholded_relu(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ThresholdedRelu`` as a selection: a product with 0 would make NaN of −∞. NaN exceeds no threshold: 0."""
    x = inputs[0]
    dtype = str(x.ty.dtype)
    exceeds = relax.op.greater(x, relax.const(float(attributes.get("alpha", 1.0)), dtype))
    return relax.op.where(exceeds, x, relax.const(0, dtype))


def _convert_celu(_: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``Celu``, max(0, x) + min(0, α(exp(x / α) − 1)); the function that ONNX gives differs where α is negative."""
    x = inputs[0]
    dtype = str(x.ty.dtype)
    zero, one, alpha = (relax.const(value, dtype) for value in (0.0, 1.0, float(attributes.get("alpha", 1.0))))
    below = relax.op.multiply(alpha, relax.op.subtract(relax.op.exp(relax.op.divide(x, alpha)), one))
    return relax.op.add(relax.op.maximum(x, zero), relax.op.minimum(below, zero))


def _convert_sum(_: Any, inputs: Any, __: dict[str, Any]) -> Any:
    """``Sum`` as a chain of sums, from left to right as in ONNX Runtime, and not as a reduction that starts at 0."""
    return functools.reduce(relax.op.add, inputs)


def _convert_mean(_: Any, inputs: Any, __: dict[str, Any]) -> Any:
    """``Mean``: the chain of sums, divided."""
    total = functools.reduce(relax.op.add, inputs)
    return relax.op.divide(total, relax.const(len(inputs), str(inputs[0].ty.dtype)))


def _convert_reduce_log_sum_exp(bb: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ReduceLogSumExp`` with the exponents shifted by the maximum, but not by an infinite one: ∞ − ∞ is NaN."""
    x = inputs[0]
    axes: Any = attributes.get("axes")
    if inputs[1] is not None:
        if not isinstance(inputs[1], tvm.ir.GenericConst):
            return None
        axes = inputs[1].value.numpy().reshape(-1).tolist()
    if not axes:
        if attributes.get("noop_with_empty_axes", 0):
            return None
        axes = None
    dtype = str(x.ty.dtype)
    if np.dtype(dtype).kind != "f":
        return None
    highest = bb.normalize(relax.op.max(x, axes, keepdims=True))
    zero, infinity = relax.const(0, dtype), relax.const(np.inf, dtype)
    finite = relax.op.less(relax.op.abs(highest), infinity)
    shift = bb.normalize(relax.op.where(finite, highest, zero))
    powers = relax.op.exp(relax.op.subtract(x, shift))
    result = relax.op.add(relax.op.log(relax.op.sum(powers, axes, keepdims=True)), shift)
    return result if attributes.get("keepdims", 1) else relax.op.squeeze(bb.normalize(result), axes)


def _convert_last_index(larger: bool, bb: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``ArgMax`` and ``ArgMin`` that take the last of equal elements; all others are TVM's operators."""
    if not attributes.get("select_last_index", 0):
        return None
    x = inputs[0]
    axis = int(attributes.get("axis", 0)) % len(x.ty.shape.values)
    keepdims = bool(attributes.get("keepdims", 1))
    return bb.call_te(index_of_extreme, x, axis, keepdims, larger, True, primfunc_name_hint="last_index")


def _convert_top_k(bb: Any, inputs: Any, attributes: dict[str, Any]) -> Any:
    """``TopK`` of floats by integer keys: NaN counts as larger than any number, and a sort of NaN has no order."""
    x = inputs[0]
    if str(x.ty.dtype) not in ("float32", "float64"):
        return None
    count = attributes.get("k")
    if count is None:
        if not isinstance(inputs[1], tvm.ir.GenericConst):
            return None
        count = int(inputs[1].value.numpy().item())
    axis = int(attributes.get("axis", -1)) % len(x.ty.shape.values)
    largest = bool(attributes.get("largest", 1))
    keys = bb.emit(bb.call_te(order_key, x, primfunc_name_hint="order_key"))
    indices = bb.emit(relax.op.topk(keys, int(count), axis, ret_type="indices", largest=largest, dtype="int64"))
    return relax.Tuple([relax.op.gather_elements(x, indices, axis), indices])


SPECIAL_VALUE_CONVERTERS: dict[str, Callable[[Any, Any, dict[str, Any]], Any]] = {
    "ArgMax": functools.partial(_convert_last_index, True),
    "ArgMin": functools.partial(_convert_last_index, False),
    "Celu": _convert_celu,
    "Mean": _convert_mean,
    "ReduceLogSumExp": _convert_reduce_log_sum_exp,
    "Sum": _convert_sum,
    "TopK": _convert_top_k,
    "ThresholdedRelu": _convert_thresholded_relu,
}
"""As in ``operator_converters``."""
