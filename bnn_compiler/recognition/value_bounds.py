"""Bounds on float tensors that are no finite sets: how far can they go?"""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of, elementwise_operands, op_name, prim_value
from bnn_compiler.recognition.element_selection import selected_operands
from bnn_compiler.recognition.intervals import EVERYTHING, Interval, apply_to_intervals
from bnn_compiler.recognition.step_function import MAX_RESIDUE

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis

_MAX_DEPTH = 32
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

    def forget(self, variable: Var) -> None:
        """Drop what is known of ``variable``."""
        self._known.pop(variable, None)

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
