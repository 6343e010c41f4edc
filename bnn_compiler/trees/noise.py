"""Gumbel noise as integers, for drawing from a Boltzmann distribution by taking a minimum."""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext

import numpy as np
import numpy.typing as npt

_BITS = 10
SCALE = 1 << 8


@functools.cache
def gumbel_table() -> npt.NDArray[np.int64]:
    """-ln(-ln u) in units of 1/256 at the midpoints u of 1024 equal intervals, int64[1024].

    In decimal arithmetic, because libraries of floating-point logarithms differ in the last bit between machines.
    """
    with localcontext() as context:
        context.prec = 25
        size = 1 << _BITS
        table = [
            int((-(-((Decimal(2 * index + 1) / (2 * size)).ln())).ln() * SCALE).to_integral_value())
            for index in range(size)
        ]
    return np.array(table, np.int64)


def heat(mismatches: float) -> int:
    """A temperature, given in mismatches, in the unit of the kernels: 2^-16 of a mismatch per unit of noise."""
    return round(mismatches * (1 << 16) / SCALE)
