"""Max-pools in front of monotone work: where they move, where not, and that results stay the same bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.constants import op_name
from bnn_compiler.passes.hoist_max_pool import HoistMaxPool
from bnn_compiler.schedules.geometry import ConvGeometry, windows_hold_pixels
from tests.relax_run import run_by_default
from tests.schedules.float_harness import normal
from tests.small_relax_modules import applied

Build = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]
SHAPE = (1, 3, 9, 9)


def positive(*shape: int) -> relax.Constant:
    return relax.const(np.abs(normal(shape)) + np.float32(0.1))


def network(work: Build, **window: Any) -> tvm.IRModule:
    """conv2d, ``work``, max_pool2d."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            conv = builder.emit(relax.op.nn.conv2d(x, relax.const(normal((4, 3, 3, 3)))))
            worked = builder.emit(work(builder, conv))
            pooled = relax.op.nn.max_pool2d(worked, **{"pool_size": 3, "strides": 2, "padding": 1} | window)
            result = builder.emit_output(pooled)
        builder.emit_func_output(result)
    return builder.get()


def operators(module: tvm.IRModule) -> list[str]:
    return [op_name(binding.value) for block in module["main"].body.blocks for binding in block.bindings]


def affine_relu(builder: relax.BlockBuilder, conv: relax.Var) -> relax.Expr:
    scaled = builder.emit(relax.op.multiply(positive(1, 4, 1, 1), conv))
    shifted = builder.emit(relax.op.add(scaled, relax.const(normal((4, 1, 1)))))
    return relax.op.subtract(builder.emit(relax.op.nn.relu(shifted)), relax.const(np.float32(0.3)))


def test_moves_in_front_of_monotone_work() -> None:
    module = network(affine_relu)
    hoisted = applied(module, HoistMaxPool())
    names = [name.removeprefix("relax.") for name in operators(hoisted) if name]
    assert names == ["nn.conv2d", "nn.max_pool2d", "multiply", "add", "nn.relu", "subtract"]
    x = normal(SHAPE, 3)
    # Not within a tolerance: rounding is monotone.
    assert np.array_equal(run_by_default(hoisted, x), run_by_default(module, x))


def test_twice_is_once() -> None:
    once = applied(network(affine_relu), HoistMaxPool())
    tvm.ir.assert_structural_equal(applied(once, HoistMaxPool()), once, map_free_vars=True)


NOT_MONOTONE: dict[str, Build] = {
    "a negative factor": lambda _b, x: relax.op.multiply(
        x, relax.const(np.array([1, -1, 1, 1], np.float32)[:, None, None])
    ),
    "a factor 0, which makes NaN of infinity": lambda _b, x: relax.op.multiply(x, relax.const(np.float32(0))),
    "an infinite constant": lambda _b, x: relax.op.add(x, relax.const(np.float32(np.inf))),
    "a constant less the map": lambda _b, x: relax.op.subtract(relax.const(np.float32(1)), x),
    "a constant per pixel": lambda _b, x: relax.op.add(x, positive(1, 4, 7, 7)),
    "a constant per column": lambda _b, x: relax.op.add(x, positive(7)),
    "a sum of maps": lambda _b, x: relax.op.add(x, x),
    "another function": lambda _b, x: relax.op.abs(x),
}


@pytest.mark.parametrize("work", NOT_MONOTONE.values(), ids=NOT_MONOTONE.keys())
def test_stays_behind_other_work(work: Build) -> None:
    module = network(work)
    tvm.ir.assert_structural_equal(applied(module, HoistMaxPool()), module, map_free_vars=True)


def test_stays_where_another_operator_reads_the_map() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            conv = builder.emit(relax.op.nn.conv2d(x, relax.const(normal((4, 3, 3, 3)))))
            worked = builder.emit(relax.op.nn.relu(conv))
            pooled = builder.emit(relax.op.nn.max_pool2d(worked, pool_size=7))
            result = builder.emit_output(relax.op.add(worked, pooled))
        builder.emit_func_output(result)
    module = builder.get()
    tvm.ir.assert_structural_equal(applied(module, HoistMaxPool()), module, map_free_vars=True)


@pytest.mark.parametrize("window", [{"padding": 3}, {"strides": 5, "padding": [0, 0, 8, 8]}, {"dilation": 2}])
def test_stays_where_windows_may_be_empty(window: dict[str, Any]) -> None:
    """Padding alone gives minus infinity, of which a ReLU would make 0."""
    module = network(lambda _b, x: relax.op.nn.relu(x), **window)
    tvm.ir.assert_structural_equal(applied(module, HoistMaxPool()), module, map_free_vars=True)


def test_windows_hold_pixels() -> None:
    assert windows_hold_pixels(ConvGeometry(1, 1, 7, 7, 1, (3, 3), (2, 2), (2, 2, 2, 2)))
    assert not windows_hold_pixels(ConvGeometry(1, 1, 7, 7, 1, (3, 3), (2, 2), (3, 0, 0, 0)))
    assert not windows_hold_pixels(ConvGeometry(1, 1, 7, 7, 1, (3, 3), (4, 4), (0, 0, 0, 4)))
