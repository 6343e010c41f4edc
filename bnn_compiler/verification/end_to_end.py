"""Outputs of the compiled network beside a reference's: how far apart, in how many elements, on how many inputs.

An output may differ by a tolerance times its largest absolute value. For an ordinary input that is the largest over all
ordinary inputs: on one of them all results may cancel to zero but for rounding. For an unusual one (zeros, integers) it
is its own, if that is larger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bnn_compiler.report import OutputCheckReport, OwnOutputReport
from bnn_compiler.verification.reference import Array
from bnn_compiler.verification.sample_inputs import Kind

RELATIVE_TOLERANCE = 1e-4
HALF_PRECISION_TOLERANCE = 16 * 2.0**-11
"""Of a float16 output: ONNX Runtime may round to half precision, by 2^-11, behind any operator, and does behind few."""
FLIP_TOLERANCE = 0.5


@dataclass(frozen=True)
class OutputCheck:
    """One output over all inputs; ``differing`` is the share of its elements that are beyond the tolerance."""

    name: str
    max_abs_error: float
    tolerance: float
    beyond_tolerance: int
    beyond_flip_tolerance: int
    differing: float = 0.0

    def to_report(self) -> OutputCheckReport:
        """Return the entry of the report."""
        return {
            "name": self.name,
            "max_abs_error": self.max_abs_error,
            "tolerance": self.tolerance,
            "inputs_beyond_tolerance": self.beyond_tolerance,
        }

    def to_own_report(self) -> OwnOutputReport:
        """Return the entry for the comparison with the model as it was given."""
        return {"name": self.name, "differing": self.differing, "max_abs_error": self.max_abs_error}


@dataclass(frozen=True)
class _Difference:
    """Of one output on one input: largest error, largest finite reference, and the elements that differ at all."""

    error: float
    scale: float
    kind: Kind
    elements: int
    errors: Array
    """Errors of the elements that differ, infinite where NaN, infinity or an integer differs."""


@dataclass
class EndToEnd:
    """Collects one input after the other, then judges; ``integer_only`` as in :mod:`.verify`.

    ``half`` names the outputs of type float16.
    """

    integer_only: bool
    differences: dict[str, list[_Difference]] = field(default_factory=dict)
    half: set[str] = field(default_factory=set)

    def add(
        self,
        actual: Mapping[str, Array],
        expected: Mapping[str, Array],
        unoptimised: Mapping[str, Array],
        kind: Kind = "ordinary",
    ) -> None:
        """Compare the outputs for one input; ``unoptimised`` are ONNX Runtime's without graph optimisation."""
        for name, reference in expected.items():
            self.integer_only = (
                self.integer_only and on_grid(reference) and np.array_equal(reference, unoptimised[name])
            )
            self.differences.setdefault(name, []).append(_difference(actual[name], reference, kind))
            if reference.dtype == np.float16:
                self.half.add(name)

    def outputs(self, kind: Kind | None = None) -> tuple[OutputCheck, ...]:
        """One entry per output, over all inputs or those of one kind."""
        return tuple(self._judge(name, each, kind) for name, each in self.differences.items())

    def _judge(self, name: str, every: Sequence[_Difference], kind: Kind | None) -> OutputCheck:
        usual = max((one.scale for one in every if one.kind == "ordinary"), default=0.0)
        each = [one for one in every if kind in (None, one.kind)]
        largest = max((one.error for one in each), default=0.0)
        relative = HALF_PRECISION_TOLERANCE if name in self.half else RELATIVE_TOLERANCE
        relative = 0.0 if self.integer_only else relative
        beyond = beyond_flip = wrong = 0
        for one in each:
            scale = usual if one.kind == "ordinary" else max(usual, one.scale)
            beyond += one.error > relative * scale
            beyond_flip += one.error > FLIP_TOLERANCE * scale
            wrong += int((one.errors > relative * scale).sum())
        elements = sum(one.elements for one in each)
        return OutputCheck(
            name,
            min(largest, float(np.finfo(np.float64).max)),
            relative * usual,
            int(beyond),
            int(beyond_flip),
            wrong / elements if elements else 0.0,
        )


def _difference(actual: Array, expected: Array, kind: Kind) -> _Difference:
    """NaN and infinities differ by infinity from all but themselves, as integers and booleans that are not equal do."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return _Difference(math.inf, 0.0, kind, expected.size, np.full(expected.size, math.inf))
    if expected.dtype.kind != "f":
        wrong = int((actual != expected).sum())
        return _Difference(math.inf if wrong else 0.0, 0.0, kind, expected.size, np.full(wrong, math.inf))
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    scale = float(np.abs(right[np.isfinite(right)]).max(initial=0.0))
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    left, right = left[~same], right[~same]
    numbers = np.isfinite(left) & np.isfinite(right)
    errors = np.where(numbers, np.abs(np.where(numbers, left, 0) - np.where(numbers, right, 0)), math.inf)
    return _Difference(float(errors.max(initial=0.0)), scale, kind, expected.size, errors)


def on_grid(values: Array) -> bool:
    """Whether all values are multiples of 2^-10 of moderate size, as sums of integers are and other floats are not."""
    if values.dtype.kind != "f":
        return values.dtype.kind in "iub"
    scaled = values.astype(np.float64) * 2.0**10
    return bool((np.abs(scaled) < 2.0**24).all() and (scaled == np.rint(scaled)).all())
