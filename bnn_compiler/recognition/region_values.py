"""Evaluates element-wise operators for one region of their common base: exactly, or as enclosures.

For a base x in one interval, or at one number, every tensor made from x by element-wise operators has a
``LinearForm``. An operator that nothing is known of makes an unknown within the interval of its results; a tensor that
is not made from x (a constant per channel, the output of another layer) is an unknown within its own bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import (
    Array,
    dtype_of,
    elementwise_operands,
    evaluate_elementwise,
    is_elementwise,
    op_name,
    prim_value,
    static_shape,
)
from bnn_compiler.recognition.intervals import EVERYTHING, Interval, apply_to_intervals
from bnn_compiler.recognition.linear_forms import LinearForm, add, scale

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis

# Residues are some twenty operators deep.
_MAX_DEPTH = 64
_COMPARISONS = {
    "relax.greater": (">", True),
    "relax.greater_equal": (">=", True),
    "relax.less": ("<", False),
    "relax.less_equal": ("<=", False),
}


class RegionValues:
    """Values of expressions while ``base`` lies in ``where`` (is that one number, if ``is_point``)."""

    def __init__(self, analysis: ValueSetAnalysis, base: Var, where: Interval, *, is_point: bool) -> None:
        dtype = dtype_of(base)
        at_base = LinearForm.of_point(np.asarray(where.low, dtype)) if is_point else LinearForm.of_unknown(base, where)
        self._analysis = analysis
        self._shape = static_shape(base)
        self._known: dict[Var, LinearForm | None] = {base: at_base}

    def of(self, expr: relax.Expr, depth: int = 0) -> LinearForm | None:
        """The value of ``expr``, or None where it is unbounded or not one element to one element of the base."""
        constant = self._analysis.constants.value(expr)
        if constant is not None:
            return _of_constant(expr, constant)
        if not isinstance(expr, Var):
            return None
        if expr not in self._known:
            self._known[expr] = None  # bounds the recursion
            self._known[expr] = self._of_variable(expr, depth)
        return self._known[expr]

    def _of_variable(self, variable: Var, depth: int) -> LinearForm | None:
        definition = self._analysis.definition(variable)
        if static_shape(variable) != self._shape:
            return None
        if isinstance(definition, Call) and is_elementwise(definition) and depth < _MAX_DEPTH:
            operands = [self.of(operand, depth + 1) for operand in elementwise_operands(definition)]
            known = [operand for operand in operands if operand is not None]
            if variable in self._analysis.plus_signs and known and known[0].point is not None and known[0].point == 0:
                return LinearForm.of_point(np.ones((), dtype_of(variable)))
            if len(known) == len(operands):
                with np.errstate(all="ignore"):
                    return _apply(variable, definition, known)
        # What is not evaluated is unknown, but it is the same unknown wherever it is read.
        bounds = self._analysis.bounds.of(variable)
        return LinearForm.of_unknown(variable, bounds) if bounds.is_bounded else None


def _of_constant(expr: relax.Expr, constant: Array) -> LinearForm | None:
    if not constant.size or not np.all(np.isfinite(constant)):
        return None
    if np.all(constant == constant.flat[0]):
        return LinearForm.of_point(np.asarray(constant.flat[0], constant.dtype))
    return LinearForm.of_unknown(expr, Interval(float(constant.min()), float(constant.max())))


def _apply(variable: Var, call: Call, operands: list[LinearForm]) -> LinearForm | None:
    name, dtype = op_name(call), dtype_of(call)
    points = [operand.point for operand in operands if operand.point is not None]
    if len(points) == len(operands):
        return LinearForm.of_point(evaluate_elementwise(call, points))
    special = _of_form(name, call, operands)
    if special is not None:
        return special
    if any(np.isnan(point) for point in points if point.dtype.kind == "f"):
        return None
    if name in _COMPARISONS or name in {"relax.equal", "relax.not_equal"} or dtype == "bool":
        return LinearForm.of_unknown(variable, Interval(0.0, 1.0))
    ranges = [operand.range for operand in operands]
    interval = _interval(name, call, ranges, dtype)
    if not interval.is_bounded:
        return None
    if interval.low == interval.high:
        return LinearForm.of_point(np.asarray(interval.low, dtype))
    if not dtype.startswith("float"):
        return LinearForm.of_unknown(variable, interval)
    rounding = ("rounding", variable)
    match name:
        case "relax.add":
            return add(operands[0], operands[1], interval, rounding, dtype)
        case "relax.subtract":
            return add(operands[0], operands[1].negated(), interval, rounding, dtype)
        case "relax.multiply" if points:
            form = next(operand for operand in operands if operand.point is None)
            return scale(form, float(points[0]), interval, rounding, dtype)
        case "relax.divide" if operands[1].point is not None:
            return scale(operands[0], 1.0 / float(operands[1].point), interval, rounding, dtype)
    return LinearForm.of_unknown(variable, interval)


def _of_form(name: str, call: Call, operands: list[LinearForm]) -> LinearForm | None:
    """Operators whose result is one of their operands, or a number, because of the range they lie in."""
    first, dtype = operands[0], dtype_of(call)
    second = operands[1] if len(operands) > 1 else first
    match name:
        case "relax.negative":
            return first.negated()
        case "relax.astype" if dtype_of(call.args[0]) == dtype:
            return first
        case "relax.where" if first.point is not None:
            return second if bool(first.point) else operands[2]
        case "relax.abs" | "relax.nn.relu" if first.range.low >= 0:
            return first
        case "relax.abs" if first.range.high <= 0:
            return first.negated()
        case "relax.clip" if prim_value(call.args[1]) <= first.range.low and first.range.high <= prim_value(
            call.args[2]
        ):
            return first
        case "relax.maximum" | "relax.minimum":
            low, high = (first, second) if first.range.high <= second.range.low else (second, first)
            if low.range.high <= high.range.low:
                return high if name == "relax.maximum" else low
        case "relax.subtract" if first.is_same(second):
            return LinearForm.of_point(np.zeros((), dtype))
        case "relax.divide" if not second.range.low <= 0.0 <= second.range.high:
            # x / x is 1 in floats as it is in numbers.
            if first.is_same(second) or first.is_opposite(second):
                return LinearForm.of_point(np.asarray(1 if first.is_same(second) else -1, dtype))
        case _ if name in _COMPARISONS:
            return _compared(name, first.range, second.range)
        case "relax.equal" | "relax.not_equal" if _apart(first.range, second.range):
            return LinearForm.of_point(np.asarray(name == "relax.not_equal"))
    return None


def _apart(left: Interval, right: Interval) -> bool:
    return left.high < right.low or right.high < left.low


def _compared(name: str, left: Interval, right: Interval) -> LinearForm | None:
    """A comparison that the operands' intervals decide."""
    symbol, upward = _COMPARISONS[name]
    high, low = (left, right) if upward else (right, left)
    strict = "=" not in symbol
    if high.low > low.high or (not strict and high.low >= low.high):
        return LinearForm.of_point(np.asarray(True))
    if high.high < low.low or (strict and high.high <= low.low):
        return LinearForm.of_point(np.asarray(False))
    return None


def _interval(name: str, call: Call, ranges: list[Interval], dtype: str) -> Interval:
    if name == "relax.clip":
        return ranges[0].clipped(prim_value(call.args[1]), prim_value(call.args[2]))
    if name == "relax.where":
        return ranges[1].hull(ranges[2])
    if name == "relax.astype":
        # From a boolean, or rounded to another float, or truncated: all of it monotone, but where integers overflow.
        if not dtype.startswith("float"):
            limits = np.iinfo(dtype)
            if ranges[0].low < limits.min or ranges[0].high > limits.max:
                return EVERYTHING
        return Interval(*(float(np.asarray(end).astype(dtype)) for end in ranges[0]))
    return apply_to_intervals(name, ranges, dtype)
