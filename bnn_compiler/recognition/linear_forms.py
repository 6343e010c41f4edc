"""Rounded values as linear combinations of unknowns, so that what is subtracted and added again cancels.

Affine arithmetic (de Figueiredo and Stolfi, Affine arithmetic: concepts and applications, 2004) on the values that
floating-point operators compute, for one region of inputs:

    value = constant + Σ coefficient_i · unknown_i

An *unknown* is a number of which an interval is known: the value of a tensor, or the rounding error of one operation.
fl(a ± b) differs from a ± b by at most u·|a ± b| (u is half the spacing of floats at 1; sums do not underflow), and
that error is a new unknown, the same wherever the sum is used. So (s − c) + c becomes s + ε₁ + ε₂, whatever c is:
c cancels, and its own rounding errors do.

Values that are known exactly (``LinearForm.point``) are computed by the model's own operators.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.recognition.intervals import Interval


@dataclass(frozen=True, eq=False)
class LinearForm:
    """constant + Σ coefficient·unknown; ``terms``: unknown → (coefficient, its interval); ``range`` of the value.

    ``point``: the value itself, a 0-d array in the model's dtype, where it is known exactly (it may be NaN).
    """

    constant: float
    range: Interval
    terms: Mapping[Hashable, tuple[float, Interval]] = field(default_factory=dict)
    point: Array | None = None

    @classmethod
    def of_point(cls, value: Array) -> LinearForm:
        """A value that is known exactly."""
        number = float(value)
        return cls(number, Interval(number, number), {}, np.asarray(value))

    @classmethod
    def of_unknown(cls, name: Hashable, interval: Interval) -> LinearForm:
        """A value of which only ``interval`` is known."""
        return cls(0.0, interval, {name: (1.0, interval)})

    @property
    def spread(self) -> Interval:
        """What the terms add to the constant."""
        low = high = 0.0
        for coefficient, interval in self.terms.values():
            ends = (coefficient * interval.low, coefficient * interval.high)
            low, high = low + min(ends), high + max(ends)
        return Interval(low, high)

    def negated(self) -> LinearForm:
        """Exact: negation does not round."""
        if self.point is not None:
            return LinearForm.of_point(-self.point)
        terms = {name: (-coefficient, interval) for name, (coefficient, interval) in self.terms.items()}
        return LinearForm(-self.constant, Interval(-self.range.high, -self.range.low), terms)

    def is_opposite(self, other: LinearForm) -> bool:
        """Whether this value always is minus the other."""
        return self.negated().is_same(other)

    def is_same(self, other: LinearForm) -> bool:
        """Whether both values always are equal."""
        return self.constant == other.constant and self.terms == other.terms


def add(left: LinearForm, right: LinearForm, interval: Interval, rounding: Hashable, dtype: str) -> LinearForm:
    """fl(left + right) in floating-point ``dtype``, not both of them points.

    ``interval`` contains the computed sums; ``rounding`` names the new unknown.
    """
    for one, other in ((left, right), (right, left)):
        if one.point is not None and float(one.point) == 0.0:
            return other
    terms = dict(left.terms)
    for name, (coefficient, known) in right.terms.items():
        summed = terms[name][0] + coefficient if name in terms else coefficient
        if summed == 0.0:
            del terms[name]
        else:
            terms[name] = (summed, known)
    total = left.constant + right.constant
    if total == 0.0 and not terms:
        return LinearForm.of_point(np.zeros((), dtype))  # everything cancels: 0 does not round
    return _rounded(LinearForm(total, interval, terms), rounding, dtype, underflow=0.0)


def scale(value: LinearForm, factor: float, interval: Interval, rounding: Hashable, dtype: str) -> LinearForm:
    """fl(value · factor) or its quotient by 1/factor; multiples of ±1 are exact."""
    if factor == 1.0:
        return value
    if factor == -1.0:
        return value.negated()
    terms = {name: (coefficient * factor, known) for name, (coefficient, known) in value.terms.items()}
    underflow = float(np.finfo(dtype).tiny)
    return _rounded(LinearForm(value.constant * factor, interval, terms), rounding, dtype, underflow)


def _rounded(value: LinearForm, rounding: Hashable, dtype: str, underflow: float) -> LinearForm:
    """``value`` with the rounding error of the operation that made it, and its range as small as is known."""
    spread = value.spread
    # The bound is doubled: that covers the float64 arithmetic here many times.
    exact = Interval(value.constant + spread.low, value.constant + spread.high)
    computed = Interval(max(value.range.low, exact.low), min(value.range.high, exact.high))
    error = float(np.finfo(dtype).eps) * computed.magnitude + underflow
    reached = Interval(
        max(value.range.low, exact.low - error),
        min(value.range.high, exact.high + error),
    )
    return LinearForm(value.constant, reached, {**value.terms, rounding: (1.0, Interval(-error, error))})
