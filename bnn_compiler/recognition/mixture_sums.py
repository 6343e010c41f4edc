"""Sums of products with constant weights, as mixtures: convolutions, matrix products, means.

What can Σ w·x be exactly, where x has atoms? Two cases differ by the weights of an output channel:

- On a *lattice* (w = v·q with small integers q, as binary, ternary and quantised weights are), atoms that are integers
  times a unit give integers times v: all of Σ q·p in steps of their greatest common divisor, which keeps parity (a sum
  of nine odd numbers is never 0). They are atoms where float arithmetic is exact; where v takes more bits than the sum
  leaves room for, only a sum of 0 is: every other sum comes out rounded, and equals nothing but by accident.
- *Generic* weights cancel by accident only, so that the sum is 0 where every x is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm.ir import Var

from bnn_compiler.constants import Array
from bnn_compiler.recognition.mixtures import MAX_POINTS, Mixture, continuum, no_points

_MOST_ATOMS = 1 << 12
_LARGEST_STEP = 1 << 12
# Relative: α differs by a few units in the last place within a channel, as exporters leave it.
_LATTICE_TOLERANCE = 2.0**-16
# Of so few terms all may be saturated at once; of more, by accident only.
_FEW_TERMS = 16
_Span = tuple[int, int, int]
"""Smallest sum, largest sum, step."""
_SIGNIFICAND_BITS = {"float16": 11, "float32": 24, "float64": 53}


@dataclass(frozen=True)
class _Lattice:
    """Numbers that are ``unit`` times ``integers``; ``exact`` if they are so without rounding."""

    unit: float
    integers: Array
    exact: bool


@dataclass(frozen=True)
class WeightRow:
    """The weights of an output channel on a lattice: ``unit`` times integers, without rounding if ``exact``.

    ``upward`` and ``downward`` are the sums of the positive and of the negative integers, ``step`` their greatest
    common divisor; 0 where all are 0.
    """

    unit: float
    exact: bool
    upward: int
    downward: int
    step: int

    @property
    def is_empty(self) -> bool:
        """Whether no weight is but 0."""
        return self.step == 0


def weight_rows(weights: Array) -> list[WeightRow | None]:
    """The rows of ``weights`` [O, K]; None for one that is on no lattice."""
    numbers = np.asarray(weights, np.float64)
    sizes = np.abs(numbers)
    largest = sizes.max(axis=1, initial=0.0)
    smallest = np.where(sizes > 0, sizes, np.inf).min(axis=1, initial=np.inf)
    # ±α and 0: the lattice of unit α, all rows at once. Otherwise as the general case has it.
    with np.errstate(invalid="ignore"):
        plain = (largest - smallest <= _LATTICE_TOLERANCE * largest) & np.isfinite(largest) & (largest > 0)
    exact = np.all((sizes == 0) | (sizes == smallest[:, None]), axis=1)
    upward, downward = (numbers > 0).sum(axis=1), -(numbers < 0).sum(axis=1)
    return [
        WeightRow(float(unit), bool(is_exact), int(up), int(down), 1) if is_plain else _general_row(row)
        for row, is_plain, unit, is_exact, up, down in zip(
            numbers, plain, smallest, exact, upward, downward, strict=True
        )
    ]


def _general_row(numbers: Array) -> WeightRow | None:
    lattice = _lattice(numbers)
    if lattice is None:
        return None
    integers = lattice.integers
    upward, downward = int(integers[integers > 0].sum()), int(integers[integers < 0].sum())
    step = math.gcd(*(int(value) for value in np.unique(np.abs(integers))), 0)
    return WeightRow(lattice.unit, lattice.exact, upward, downward, step)


def weighted_sums(
    data: Mixture,
    rows: Sequence[WeightRow | None],
    terms: int,
    result: Var,
    *,
    axis: int | None,
    partial: bool = False,
    empty: bool = False,
) -> Mixture:
    """Σ w·x per output channel, of ``terms`` terms, for weights ``rows`` (:func:`weight_rows`) and x from ``data``.

    ``axis`` is the result's axis of output channels. ``partial``: terms may be missing at a border; ``empty``: all may.
    """
    dtype = data.points.dtype
    atoms = data.flat_points()
    zero_inside = empty or 0.0 in atoms
    if not data.is_discrete or len(atoms) > _MOST_ATOMS:
        found = continuum(result, dtype)
        lattice = any(row is not None for row in rows)
        if not data.is_continuous and all(row is not None for row in rows):
            found = replace(found, sources=None, unknown=True)
        saturated = data.is_continuous and bool(np.any(atoms != 0)) and terms <= _FEW_TERMS
        unknown = lattice and (data.unknown or saturated or not data.is_continuous)
        if unknown:
            return replace(found, unknown=True)
        empty_row = any(row is not None and row.is_empty for row in rows)
        return _with_zero(found) if zero_inside or data.unknown or empty_row else found
    inputs = _lattice(np.append(atoms, 0.0) if partial else atoms)
    spans = _spans(rows, inputs) if inputs is not None else []
    if inputs is None or None in spans:
        found = continuum(result, dtype)
        cancels = any(span is not None and _zero_in(span) for span in spans)
        coarse = inputs is None and any(row is not None for row in rows)
        return _with_zero(found) if zero_inside or cancels or coarse else found
    known = [(row, span) for row, span in zip(rows, spans, strict=True) if row is not None and span is not None]
    sums = _all_sums(known, inputs, dtype, axis)
    if sums is not None:
        return _with_zero(sums) if empty else sums
    found = continuum(result, dtype)
    return _with_zero(found) if empty or any(_zero_in(span) for _, span in known) else found


def _all_sums(
    rows: list[tuple[WeightRow, _Span]], inputs: _Lattice, dtype: np.dtype[np.generic], axis: int | None
) -> Mixture | None:
    """Every sum, where float arithmetic gives it exactly; else None."""
    most = max(((high - low) // step + 1 for _, (low, high, step) in rows), default=0)
    exact = inputs.exact and all(
        row.exact and _is_exact(row.unit, inputs.unit, max(-low, high), dtype) for row, (low, high, _) in rows
    )
    if not exact or most > MAX_POINTS:
        return None
    if len({(row.unit, *span) for row, span in rows}) == 1:
        rows, axis = rows[:1], None
    if (axis is None and len(rows) > 1) or most * len(rows) > MAX_POINTS:
        return Mixture(no_points(dtype), unknown=True)
    steps = np.arange(most)
    points = [
        row.unit * inputs.unit * (low + step * np.minimum(steps, (high - low) // step))
        for row, (low, high, step) in rows
    ]
    return Mixture(np.asarray(points, dtype), axis)


def _spans(rows: Sequence[WeightRow | None], inputs: _Lattice) -> list[_Span | None]:
    """The smallest and the largest sum of each row, and the step between sums, in units of the two lattices."""
    integers = inputs.integers
    low, high = (int(integers.min()), int(integers.max())) if len(integers) else (0, 0)
    spread = int(np.gcd.reduce(integers - low)) if len(integers) else 0

    def span(row: WeightRow) -> _Span:
        smallest, largest = row.upward * low + row.downward * high, row.upward * high + row.downward * low
        return smallest, largest, max(spread * row.step, 1)

    return [None if row is None else span(row) for row in rows]


def _zero_in(span: _Span) -> bool:
    low, high, step = span
    return low <= 0 <= high and low % step == 0


def _is_exact(unit: float, other: float, reach: int, dtype: np.dtype[np.generic]) -> bool:
    """Whether all multiples of the product up to ``reach`` are floats of ``dtype``."""
    bits = _SIGNIFICAND_BITS.get(dtype.name, 63)
    return significand_bits(unit) + significand_bits(other) + reach.bit_length() <= bits


def significand_bits(value: float) -> int:
    """How many bits the significand of a finite float takes: 1 for powers of two, 0 for 0."""
    significand = int(math.frexp(value)[0] * 2.0**53)
    return (significand // (significand & -significand)).bit_length() if significand else 0


def _lattice(values: Array) -> _Lattice | None:
    """``values`` as integers below ``_LARGEST_STEP`` times a unit, or None."""
    numbers = np.asarray(values, np.float64)
    if not np.all(np.isfinite(numbers)):
        return None
    sizes = np.unique(np.abs(numbers))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return _Lattice(1.0, np.zeros(len(numbers), np.int64), exact=True)
    # α's last bits differ within a channel: such magnitudes are one.
    sizes = sizes[np.append(True, np.diff(sizes) > _LATTICE_TOLERANCE * sizes[-1])]
    if len(sizes) > _LARGEST_STEP:
        return None
    unit = float(sizes[-1])
    for size in sizes[::-1]:
        unit = _common_divisor(unit, float(size), _LATTICE_TOLERANCE * float(sizes[-1]))
        if unit * _LARGEST_STEP < sizes[-1]:
            return None
    # The divisor has the errors of the divisions: of the smallest number, the unit's own digits are left.
    unit = float(sizes[0]) / round(float(sizes[0]) / unit)
    integers = np.rint(numbers / unit)
    if np.any(np.abs(integers * unit - numbers) > _LATTICE_TOLERANCE * sizes[-1]):
        return None
    return _Lattice(unit, integers.astype(np.int64), bool(np.all(integers * unit == numbers)))


def _common_divisor(left: float, right: float, tolerance: float) -> float:
    """Euclid's, of positive floats: remainders below ``tolerance`` are 0."""
    while right > tolerance:
        remainder = math.fmod(left, right)
        left, right = right, 0.0 if right - remainder <= tolerance else remainder
    return left


def _with_zero(found: Mixture) -> Mixture:
    """``found`` and the atom 0."""
    zero = np.zeros((len(found.points), 1), found.points.dtype)
    return replace(found, points=np.concatenate([found.points, zero], axis=1))
