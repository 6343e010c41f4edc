"""Bounds on float tensors that are no finite sets: how far can they go, and can they hit a value exactly?"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import BINARY, Array, dtype_of, elementwise_operands, op_name, prim_value, static_shape
from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.recognition.element_selection import selected_operands
from bnn_compiler.recognition.intervals import EVERYTHING, Interval, apply_to_intervals
from bnn_compiler.recognition.step_function import MAX_RESIDUE

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis

_MAX_DEPTH = 32
# Σ|x·w| up to here is an exact float32 whatever the order of summation.
_EXACT_FLOAT32 = 1 << 24
_AVERAGES = {
    "relax.nn.avg_pool1d",
    "relax.nn.avg_pool2d",
    "relax.nn.avg_pool3d",
    "relax.nn.adaptive_avg_pool2d",
    "relax.mean",
}


class ValueBounds:
    """Intervals of the variables of one Relax function, NaN left out of account."""

    def __init__(self, analysis: ValueSetAnalysis) -> None:
        self._analysis = analysis
        self._known: dict[Var, Interval] = {}

    def of(self, expr: relax.Expr, depth: int = 0) -> Interval:
        """An interval that every element of ``expr`` lies in; unbounded where nothing is known."""
        array = self._analysis.constants.value(expr)
        if array is not None:
            return _extremes(array)
        definition = self._analysis.definition(expr)
        if not isinstance(expr, Var) or definition is None or depth > _MAX_DEPTH:
            return EVERYTHING
        if expr not in self._known:
            self._known[expr] = EVERYTHING  # bounds the recursion
            known = self._analysis.of(expr)
            if known is not None:
                low, high = _extremes(np.asarray(sorted(known.values)))
                margin = MAX_RESIDUE * max(abs(low), abs(high)) if known.rounded else 0.0
                self._known[expr] = Interval(low - margin, high + margin)
            else:
                self._known[expr] = self._of_definition(definition, depth)
        return self._known[expr]

    def _of_definition(self, call: relax.Expr, depth: int) -> Interval:
        selected = selected_operands(call, self._analysis.functions)
        if selected is not None:
            return reduce(Interval.hull, (self.of(operand, depth + 1) for operand in selected))
        if not isinstance(call, Call):
            return EVERYTHING
        name = op_name(call)
        operands = [self.of(arg, depth + 1) for arg in elementwise_operands(call)]
        if name in _AVERAGES:
            # A padded window may count zeros; the sum rounds, so only the sign of a bound survives.
            low, high = operands[0]
            return Interval(0.0 if low >= 0 else -math.inf, 0.0 if high <= 0 else math.inf)
        if name == "relax.nn.pad":
            value = float(call.attrs.pad_value)
            return operands[0].hull(Interval(value, value))
        if name == "relax.clip":
            return operands[0].clipped(prim_value(call.args[1]), prim_value(call.args[2]))
        if name == "relax.where":
            return operands[1].hull(operands[2])
        return apply_to_intervals(name, operands, dtype_of(call)) if _is_float(call) else EVERYTHING


def _extremes(array: Array) -> Interval:
    if not array.size or not np.all(np.isfinite(array)):
        return EVERYTHING
    return Interval(float(array.min()), float(array.max()))


def _is_float(expr: relax.Expr) -> bool:
    return dtype_of(expr) in ("float16", "float32", "float64")


def reaches_value(expr: relax.Expr, value: float, analysis: ValueSetAnalysis) -> bool | None:
    """Whether any element of ``expr`` can equal ``value``; None where its values are not known exactly.

    Known exactly are the outputs of a convolution of small integers (activations from a set of integers, weights ±1)
    and what follows from them by per-channel affine maps and ReLU, evaluated in the model's own float32 on every
    integer that the convolution can produce.
    """
    values = _integer_values(expr, analysis, 0)
    return None if values is None else bool(np.any(values == np.float32(value)))


def _integer_values(expr: relax.Expr, analysis: ValueSetAnalysis, depth: int) -> Array | None:
    """float32[C or 1, V]: for each channel all values that ``expr`` can take."""
    call = analysis.definition(expr)
    if not isinstance(call, Call) or depth > _MAX_DEPTH or dtype_of(call) != "float32":
        return None
    name = op_name(call)
    if name in {"relax.nn.conv1d", "relax.nn.conv2d", "relax.matmul"}:
        return _convolution_values(call, analysis)
    if name in {"relax.nn.relu", "relax.nn.max_pool2d"}:
        inner = _integer_values(call.args[0], analysis, depth + 1)
        if inner is None or name == "relax.nn.max_pool2d":
            return inner
        return np.maximum(inner, np.float32(0))
    operations = {name: BINARY[name] for name in ("relax.add", "relax.subtract", "relax.multiply", "relax.divide")}
    if name in operations:
        if static_shape(call.args[0]) != static_shape(call):
            return None  # broadcast: what was axis 1 may be another now
        inner = _integer_values(call.args[0], analysis, depth + 1)
        constant = _per_channel(analysis.constants.value(call.args[1]), static_shape(call))
        with np.errstate(all="ignore"):
            return None if inner is None or constant is None else operations[name](inner, constant)
    return None


def _per_channel(constant: Array | None, shape: tuple[int, ...] | None) -> Array | None:
    """``constant`` as float32[C or 1, 1] if it varies along the channel axis alone (axis 1), else None."""
    if constant is None or shape is None:
        return None
    if constant.size == 1:
        return constant.reshape(1, 1).astype(np.float32)
    aligned = (1,) * (len(shape) - constant.ndim) + constant.shape
    if len(shape) < 2 or aligned[1] != constant.size:
        return None
    return constant.reshape(-1, 1).astype(np.float32)


def _convolution_values(call: Call, analysis: ValueSetAnalysis) -> Array | None:
    weights = analysis.constants.value(call.args[1])
    activation = analysis.of(call.args[0])
    if weights is None or activation is None or not activation.is_exact:
        return None
    if op_name(call) == "relax.matmul" and weights.ndim != 2:
        return None
    if not all(value.is_integer() for value in activation.values):
        return None
    matmul = op_name(call) == "relax.matmul"
    binary = analyse_weights(weights.T if matmul else weights)
    if not isinstance(binary, BinaryWeights) or not binary.exact or np.any(binary.alpha != 1):
        return None
    taps = weights.shape[0] if matmul else int(np.prod(weights.shape[1:]))
    reach = taps * int(max(abs(value) for value in activation.values))
    if reach >= _EXACT_FLOAT32:
        return None
    padded = not matmul and any(int(width) for width in call.attrs.padding)
    odd_only = all(abs(value) % 2 == 1 for value in activation.values) and not padded
    # A sum of N odd numbers has the parity of N: a 3×3 layer over an odd channel count never reaches 0.
    return np.arange(-reach, reach + 1, 2 if odd_only else 1, dtype=np.float32).reshape(1, -1)
