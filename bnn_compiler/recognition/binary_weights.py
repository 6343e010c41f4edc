"""Is a weight tensor binary, that is w[c, …] = ±α_c with one α_c > 0 per output channel?

Conditions, each with the reason reported when it fails:

1. No weight is zero or non-finite (``weights_contain_zero``): a ternary weight has no sign. Where the others miss
   condition 2, that is the reason: zero is only one of many values.
2. |w| is the same within each output channel up to ``TOLERANCE_ULP`` units in the last place, because exporters leave
   rounding residue (``weights_not_two_valued``; ``weights_scaled_per_input`` if |w| depends on the input channel
   alone).
3. Both signs occur in the layer (``weights_constant``): a box filter is not a binary layer.

Each channel is judged on its own: folding batch-norm spreads α over orders of magnitude (5174× within one layer of
VGG16).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnn_compiler.constants import Array

# Folding sign(W)·α·γ/σ takes a few roundings, each worth up to one unit; measured residue is 2e-7 relative (< 2 ulp).
TOLERANCE_ULP = 8


@dataclass(frozen=True)
class BinaryWeights:
    """``signs`` bool[O, …] (True for +), ``alpha`` float64[O] > 0, ``exact``: every |w| of a channel equals its α."""

    signs: Array
    alpha: Array
    exact: bool


@dataclass(frozen=True)
class NotBinary:
    """Why a weight tensor is not binary: a reason code and the evidence for a person."""

    reason: str
    detail: str


def analyse_weights(weights: Array) -> BinaryWeights | NotBinary:
    """Decide whether ``weights`` (output channels first, any float or integer dtype) is binary."""
    flat = weights.reshape(weights.shape[0], -1)
    magnitude = np.abs(flat)
    if not flat.size:
        return NotBinary("weights_contain_zero", "there are no weights")
    if not np.all(np.isfinite(flat)):
        count = int(np.count_nonzero(~np.isfinite(flat)))
        return NotBinary("weights_contain_zero", f"{count} of {flat.size} weights are not finite")
    zero = magnitude == 0
    high = magnitude.max(axis=1)
    low = np.where(zero, high[:, None], magnitude).min(axis=1)
    epsilon = np.finfo(flat.dtype).eps if np.issubdtype(flat.dtype, np.floating) else 0.0
    spread = (high.astype(np.float64) - low) / np.where(high > 0, high, 1)
    uneven = spread > TOLERANCE_ULP * epsilon
    if zero.any() and uneven.any():
        return NotBinary(
            "weights_not_two_valued",
            f"weights of more than two values in output channel {int(np.argmax(spread))}, 0 among them",
        )
    if zero.any():
        return NotBinary("weights_contain_zero", f"{int(np.count_nonzero(zero))} of {flat.size} weights are zero")
    if uneven.any():
        return _uneven(weights, int(np.argmax(spread)), float(spread.max()))
    signs = weights > 0
    if signs.all() or not signs.any():
        return NotBinary("weights_constant", "all weights have the same sign")
    exact = bool(np.array_equal(low, high))
    alpha = high.astype(np.float64) if exact else magnitude.mean(axis=1, dtype=np.float64)
    return BinaryWeights(signs, alpha, exact)


def _uneven(weights: Array, channel: int, spread: float) -> NotBinary:
    magnitude = np.abs(weights)
    per_input = (
        weights.ndim > 1
        and weights.shape[1] > 1
        and np.array_equal(
            magnitude,
            np.broadcast_to(magnitude[:1, :].max(axis=tuple(range(2, weights.ndim)), keepdims=True), weights.shape),
        )
    )
    if per_input:
        return NotBinary("weights_scaled_per_input", "|w| depends on the input channel, not on the output channel")
    return NotBinary("weights_not_two_valued", f"|w| varies by {100 * spread:.3g} % in output channel {channel}")
