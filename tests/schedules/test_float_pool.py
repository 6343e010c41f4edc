"""Pools against ONNX Runtime: maxima exactly, averages to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tvm import relax

from bnn_compiler.schedules.float_pool import average_weights
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.target import parse_target
from tests.schedules.float_harness import EPSILON, FLOAT_CPUS, FOREIGN_TARGETS, Layer, node, normal

WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [1, 3], "pads": [0, 1, 2, 0]},
    {"kernel_shape": [5, 5], "strides": [1, 1], "pads": [2, 2, 2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 0, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [1, 1]},
    {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [2, 2, 2, 2]},
    {"kernel_shape": [6, 5], "strides": [1, 2]},
]
SHAPES = [(1, 3, 12, 12), (2, 5, 17, 9), (1, 1, 7, 40)]


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool(window: dict[str, Any], shape: tuple[int, ...], cpu: str) -> None:
    # All negative: padding must not win.
    layer = Layer((node("MaxPool", "x", **window),), -np.abs(normal(shape)), {})
    assert np.array_equal(layer.run(cpu), layer.reference())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count_padding", [0, 1])
@pytest.mark.parametrize("window", [window for window in WINDOWS if "ceil_mode" not in window])
def test_average_pool(window: dict[str, Any], count_padding: int, shape: tuple[int, ...]) -> None:
    layer = Layer((node("AveragePool", "x", count_include_pad=count_padding, **window),), normal(shape), {})
    # At most 25 values of about 1 and one product with a rounded reciprocal.
    np.testing.assert_allclose(layer.run(FLOAT_CPUS[0]), layer.reference(), rtol=0, atol=27 * EPSILON)


def test_average_pool_of_a_whole_map() -> None:
    layer = Layer((node("AveragePool", "x", kernel_shape=[7, 9], strides=[7, 9]),), normal((2, 3, 7, 9)), {})
    # The sum of 63 values of about 1, divided by 63.
    np.testing.assert_allclose(layer.run(FLOAT_CPUS[0]), layer.reference(), rtol=0, atol=10 * EPSILON)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_one_dimension(op: str) -> None:
    layer = Layer((node(op, "x", kernel_shape=[3], strides=[2], pads=[1, 0]),), normal((2, 3, 25)), {})
    np.testing.assert_allclose(layer.run(FLOAT_CPUS[0]), layer.reference(), rtol=0, atol=5 * EPSILON)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (3, 2), (1, 4), (5, 7)])
def test_a_row_of_few_windows(size: tuple[int, int], cpu: str) -> None:
    """The last map of VGG16 is 2x2: one window, less than a vector of any target."""
    kernel = [min(2, extent) for extent in size]
    layer = Layer((node("MaxPool", "x", kernel_shape=kernel, strides=[2, 2]),), normal((1, 3, *size)), {})
    assert np.array_equal(layer.run(cpu), layer.reference())


@pytest.mark.parametrize("text", FOREIGN_TARGETS)
@pytest.mark.parametrize("size", [(2, 2), (4, 5)])
def test_a_row_of_few_windows_elsewhere(size: tuple[int, int], text: str) -> None:
    layer = Layer((node("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]),), normal((1, 3, *size)), {})
    target = parse_target(text).tvm_target
    assert relax.build(layer.lowered(target), target).mod.imports


def test_average_weights_in_ceil_mode() -> None:
    """Three pixels in windows of two: the last window hangs over the edge and averages one pixel."""
    geometry = ConvGeometry(1, 1, 1, 3, 1, (1, 2), strides=(1, 2), pads=(0, 0, 0, 1))
    assert average_weights(geometry, (0, 0, 0, 0), count_padding=True).tolist() == [[0.5, 1.0]]
    assert average_weights(geometry, (0, 0, 0, 1), count_padding=True).tolist() == [[0.5, 0.5]]
    assert average_weights(geometry, (0, 0, 0, 1), count_padding=False).tolist() == [[0.5, 1.0]]
