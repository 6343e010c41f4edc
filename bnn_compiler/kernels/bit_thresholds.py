"""From a layer's float epilogue and its reader's comparison to one integer threshold per channel.

A layer gives y = float(z)·scale + bias, its only reader takes the bit [y predicate t]. Both are evaluated, in the
kernels' own arithmetic, for every integer z that the layer can give; where the bit changes at most once in a channel it
is [z >= T], or the opposite. Nothing is assumed of the signs of scales, of rounding, of ties or of infinite thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.kernels.layer_kernels import OutputMap, pack_rule
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.popcount import planes
from bnn_compiler.schedules.reference import binarise, epilogue_reference


@dataclass(frozen=True, eq=False)
class BitThresholds:
    """Channel c gives the bit [z >= bounds[c]], or the opposite where ``inverted[c]``; int64[O] and bool[O]."""

    bounds: Array
    inverted: Array


def bit_thresholds(mapped: OutputMap, largest: int, reader: BinarySpec, *, fused: bool) -> BitThresholds | None:
    """The integer thresholds of a layer with |z| <= ``largest``; None where the reader's bit is no threshold of z.

    ``fused`` says that the kernels multiply and add with one rounding.
    """
    rule, parameters = pack_rule(reader)
    if reader.geometry is None or planes(rule.alphabet) > 1:
        return None
    channels = len(mapped.scale)
    bounds, inverted = np.zeros(channels, np.int64), np.zeros(channels, np.bool_)
    z = np.arange(-largest, largest + 1, dtype=np.int32)
    for channel in range(channels):
        scale, bias = (None if array is None else array[channel] for array in (mapped.scaled, mapped.bias))
        y = epilogue_reference(z, scale, bias, fused=fused)
        (bits,) = binarise(y, rule, tuple(parameter[channel] for parameter in parameters), fused=fused)
        changes = np.flatnonzero(bits[1:] != bits[:-1])
        if len(changes) > 1:
            return None
        # Where the bit never changes no number reaches the bound, and the first bit is every bit.
        bounds[channel] = z[changes[0] + 1] if len(changes) else largest + 1
        inverted[channel] = bits[0]
    return BitThresholds(bounds, inverted)
