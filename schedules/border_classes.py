"""Border classes: which taps of a convolution lie outside the image, for each output pixel.

A 3x3 kernel with pad 1 has nine of them. Integer kernels look up what zero padding is worth per channel and class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.popcount import Alphabet, default_zero


def has_border_correction(
    geometry: ConvGeometry, alphabet: Alphabet, zero_padded: bool, zero: int | None = None
) -> bool:
    """Whether z depends on the border class: code 0 is not the activation 0 and cannot be told from padding."""
    ring_counts = (default_zero(alphabet) if zero is None else zero) != 0
    return ring_counts and zero_padded and any(geometry.pads)


def border_classes(geometry: ConvGeometry) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The class of each output pixel, int32 [OH·OW], and per class the taps outside, bool [classes, kh, kw]."""
    axes = []
    for axis, (size, out_size) in enumerate(
        [(geometry.height, geometry.out_height), (geometry.width, geometry.out_width)]
    ):
        starts = np.arange(out_size) * geometry.strides[axis] - geometry.pads[axis]
        taps = starts[:, None] + np.arange(geometry.kernel[axis])[None, :] * geometry.dilations[axis]
        outside = (taps < 0) | (taps >= size)
        axes.append(np.unique(outside, axis=0, return_inverse=True))
    (row_outside, row_class), (column_outside, column_class) = axes
    classes = row_class.reshape(-1, 1) * len(column_outside) + column_class.reshape(1, -1)
    outside = row_outside[:, None, :, None] | column_outside[None, :, None, :]
    return classes.reshape(-1).astype(np.int32), outside.reshape(-1, *geometry.kernel)
