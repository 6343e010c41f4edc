"""Where an element of a resized axis lies on the axis that it is resized from, as ONNX Runtime computes it.

Everything is float32, operation by operation in ONNX Runtime's order: whether a coordinate is 2.5 or one ulp below
decides which element is the nearest one. With S the scale, L the length before and R after resizing, x = 0 … R - 1:

    asymmetric              x / S
    half_pixel              (x + 0.5) / S - 0.5
    pytorch_half_pixel      the same; 0 where R = 1
    tf_half_pixel_for_nn    (x + 0.5) / S
    align_corners           x (L - 1) / (R - 1); 0 where R = 1
    half_pixel_symmetric    half_pixel + L / 2 (1 - R / (S L)): what rounding R cuts off is cut off on both sides
    tf_crop_and_resize      a (L - 1) + x (b - a) (L - 1) / (R - 1) for the region of interest a … b of the axis;
                            its middle where R = 1

Source: https://onnx.ai/onnx/operators/onnx__Resize.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

CROP = "tf_crop_and_resize"
COORDINATE_MODES = frozenset(
    {
        "asymmetric",
        "half_pixel",
        "pytorch_half_pixel",
        "tf_half_pixel_for_nn",
        "align_corners",
        "half_pixel_symmetric",
        CROP,
    }
)
LEGACY = "legacy"
"""``nearest_mode`` of before operator set 11, which had no such attribute."""
NEAREST_MODES = frozenset({"round_prefer_floor", "round_prefer_ceil", "floor", "ceil", LEGACY})

_HALF, _ONE = np.float32(0.5), np.float32(1)
_HALFWAY = np.float32(1e-6)
"""ONNX Runtime takes coordinates nearer than this to the middle between two elements as being there: found by bisection
with version 1.32, between 2^-20 and the next float32."""


@dataclass(frozen=True)
class ResizedAxis:
    """One axis: its lengths, the scale (float32), and the part of it, 0 to 1, that is resized."""

    length: int
    resized: int
    scale: np.float32
    region: tuple[np.float32, np.float32] = (np.float32(0), np.float32(1))


def original_coordinates(axis: ResizedAxis, mode: str) -> Floats:
    """The coordinates [resized] of all elements, for a ``mode`` of ``COORDINATE_MODES``; not clipped to the axis."""
    x = np.arange(axis.resized, dtype=np.float32)
    length, resized, scale = np.float32(axis.length), np.float32(axis.resized), axis.scale
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + _HALF) / scale
    if mode == "align_corners":
        return x * (length - _ONE) / (resized - _ONE) if axis.resized > 1 else np.zeros_like(x)
    if mode == "pytorch_half_pixel" and axis.resized == 1:
        return np.zeros_like(x)
    if mode == CROP:
        first, last = axis.region
        if axis.resized > 1:
            return first * (length - _ONE) + (x * (last - first) * (length - _ONE)) / (resized - _ONE)
        return np.full_like(x, np.float64(0.5) * np.float64(first + last) * np.float64(length - _ONE))
    if mode == "half_pixel_symmetric":
        offset = length / np.float32(2) * (_ONE - resized / (scale * length))
        # The one formula that ONNX Runtime evaluates in double precision.
        exact: Any = np.float64(offset) + (x.astype(np.float64) + 0.5) / np.float64(scale) - 0.5
        return np.asarray(exact, np.float32)
    return (x + _HALF) / scale - _HALF


def nearest_elements(axis: ResizedAxis, coordinates: Floats, mode: str) -> Integers:
    """The element [resized] nearest to each coordinate by a ``mode`` of ``NEAREST_MODES``, clipped to the axis."""
    if mode == "floor":
        found = np.floor(coordinates)
    elif mode == "ceil":
        found = np.ceil(coordinates)
    elif mode == LEGACY:
        found = np.ceil(coordinates) if axis.scale < 1 else np.trunc(coordinates)
    else:
        below = np.floor(coordinates)
        rest = coordinates - below - _HALF
        up = rest >= 0 if mode == "round_prefer_ceil" else rest > 0
        found = below + np.where(
            np.abs(rest) < _HALFWAY, np.float32(mode == "round_prefer_ceil"), up.astype(np.float32)
        )
    return np.clip(found, 0, axis.length - 1).astype(np.int64)


def beyond_axis(axis: ResizedAxis, coordinates: Floats) -> npt.NDArray[np.bool_]:
    """Which coordinates [resized] lie beyond the first or the last element."""
    return (coordinates < 0) | (coordinates > np.float32(axis.length - 1))
