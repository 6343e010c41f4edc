"""Small binary layers as data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bnn_compiler.constants import Array
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.geometry import ConvGeometry


def binary_conv(geometry: ConvGeometry, *, flip: float = 0.5, seed: int = 0, **changes: Any) -> BinarySpec:
    """A convolution of signs whose channels differ from a common vector with probability ``flip`` per weight."""
    weights = _weights((geometry.out_channels, geometry.group_in_channels, *geometry.kernel), flip, seed)
    input_shape = (geometry.batch, geometry.in_channels, geometry.height, geometry.width)
    return _layer(input_shape, weights, geometry=geometry, **changes)


def binary_dense(rows: int, in_features: int, out_features: int, *, seed: int = 0, **changes: Any) -> BinarySpec:
    """A matrix product of signs with random signs."""
    weights = _weights((out_features, in_features), 0.5, seed).T.copy()
    return _layer((rows, in_features), weights, rows=rows, **changes)


def _weights(shape: tuple[int, ...], flip: float, seed: int) -> Array:
    random = np.random.default_rng(seed)
    signs = (random.random((1, *shape[1:])) < 0.5) ^ (random.random(shape) < flip)
    return np.where(signs, 1, -1).astype(np.float32)


def _layer(input_shape: tuple[int, ...], weights: Array, **changes: Any) -> BinarySpec:
    spec = BinarySpec(
        input_shape=input_shape,
        prefix=(),
        suffix=(),
        predicate="ge",
        threshold=np.zeros((), np.float32),
        direction=None,
        low=-1.0,
        high=1.0,
        ring=None,
        geometry=None,
        rows=0,
        weights=weights,
        scale=None,
        bias=None,
    )
    return replace(spec, **changes)
