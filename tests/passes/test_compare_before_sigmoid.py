from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.constants import op_name
from bnn_compiler.passes import CompareBeforeSigmoid
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

COMPARISONS = ("greater", "greater_equal", "less", "less_equal")


def _module(function: str, comparison: str, bound: Any, *, swapped: bool = False, shared: bool = False) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4096), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = builder.emit(getattr(relax.op, function)(x))
            operands = [relax.const(bound), value] if swapped else [value, relax.const(bound)]
            passed = builder.emit(relax.op.astype(builder.emit(getattr(relax.op, comparison)(*operands)), "float32"))
            output = builder.emit_output(relax.op.add(passed, value) if shared else passed)
        builder.emit_func_output(output)
    return builder.get()


def _operators(module: tvm.IRModule) -> list[str]:
    return [op_name(binding.value) for block in module["main"].body.blocks for binding in block.bindings]


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("function", "middle"), [("sigmoid", 0.5), ("tanh", 0.0)])
def test_the_argument_is_compared(function: str, middle: float, comparison: str, swapped: bool) -> None:
    module = _module(function, comparison, np.float32(middle), swapped=swapped)
    rewritten = applied(module, CompareBeforeSigmoid())
    assert f"relax.{function}" not in _operators(rewritten)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(4096) * 10.0 ** rng.uniform(-9, 3, 4096)).astype(np.float32)
    x[:10] = [0, -0.0, 2**-23, -(2**-23), 2**-24, -(2**-25), np.inf, -np.inf, 1e-30, np.nan]
    # The reference is the correctly rounded function.
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        value = (1 / (1 + np.exp(-wide)) if function == "sigmoid" else np.tanh(wide)).astype(np.float32)
    operands = (np.float32(middle), value) if swapped else (value, np.float32(middle))
    expected = getattr(np, comparison)(*operands)
    np.testing.assert_array_equal(run_by_default(rewritten, x[None])[0], expected.astype(np.float32))


def test_other_numbers_and_maps_are_left_alone() -> None:
    for bound in (np.float32(0.4), np.float32(np.nan), np.full((1, 4096), 0.5, np.float32)):
        module = _module("sigmoid", "greater", bound)
        assert "relax.sigmoid" in _operators(applied(module, CompareBeforeSigmoid()))


def test_a_sigmoid_with_another_reader_stays_for_that() -> None:
    rewritten = applied(_module("sigmoid", "greater", np.float32(0.5), shared=True), CompareBeforeSigmoid())
    assert _operators(rewritten).count("relax.sigmoid") == 1
