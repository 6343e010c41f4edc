"""Fused element-wise work: it is vectorised whatever is in it, and computes what its operators say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from bnn_compiler.passes import float_pipeline
from bnn_compiler.target import parse_target
from tests.relax_run import Array, run_by_default

SHAPE = (1, 16, 8, 8)
op = relax.op
Emit = Callable[[relax.Expr], relax.Var]
Body = Callable[[Emit, relax.Var], relax.Expr]


def _number(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def _per_channel(seed: int) -> relax.Expr:
    return relax.const(np.random.default_rng(seed).uniform(0.5, 1, (1, 16, 1, 1)).astype(np.float32))


def _swish_and_sum(e: Emit, x: relax.Var) -> relax.Expr:
    return op.add(e(op.multiply(e(op.sigmoid(x)), x)), x)


def _gate(e: Emit, x: relax.Var) -> relax.Expr:
    gate = e(op.astype(e(op.greater(e(op.sigmoid(e(op.subtract(x, _per_channel(0))))), _number(0.6))), "float32"))
    other = e(op.multiply(e(op.subtract(_number(1), gate)), e(op.divide(x, _number(3)))))
    return op.multiply(e(op.add(other, e(op.multiply(gate, x)))), _per_channel(1))


def _quantise(e: Emit, x: relax.Var) -> relax.Expr:
    return op.subtract(e(op.multiply(e(op.round(e(op.divide(x, _number(0.25))))), _number(0.25))), _number(1))


def _tanh_and_sum(e: Emit, x: relax.Var) -> relax.Expr:
    return op.add(e(op.multiply(e(op.tanh(x)), _number(2))), x)


def _thermometer(e: Emit, x: relax.Var) -> relax.Expr:
    """Channels become channels times levels, through reshapes."""
    levels = relax.const(np.linspace(-1, 1, 4, dtype=np.float32).reshape(1, 1, 4, 1, 1))
    apart = e(op.reshape(x, (1, 16, 1, 8, 8)))
    bits = e(op.astype(e(op.less(levels, e(op.round(apart)))), "float32"))
    return op.reshape(e(op.subtract(e(op.multiply(bits, _number(2))), _number(1))), (1, 64, 8, 8))


def _joined(e: Emit, x: relax.Var) -> relax.Expr:
    return op.add(e(op.concat([x, e(op.negative(x))], 1)), _number(0.5))


def _doubling(e: Emit, x: relax.Var) -> relax.Expr:
    """Each step reads the one before twice: all in one expression would be a million additions."""
    for _ in range(20):
        x = e(op.add(e(op.multiply(x, _number(0.5))), e(op.multiply(x, _number(0.25)))))
    return op.negative(x)


# What fuses into one kernel has at most this error: exp within 2 ulp, its quotient 1 more, one per operator behind.
CASES: dict[str, tuple[Body, float]] = {
    "swish and sum": (_swish_and_sum, 1e-6),
    "tanh and sum": (_tanh_and_sum, 1e-6),
    "gate": (_gate, 1e-6),
    "quantise": (_quantise, 0),
    "thermometer": (_thermometer, 0),
    "concat": (_joined, 0),
    "doubling": (_doubling, 0),
}


def _module(body: Body) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(body(builder.emit, x))
        builder.emit_func_output(output)
    return builder.get()


def _input() -> Array:
    x = np.random.default_rng(0).normal(0, 2, SHAPE).astype(np.float32)
    x.flat[:8] = [0, -0.0, 0.125, 0.375, -100, 100, 1e-30, -1]
    return x


@pytest.mark.parametrize("name", CASES)
def test_results(name: str) -> None:
    body, tolerance = CASES[name]
    target = parse_target("native").tvm_target
    module = _module(body)
    lowered = tvm.transform.Sequential(float_pipeline(target))(module)
    executable = relax.build(lowered, target)
    x = tvm.runtime.tensor(_input())
    actual = np.asarray(relax.VirtualMachine(executable, tvm.cpu())["main"](x).numpy())
    np.testing.assert_allclose(actual, run_by_default(module, _input()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_no_loop_is_left_scalar(name: str) -> None:
    """TVM's vectoriser turns a loop that has something it does not know in it into a scalar one, without a word."""
    target = parse_target("llvm -mcpu=znver4").tvm_target
    lowered = tvm.transform.Sequential(float_pipeline(target))(_module(CASES[name][0]))
    kernels = [function for _, function in lowered.functions_items() if isinstance(function, tirx.PrimFunc)]
    assert kernels
    for kernel in kernels:
        code = tvm.compile(tvm.IRModule({"k": kernel.with_attr("global_symbol", "k")}), target).mod.inspect_source("ll")
        assert "store <16 x float>" in code or "call void @llvm.memcpy" in code
        assert "store float " not in code


def test_nan_passes_exp_and_tanh() -> None:
    target = parse_target("native").tvm_target
    lowered = tvm.transform.Sequential(float_pipeline(target))(
        _module(lambda e, x: op.add(e(op.tanh(x)), e(op.sigmoid(x))))
    )
    x = np.full(SHAPE, np.nan, np.float32)
    machine = relax.VirtualMachine(relax.build(lowered, target), tvm.cpu())
    assert np.isnan(np.asarray(machine["main"](tvm.runtime.tensor(x)).numpy())).all()
