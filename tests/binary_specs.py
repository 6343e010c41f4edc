"""Small binary layers as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.geometry import ConvGeometry


def binary_conv(geometry: ConvGeometry, *, flip: float = 0.5, seed: int = 0, **changes: Any) -> BinarySpec:
    """A convolution of signs whose channels differ from a common vector with probability ``flip`` per weight."""
    random = np.random.default_rng(seed)
    shape = (geometry.out_channels, geometry.group_in_channels, *geometry.kernel)
    signs = (random.random((1, *shape[1:])) < 0.5) ^ (random.random(shape) < flip)
    spec = BinarySpec(
        input_shape=(geometry.batch, geometry.in_channels, geometry.height, geometry.width),
        prefix=(),
        suffix=(),
        predicate="ge",
        threshold=np.zeros((), np.float32),
        direction=None,
        low=-1.0,
        high=1.0,
        ring=None,
        geometry=geometry,
        rows=0,
        weights=np.where(signs, 1, -1).astype(np.float32),
        scale=None,
        bias=None,
    )
    return replace(spec, **changes)
