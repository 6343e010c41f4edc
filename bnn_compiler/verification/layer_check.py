"""Does one binary layer's output equal ONNX Runtime's, given the same input?

Both compute y = α·z + b per output channel, z an exact integer, |z| ≤ N. The artifact rounds twice: fl(fl(α·z) + b).
ONNX Runtime sums N products w_i·x_i = ±α(1 + δ) and b in floating point, in an order of its own, |δ| ≤ RESIDUE being
the rounding residue that exporters leave in weights; where x_i is ±1 up to rounding only (``residue``), that adds
MAX_RESIDUE to the bound on |δ|.

*Exact layers* (α a power of two, no residue, no bias): every partial sum is representable as long as N < 2^24, so both
sides are exact and the results must be equal, bit for bit (+0 equals -0).

*Other layers*: with u = 2^-24 and γ_n = n·u / (1 - n·u) (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1), a sum of n + 1 terms in any order errs by at most γ_n times the sum of the absolute terms, N·α + |b|;
each product adds one rounding, and the artifact's two roundings err by at most γ_2 times the same sum. Hence

    |y_artifact - y_reference| ≤ (γ_(N+2) + RESIDUE + γ_2) · (N·α + |b|)            (1)

That bound grows with N², and beyond N of about 2000 it exceeds the distance α between two integers. So a second
condition closes the gap: both sides must round to the same integer,

    round((y_artifact - b) / α) = round((y_reference - b) / α)                      (2)

Rounding errors of sums behave like a random walk, so the actual error is near sqrt(N)·u·N·α, 0.02 α at N = 4608, and
(2) does not fail by accident. It says nothing where b drowns α, when u·|b| alone is an eighth of α: such channels are
excluded from (2), and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnn_compiler.layers import BinaryLayer
from bnn_compiler.recognition.step_function import MAX_RESIDUE
from bnn_compiler.report import LayerCheckReport
from bnn_compiler.verification.reference import Array

UNIT_ROUNDOFF = 2.0**-24
RESIDUE = 2.0**-20
"""Relative spread of |w| within a channel that is still taken for one α: a few ulp of float32."""


@dataclass(frozen=True)
class LayerCheck:
    """The outcome for one layer; ``first`` is the index of the first wrong element, with both values."""

    name: str
    exact: bool
    elements: int
    mismatches: int
    max_abs_error: float
    bound: float
    undecidable_channels: int = 0
    first: tuple[tuple[int, ...], float, float] | None = None

    @property
    def passed(self) -> bool:
        """Whether every element agrees."""
        return self.mismatches == 0

    def describe_failure(self) -> str:
        """One sentence on what differs."""
        if self.first is None:
            return f"layer {self.name!r} could not be compared"
        index, actual, expected = self.first
        return (
            f"layer {self.name!r} differs from ONNX Runtime in {self.mismatches} of {self.elements} values; "
            f"the first is {list(index)}: {actual:.9g}, expected {expected:.9g}"
        )

    def to_report(self) -> LayerCheckReport:
        """Return the entry of the report."""
        return {
            "name": self.name,
            "exact": self.exact,
            "elements": self.elements,
            "mismatches": self.mismatches,
            "max_abs_error": self.max_abs_error,
            "bound": self.bound,
        }


def gamma(n: int) -> float:
    """Higham's γ_n for float32; 1 (no statement) once n·u reaches a half."""
    product = n * UNIT_ROUNDOFF
    return product / (1.0 - product) if product < 0.5 else 1.0


def error_bound(layer: BinaryLayer) -> Array:
    """Right-hand side of (1) per output channel, float64[Cout]; zeros for an exact layer."""
    scale = np.abs(layer.scale.astype(np.float64))
    if layer.exact:
        return np.zeros_like(scale)
    bias = np.zeros_like(scale) if layer.bias is None else np.abs(layer.bias.astype(np.float64))
    residue = RESIDUE + (MAX_RESIDUE if layer.rounded else 0.0)
    terms = layer.fan_in * layer.reach * scale + bias
    return np.asarray((gamma(layer.fan_in + 2) + residue + gamma(2)) * terms)


def check_layer(layer: BinaryLayer, actual: Array, expected: Array) -> LayerCheck:
    """Compare the artifact's output of ``layer`` with the reference's, both float32 of the same shape."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        index = (0,) * expected.ndim
        return LayerCheck(
            layer.name, layer.exact, expected.size, expected.size, float("inf"), 0.0, 0,
            (index, float("nan"), float(expected.flat[0]) if expected.size else 0.0),
        )  # fmt: skip
    shape = [1] * expected.ndim
    shape[layer.channel_axis] = -1
    bound = error_bound(layer)
    if layer.exact:
        wrong = actual != expected
        undecidable = 0
    else:
        scale = np.abs(layer.scale.astype(np.float64))
        bias = np.zeros_like(scale) if layer.bias is None else layer.bias.astype(np.float64)
        decidable = UNIT_ROUNDOFF * np.abs(bias) < scale / 8
        undecidable = int((~decidable).sum())
        safe = np.where(decidable, scale, 1.0).reshape(shape)
        offset = bias.reshape(shape)
        rounded = [np.rint((side.astype(np.float64) - offset) / safe) for side in (actual, expected)]
        wrong = (rounded[0] != rounded[1]) & decidable.reshape(shape)
        # Written so that a NaN on either side is wrong.
        wrong |= ~(np.abs(actual.astype(np.float64) - expected.astype(np.float64)) <= bound.reshape(shape))
    error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
    first = None
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        first = (index, float(actual[index]), float(expected[index]))
    largest = float(np.nan_to_num(error, nan=np.finfo(np.float64).max).max(initial=0.0))
    return LayerCheck(
        layer.name,
        layer.exact,
        expected.size,
        int(wrong.sum()),
        largest,
        float(bound.max(initial=0.0)),
        undecidable,
        first,
    )
