"""From a layer's float epilogue and its reader's comparison to one integer threshold per channel.

A layer gives y = float(z)·scale + bias, the network makes v = f(y) of it, takes a maximum where there is a max-pool,
and its reader takes the bit b = [g(max v) predicate t]. All is evaluated, in the kernels' and the model's own
arithmetic, for every integer z that the layer can give.

1. Where b changes at most once over z, in a channel, it is [z >= T], or the opposite. Nothing is assumed of the signs
   of scales, of rounding, of ties or of infinite thresholds.
2. With a max-pool, b must also change at most once over the values v in ascending order, none of which is NaN. Where
   it grows with v, the bit of the largest v is the OR of all bits of the window, where it falls their AND.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.kernels.bit_paths import BitPath
from bnn_compiler.kernels.layer_kernels import OutputMap, pack_rule
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.popcount import planes
from bnn_compiler.schedules.reference import binarise, epilogue_reference


@dataclass(frozen=True, eq=False)
class BitThresholds:
    """Channel c gives the bit [z >= bounds[c]], or the opposite where ``inverted[c]``; int64[O] and bool[O].

    A max-pool joins the bits of a window by OR, or by AND where ``joined_by_and[c]``.
    """

    bounds: Array
    inverted: Array
    joined_by_and: Array


def bit_thresholds(
    mapped: OutputMap, largest: int, reader: BinarySpec, path: BitPath | None = None, *, fused: bool
) -> BitThresholds | None:
    """The integer thresholds of a layer with |z| <= ``largest``; None where the reader's bit is no threshold of z.

    ``path`` is what stands in between. ``fused`` says that the kernels multiply and add with one rounding.
    """
    rule, parameters = pack_rule(reader)
    if planes(rule.alphabet) > 1:
        return None
    path = path or BitPath()
    z = np.arange(-largest, largest + 1, dtype=np.int32).reshape(-1, 1)
    channels = len(mapped.scale)
    y = np.broadcast_to(epilogue_reference(z, mapped.scaled, mapped.bias, fused=fused), (len(z), channels))
    values = path.before(y)
    (bits,) = binarise(path.after(values), rule, parameters, fused=fused)
    changes = bits[1:] != bits[:-1]
    if np.any(changes.sum(axis=0) > 1):  # 1
        return None
    joined_by_and = np.zeros(channels, np.bool_)
    if path.pool is not None:  # 2
        ascending = np.take_along_axis(bits, np.argsort(values, axis=0, kind="stable"), axis=0)
        if np.isnan(values).any() or np.any((ascending[1:] != ascending[:-1]).sum(axis=0) > 1):
            return None
        joined_by_and = ascending[0] & ~ascending[-1]
    # Where the bit never changes no number reaches the bound, and the first bit is every bit.
    bounds = np.where(changes.any(axis=0), z[np.argmax(changes, axis=0) + 1, 0], largest + 1)
    return BitThresholds(bounds.astype(np.int64), bits[0], joined_by_and)
