"""Reductions, softmax, exp and tanh."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.schedules.float_harness import EPSILON, FLOAT_CPUS, Layer, assert_sums_close, node, normal


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("shape", [(1, 5, 7, 7), (2, 3, 1, 1), (1, 2, 13, 20), (3, 1, 1, 65)])
@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_image(shape: tuple[int, ...], keep: int, cpu: str) -> None:
    layer = Layer((node("ReduceMean", "x", axes=[2, 3], keepdims=keep),), normal(shape), {})
    assert_sums_close(layer, cpu, shape[2] * shape[3] + 1)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 130])
def test_extremes_are_exact(op: str, length: int) -> None:
    layer = Layer((node(op, "x", axes=[-1]),), normal((3, length)), {})
    assert np.array_equal(layer.run(FLOAT_CPUS[0]), layer.reference())


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("shape", [(80,), (1, 1), (3, 33), (1, 1, 5, 7)])
def test_whole_tensors(shape: tuple[int, ...], keep: int) -> None:
    """No loop is left around the result and what is fused with it."""
    reduction = node("ReduceMean", "x", "m", axes=list(range(len(shape))), keepdims=keep)
    layer = Layer((reduction, node("Abs", "m")), normal(shape), {})
    assert_sums_close(layer, FLOAT_CPUS[0], math.prod(shape) + 1)


def test_mean_of_magnitudes_over_channels() -> None:
    """XNOR-Net's K: an axis that is not last, left to TVM's definition."""
    nodes = (node("Abs", "x", "a"), node("ReduceMean", "a", axes=[1]))
    assert_sums_close(Layer(nodes, normal((1, 20, 6, 7)), {}), FLOAT_CPUS[0], 21)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (4, 33), (2, 3, 64)])
def test_softmax(shape: tuple[int, ...], cpu: str) -> None:
    layer = Layer((node("Softmax", "x", axis=-1),), 20 * normal(shape), {})
    # 2 ulp for exp on either side, the sum's rounding, one product; and exp's argument, up to 100, is off by an ulp.
    np.testing.assert_allclose(layer.run(cpu), layer.reference(), rtol=200 * EPSILON, atol=1e-38)


def test_softmax_of_other_axis_falls_back() -> None:
    layer = Layer((node("Softmax", "x", axis=1),), normal((2, 5, 3)), {})
    np.testing.assert_allclose(layer.run(FLOAT_CPUS[0]), layer.reference(), rtol=20 * EPSILON)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
def test_exp_is_accurate(cpu: str) -> None:
    x = np.random.default_rng(0).uniform(-87.3, 88.7, (1, 20000)).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(Layer((node("Exp", "x"),), x, {}).run(cpu) - exact) / exact
    assert error.max() <= 2 * EPSILON


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
def test_tanh_is_accurate(cpu: str) -> None:
    x = np.concatenate([np.geomspace(1e-30, 20, 20000), -np.geomspace(1e-30, 20, 20000)]).astype(np.float32)[None]
    exact = np.tanh(x.astype(np.float64))
    error = np.abs(Layer((node("Tanh", "x"),), x, {}).run(cpu) - exact) / np.abs(exact)
    assert error.max() <= 4 * EPSILON


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize("op", ["Exp", "Sigmoid", "Tanh"])
def test_special_values(op: str, cpu: str) -> None:
    # Twice: once in a vector, once in the vector that overlaps it.
    special = [0, -0.0, 1, -1, np.nan, np.inf, -np.inf, 88.7, 88.8, 1000, -1000]
    layer = Layer((node(op, "x"),), np.array([special * 2], np.float32), {})
    # Below exp(-87.3) results are flushed to 0, or are subnormal in ONNX Runtime.
    np.testing.assert_allclose(layer.run(cpu), layer.reference(), rtol=4 * EPSILON, atol=2e-38)
