"""Exact thresholds: for a monotone chain g of float operations, the x at which g(x) passes a limit.

A sign behind batch-norm asks whether g(x) = fl(fl(x·s) + t) reaches 0. Rounding is monotone, so every operation here is
monotone in x even in floating point, and {x : g(x) >= limit} is a half-line whose end is one float. Bisection over the
ordered float32 bit patterns finds that float exactly: comparing x with it equals evaluating the chain, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnn_compiler.constants import Array

Chain = Callable[[Array], Array]
Test = Callable[[Array], Array]


@dataclass(frozen=True)
class ChannelThresholds:
    """Per channel: the test holds iff direction·x >= threshold (direction ±1, float32[C]; threshold float32[C])."""

    direction: Array
    threshold: Array


def solve_thresholds(chain: Chain, test: Test, channels: int) -> ChannelThresholds | None:
    """Half-lines on which ``test(chain(x))`` holds, one per channel, or None if the test is not monotone in x.

    ``chain`` maps float32[C] to float32[C], monotone per channel in either direction; ``test`` maps that to bool[C] and
    is upward closed (>= or >) or downward closed.
    """
    top = np.full(channels, np.finfo(np.float32).max, np.float32)
    with np.errstate(all="ignore"):
        at_top, at_bottom = test(chain(top)), test(chain(-top))
    direction = np.where(at_bottom & ~at_top, np.float32(-1), np.float32(1))

    def holds(order: Array) -> Array:
        with np.errstate(all="ignore"):
            return test(chain(direction * float_at(order)))

    low = np.full(channels, order_of(np.float32(-top[0])), np.int64)
    high = np.full(channels, order_of(top[0]), np.int64)
    never = ~holds(high)
    always = holds(low)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        inside = holds(middle)
        high = np.where(inside, middle, high)
        low = np.where(inside, low, middle)
    if np.any(holds(high) == never) or np.any(holds(low) & ~always):
        return None
    threshold = np.where(never, np.float32(np.inf), np.where(always, np.float32(-np.inf), float_at(high)))
    return ChannelThresholds(direction, threshold.astype(np.float32))


def order_of(value: np.float32) -> int:
    """Position of a float32, ±∞ included, in the order of all floats: adjacent floats differ by one, ±0 share 0."""
    bits = int(np.asarray(value, np.float32).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF)


def float_at(order: Array) -> Array:
    """The float32 at each position of ``order_of``, int64."""
    magnitude = np.abs(order).astype(np.int32).view(np.float32)
    return np.where(order < 0, -magnitude, magnitude).astype(np.float32)
