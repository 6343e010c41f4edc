"""Geometry of a Relax convolution or pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bnn_compiler.schedules.geometry import ConvGeometry


def window_pads(attrs: Any) -> tuple[int, int, int, int]:
    """Padding (top, left, bottom, right) of a 1-D or 2-D operator."""
    pads = [int(pad) for pad in attrs.padding]
    top, left, bottom, right = pads if len(pads) == 4 else (0, pads[0], 0, pads[1])
    return (top, left, bottom, right)


def window_geometry(
    shape: Sequence[int], out_shape: Sequence[int], kernel: Sequence[int], attrs: Any, groups: int
) -> ConvGeometry:
    """Geometry of an operator on NCHW, or on NCW as one row.

    Where ceil mode gives more output than the padding allows, bottom and right padding grow to what the output needs.
    """
    rank = len(shape) - 2

    def pair(values: Sequence[int], absent: int) -> tuple[int, int]:
        numbers = [int(value) for value in values]
        return (numbers[0], numbers[1]) if rank == 2 else (absent, numbers[0])

    size, out_size = pair(shape[2:], 1), pair(out_shape[2:], 1)
    kernel_size, strides, dilations = pair(kernel, 1), pair(attrs.strides, 1), pair(attrs.dilation, 1)
    pads = list(window_pads(attrs))
    for axis in (0, 1):
        needed = (out_size[axis] - 1) * strides[axis] + (kernel_size[axis] - 1) * dilations[axis] + 1
        pads[axis + 2] = max(pads[axis + 2], needed - size[axis] - pads[axis])
    return ConvGeometry(
        batch=int(shape[0]),
        in_channels=int(shape[1]),
        height=size[0],
        width=size[1],
        out_channels=int(out_shape[1]),
        kernel=kernel_size,
        strides=strides,
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=dilations,
        groups=groups,
    )
