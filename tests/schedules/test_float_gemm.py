"""Float matrix products against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.schedules.float_harness import FLOAT_CPUS, Layer, assert_sums_close, node, normal

SIZES = [(1, 1, 1), (1, 500, 10), (1, 64, 1000), (3, 7, 5), (8, 32, 31), (15, 33, 64), (17, 100, 129)]


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_constant_weight(m: int, k: int, n: int, cpu: str) -> None:
    layer = Layer((node("Gemm", "x w b", transB=1),), normal((m, k)), {"w": normal((n, k), 1), "b": normal((n,), 2)})
    assert_sums_close(layer, cpu, k + 1)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize(("m", "k"), [(1, 3), (5, 17), (20, 33)])
def test_neither_operand_constant(m: int, k: int, cpu: str) -> None:
    """x times its own transpose: the kernel packs the right operand itself."""
    nodes = (node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t"))
    assert_sums_close(Layer(nodes, normal((m, k)), {}), cpu, k)


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
def test_stack_of_rows(cpu: str) -> None:
    layer = Layer((node("MatMul", "x w"),), normal((2, 3, 4, 19)), {"w": normal((19, 21), 1)})
    assert_sums_close(layer, cpu, 19)


def test_constant_left_operand() -> None:
    layer = Layer((node("MatMul", "w x"),), normal((19, 21)), {"w": normal((6, 19), 1)})
    assert_sums_close(layer, FLOAT_CPUS[0], 19)


def test_batched_product_falls_back() -> None:
    """No kernel of ours, TVM's definition then; the result is the same."""
    nodes = (node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t"))
    assert_sums_close(Layer(nodes, normal((3, 5, 7)), {}), FLOAT_CPUS[0], 7)


def test_large_integers_are_exact() -> None:
    """Sums below 2^24 have one exact value in every order of summation."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-100, 100, shape).astype(np.float32) for shape in ((9, 400), (400, 50)))
    layer = Layer((node("MatMul", "x w"),), x, {"w": w})
    assert np.array_equal(layer.run(FLOAT_CPUS[0]), x.astype(np.int64) @ w.astype(np.int64))
