"""Activations of several levels as integer codes: a = offset + unit·(c·code − zero).

The values of an activation are v_0 < v_1 < … The smallest ``codes`` 0 = k_0 < k_1 < … <= 15 with v_i = v_0 + step·k_i
are looked for; they need not be adjacent ({−1, 0.5, 1} has the codes 0, 3, 4). Then, in this order,

- *unsigned*: v_0 = −zero·step with an integer zero, so c = 1, unit = step, offset = 0;
- *bipolar*: v_0 = −zero·step/2 with an odd zero ({−1, −1/3, 1/3, 1}), so c = 2, unit = step/2, offset = 0;
- otherwise offset = v_0, zero = 0, c = 1.

Zero padding is exact for the first two. Values count as on the lattice up to a few units in the last place, as the
weights' α do: exporters write 1/3 and 2/3 as floats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

#: Codes have at most four bits.
MOST_CODE = 15
#: Relative to the largest magnitude: four units in the last place of float32.
_TOLERANCE = 2.0**-22


@dataclass(frozen=True)
class CodeLattice:
    """``codes[i]`` stands for the value i; see the module's docstring. ``exact``: without any rounding."""

    codes: tuple[int, ...]
    bipolar: bool
    unit: float
    zero: int
    offset: float
    exact: bool

    @property
    def bits(self) -> int:
        """Planes that hold the codes: two at least, one plane has kernels of its own."""
        return max(2, self.codes[-1].bit_length())

    @property
    def zero_code(self) -> int | None:
        """The code of the value 0, or None if 0 is no code."""
        on_lattice = not self.bipolar and self.offset == 0 and 0 <= self.zero < 1 << self.bits
        return self.zero if on_lattice else None

    @property
    def pads_zero(self) -> bool:
        """Whether padding with 0 keeps results exact integers."""
        return self.offset == 0


def fit_codes(values: Sequence[float], *, zero_padded: bool) -> CodeLattice | None:
    """The codes of ascending ``values``, or None if they need more than four bits or are not all finite.

    With ``zero_padded`` a finer lattice that fits 0, too, is taken where that is needed.
    """
    low, high = values[0], values[-1]
    if not all(map(math.isfinite, (*values, high - low))):
        return None
    tolerance = _TOLERANCE * max(abs(low), abs(high))
    for top in range(len(values) - 1, MOST_CODE + 1):
        step = (high - low) / top
        codes = tuple(round((value - low) / step) for value in values)
        distinct = len(set(codes)) == len(values)
        if distinct and all(abs(low + step * c - v) <= tolerance for c, v in zip(codes, values, strict=True)):
            lattice = _about_zero(values, codes, step, tolerance)
            if lattice.pads_zero or not zero_padded:
                return lattice
    return None


def _about_zero(values: Sequence[float], codes: tuple[int, ...], step: float, tolerance: float) -> CodeLattice:
    twice = round(-2 * values[0] / step)
    # The unit of the largest value: far from 0, half a unit in its last place is much of the step between two values.
    largest, halves = max((abs(value), abs(2 * code - twice)) for value, code in zip(values, codes, strict=True))
    about_zero = 2 * largest / halves if halves else step
    on_lattice = all(
        abs((code - twice / 2) * about_zero - value) <= tolerance for value, code in zip(values, codes, strict=True)
    )
    if not on_lattice or abs(twice) > 4 * MOST_CODE:
        bipolar, unit, zero, offset = False, step, 0, values[0]
    elif twice % 2:
        bipolar, unit, zero, offset = True, about_zero / 2, twice, 0.0
    else:
        bipolar, unit, zero, offset = False, about_zero, twice // 2, 0.0
    factor = 2 if bipolar else 1
    exact = all(
        Fraction(value) == Fraction(offset) + Fraction(unit) * (factor * code - zero)
        for value, code in zip(values, codes, strict=True)
    )
    return CodeLattice(codes, bipolar, unit, zero, offset, exact)
