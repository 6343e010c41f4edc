"""Intervals that contain every value of a floating-point tensor, and how element-wise operators move them.

IEEE 754 rounding is monotone, so an operator that is monotone in each operand takes the corners of its operands'
intervals to the corners of its result's: the corners are evaluated with the operator itself, in the tensor's own dtype,
and the interval holds for the *computed* values, not only for the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnn_compiler.constants import BINARY, UNARY, Array


class Interval(NamedTuple):
    """All numbers from ``low`` to ``high``; NaN is in no interval."""

    low: float
    high: float

    @property
    def is_bounded(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    def hull(self, other: Interval) -> Interval:
        """The smallest interval around both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))

    def clipped(self, low: float, high: float) -> Interval:
        """Where values of this interval end up when clipped to [low, high]."""
        return Interval(min(max(self.low, low), high), min(max(self.high, low), high))


EVERYTHING = Interval(-math.inf, math.inf)

# Monotone rising functions of one operand: the ends go to the ends.
_RISING = {
    "relax.sign", "relax.nn.relu", "relax.floor", "relax.ceil", "relax.round", "relax.sqrt", "relax.logical_not",
    "relax.negative",
}  # fmt: skip
# Known ranges of functions that are not evaluated here. Computed values may not leave them: the libraries' functions
# are correct to within a few ulp and saturate at exactly these ends.
_RANGES: Mapping[str, Interval] = {
    "relax.tanh": Interval(-1.0, 1.0),
    "relax.sin": Interval(-1.0, 1.0),
    "relax.cos": Interval(-1.0, 1.0),
    "relax.erf": Interval(-1.0, 1.0),
    "relax.sigmoid": Interval(0.0, 1.0),
    "relax.nn.softmax": Interval(0.0, 1.0),
    "relax.exp": Interval(0.0, math.inf),
}
# Rising or falling in each operand by itself: the extremes are among the corners.
_CORNERS = {"relax.add", "relax.subtract", "relax.multiply", "relax.maximum", "relax.minimum"}


def apply_to_intervals(name: str, operands: Sequence[Interval], dtype: str) -> Interval:
    """The interval of the operator ``name``'s results in ``dtype``; ``EVERYTHING`` if it is unknown.

    So it is where integers may overflow, or be larger than the floats of an interval can tell apart.
    """
    if not dtype.startswith("float"):
        exact = EVERYTHING if name == "relax.divide" else apply_to_intervals(name, operands, "float64")
        limit = min(2.0**53, *(abs(float(end)) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max) if end))
        lowest = 0.0 if np.iinfo(dtype).min == 0 else -limit
        return exact if lowest <= exact.low and exact.high <= limit else EVERYTHING
    if name in _RANGES:
        return _RANGES[name]
    if name == "relax.abs":
        (operand,) = operands
        inside = operand.low <= 0.0 <= operand.high
        return Interval(0.0 if inside else min(abs(operand.low), abs(operand.high)), operand.magnitude)
    if name in _RISING and len(operands) == 1:
        return _corners(lambda corner: UNARY[name](*corner), operands, dtype)
    if name in _CORNERS or (name == "relax.divide" and not operands[1].low <= 0.0 <= operands[1].high):
        return _corners(lambda corner: BINARY[name](*corner), operands, dtype)
    return EVERYTHING


def _corners(function: Callable[[list[Array]], Array], operands: Sequence[Interval], dtype: str) -> Interval:
    corners: list[list[Array]] = [[]]
    for operand in operands:
        corners = [[*corner, np.asarray(end, dtype)] for corner in corners for end in operand]
    with np.errstate(all="ignore"):
        values = [float(function(corner)) for corner in corners]
    return EVERYTHING if any(math.isnan(value) for value in values) else Interval(min(values), max(values))
