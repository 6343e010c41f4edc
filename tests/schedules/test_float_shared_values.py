"""Values that fused work reads several times are computed once: code grows with the number of operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm import relax, tirx

from bnn_compiler.passes import float_pipeline
from bnn_compiler.target import parse_target
from tests.relax_run import Array, run_by_default

SHAPE = (1, 16, 8, 8)
op = relax.op
Emit = Callable[[relax.Expr], relax.Var]
Step = Callable[[Emit, relax.Var], relax.Expr]


def _number(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def _silu(e: Emit, x: relax.Var) -> relax.Expr:
    return op.multiply(x, e(op.sigmoid(x)))


def _gelu(e: Emit, x: relax.Var) -> relax.Expr:
    normal = e(op.add(e(op.erf(e(op.multiply(x, _number(0.70710677))))), _number(1)))
    return op.multiply(e(op.multiply(x, _number(0.5))), normal)


def _gelu_by_tanh(e: Emit, x: relax.Var) -> relax.Expr:
    cube = e(op.multiply(e(op.multiply(e(op.multiply(x, x)), x)), _number(0.044715)))
    bent = e(op.tanh(e(op.multiply(e(op.add(x, cube)), _number(0.7978846)))))
    return op.multiply(e(op.multiply(x, _number(0.5))), e(op.add(bent, _number(1))))


def _relu_sum(e: Emit, x: relax.Var) -> relax.Expr:
    return op.add(x, e(op.nn.relu(e(op.multiply(x, _number(-0.7))))))


def _hard_swish(e: Emit, x: relax.Var) -> relax.Expr:
    return op.divide(e(op.multiply(x, e(op.clip(e(op.add(x, _number(3))), 0, 6)))), _number(6))


def _mish(e: Emit, x: relax.Var) -> relax.Expr:
    softplus = e(op.log(e(op.add(e(op.exp(x)), _number(1)))))
    return op.multiply(x, e(op.tanh(softplus)))


def _square_sum(e: Emit, x: relax.Var) -> relax.Expr:
    return op.multiply(e(op.add(e(op.multiply(x, x)), x)), _number(0.4))


def _per_channel(e: Emit, x: relax.Var) -> relax.Expr:
    scale = relax.const(np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 16, 1, 1))
    return op.add(x, e(op.nn.relu(e(op.multiply(x, scale)))))


def _masks(e: Emit, x: relax.Var) -> relax.Expr:
    """Comparisons that are read twice: TVM has no vectors of bits in memory."""
    mask = e(op.greater(x, _number(0.1)))
    for bound in (0.2, 0.4):
        mask = e(op.logical_xor(e(op.logical_not(mask)), e(op.logical_and(mask, e(op.less(x, _number(bound)))))))
    return op.where(mask, x, e(op.multiply(x, _number(0.9))))


def _reshaped(e: Emit, x: relax.Var) -> relax.Expr:
    """Indices grow where each reshape's are put into the next one's."""
    flat = e(op.reshape(x, (1, 64, 16)))
    return op.reshape(e(op.multiply(flat, e(op.sigmoid(flat)))), SHAPE)


# The step, and what is in the code of its one function: a call, or the name of the argument of exp and tanh.
STEPS: dict[str, tuple[Step, str | None]] = {
    "silu": (_silu, "argument"),
    "gelu": (_gelu, "erf"),
    "gelu by tanh": (_gelu_by_tanh, "argument"),
    "relu and sum": (_relu_sum, None),
    "hard swish": (_hard_swish, None),
    "mish": (_mish, None),
    "square and sum": (_square_sum, None),
    "per channel": (_per_channel, None),
    "masks": (_masks, None),
    "reshaped": (_reshaped, "argument"),
}


def _chain(step: Step, steps: int, before: Step | None = None, after: Step | None = None) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            value = x if before is None else builder.emit(before(builder.emit, x))
            for _ in range(steps):
                value = builder.emit(step(builder.emit, value))
            if after is not None:
                value = builder.emit(after(builder.emit, value))
            output = builder.emit_output(value)
        builder.emit_func_output(output)
    return builder.get()


def _kernels(module: tvm.IRModule, target: str = "llvm -mcpu=znver4") -> list[tirx.PrimFunc]:
    lowered = tvm.transform.Sequential(float_pipeline(parse_target(target).tvm_target))(module)
    return [function for _, function in lowered.functions_items() if isinstance(function, tirx.PrimFunc)]


def _calls(kernel: tirx.PrimFunc, function: str) -> int:
    """How often ``function`` is computed: calls of that name, or values bound to it."""
    found: list[object] = []

    def visit_call(call: tvm.ir.Call) -> None:
        if str(getattr(call.op, "name", "")) == f"tirx.{function}":
            found.append(call)

    def visit_let(let: tirx.Let) -> None:
        if let.var.name == function:
            found.append(let)

    tvm_ffi.structural_walk(kernel.body, ((tvm.ir.Call, visit_call), (tirx.Let, visit_let)))
    return len(found)


def _nodes(kernels: list[tirx.PrimFunc]) -> int:
    count = 0

    def visit(_node: object) -> None:
        nonlocal count
        count += 1

    for kernel in kernels:
        tvm_ffi.structural_walk(kernel.body, visit)
    return count


def _instructions(kernels: list[tirx.PrimFunc]) -> int:
    target = parse_target("llvm -mcpu=znver4").tvm_target
    count = 0
    for kernel in kernels:
        code = tvm.compile(tvm.IRModule({"k": kernel.with_attr("global_symbol", "k")}), target).mod.inspect_source("ll")
        count += code.count("\n")
    return count


def _run(module: tvm.IRModule, x: Array) -> Array:
    target = parse_target("native").tvm_target
    executable = relax.build(tvm.transform.Sequential(float_pipeline(target))(module), target)
    return np.asarray(relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy())


def _input() -> Array:
    return np.random.default_rng(0).normal(0, 1, SHAPE).astype(np.float32)


@pytest.mark.parametrize("name", STEPS)
def test_code_grows_with_the_number_of_operators(name: str) -> None:
    """Thirty steps have no more nodes than thirty times what a step adds; TVM fuses up to 256 operators."""
    step, function = STEPS[name]
    kernels = {steps: _kernels(_chain(step, steps)) for steps in (4, 5, 20, 30)}
    nodes = {steps: _nodes(chain) for steps, chain in kernels.items()}
    assert len(kernels[20]) == 1
    assert nodes[30] <= 1.1 * (nodes[4] + 26 * (nodes[5] - nodes[4]))
    if function is not None:
        assert sum(_calls(kernel, function) for kernel in kernels[30]) == 30


@pytest.mark.parametrize("name", ["silu", "gelu", "hard swish", "masks"])
def test_llvm_sees_each_operator_once(name: str) -> None:
    """TVM's simplifier does not put values in the place of their names again."""
    step, _ = STEPS[name]
    lines = {steps: _instructions(_kernels(_chain(step, steps))) for steps in (4, 5, 20)}
    assert lines[20] <= 1.2 * (lines[4] + 16 * (lines[5] - lines[4]))


@pytest.mark.parametrize("name", STEPS)
def test_results(name: str) -> None:
    """As with TVM's own definitions, one kernel per operator: each step adds a few roundings of exp, tanh and erf."""
    module = _chain(STEPS[name][0], 6)
    expected = run_by_default(module, _input())
    np.testing.assert_allclose(_run(module, _input()), expected, rtol=2e-5, atol=2e-5)


# erf and log are calls of the C library, one per element.
@pytest.mark.parametrize("name", sorted(STEPS.keys() - {"gelu", "mish"}))
def test_loops_are_vectors(name: str) -> None:
    for kernel in _kernels(_chain(STEPS[name][0], 5)):
        target = parse_target("llvm -mcpu=znver4").tvm_target
        code = tvm.compile(tvm.IRModule({"k": kernel.with_attr("global_symbol", "k")}), target).mod.inspect_source("ll")
        assert "store <16 x float>" in code
        assert "store float " not in code


def _product_sum(e: Emit, x: relax.Var) -> relax.Expr:
    product = e(op.multiply(x, _number(0.7341181)))
    return op.add(product, e(op.nn.relu(product)))


def test_each_operation_rounds() -> None:
    x = expected = _input() * 20
    for _ in range(3):
        product = expected * np.float32(0.7341181)
        expected = product + np.maximum(product, np.float32(0))
    np.testing.assert_array_equal(_run(_chain(_product_sum, 3), x), expected)


def test_a_named_product_is_fenced() -> None:
    """LLVM sees through registers; whether it contracts a product that has several readers is the target's choice."""
    stores: list[tirx.BufferStore] = []
    (kernel,) = _kernels(_chain(_product_sum, 3))
    tvm_ffi.structural_walk(kernel.body, (tirx.BufferStore, stores.append))
    named = [store.value for store in stores if store.buffer.name.startswith("shared")]
    assert len(named) == 3
    assert not any(isinstance(value, tirx.Mul) for value in named)


def _matrix(e: Emit, x: relax.Var) -> relax.Expr:
    weight = np.random.default_rng(1).normal(0, 0.3, (8, 8)).astype(np.float32)
    return op.matmul(x, relax.const(weight))


def _convolution(_e: Emit, x: relax.Var) -> relax.Expr:
    weight = np.random.default_rng(1).normal(0, 0.1, (16, 16, 3, 3)).astype(np.float32)
    return op.nn.conv2d(x, relax.const(weight), padding=(1, 1))


@pytest.mark.parametrize("before", [_convolution, _matrix])
@pytest.mark.parametrize("name", ["silu", "hard swish", "relu and sum"])
def test_chains_run_in_the_kernel_before_them(before: Step, name: str) -> None:
    step, _ = STEPS[name]
    kernels = _kernels(_chain(step, 20, before))
    assert sum(1 for kernel in kernels if "shared" in kernel.script()) == 1
    nodes = {steps: _nodes(_kernels(_chain(step, steps, before))) for steps in (4, 5, 20)}
    assert nodes[20] <= 1.1 * (nodes[4] + 16 * (nodes[5] - nodes[4]))
    module = _chain(step, 5, before)
    np.testing.assert_allclose(_run(module, _input()), run_by_default(module, _input()), rtol=2e-5, atol=2e-5)


def _softmax_of_channels(_e: Emit, x: relax.Var) -> relax.Expr:
    return op.nn.softmax(x, 1)


def _sum_of_channels(_e: Emit, x: relax.Var) -> relax.Expr:
    return op.sum(x, 1)


def _padded(e: Emit, x: relax.Var) -> relax.Expr:
    """What is read behind the edge of a tensor is read on that condition only."""
    return op.nn.pad(e(op.multiply(x, e(op.sigmoid(x)))), (0, 0, 0, 0, 1, 1, 1, 1))


@pytest.mark.parametrize("after", [_softmax_of_channels, _sum_of_channels, _padded])
def test_what_reads_a_chain(after: Step) -> None:
    module = _chain(_silu, 5, None, after)
    np.testing.assert_allclose(_run(module, _input()), run_by_default(module, _input()), rtol=2e-5, atol=2e-5)


def test_softmax_computes_each_exponential_once() -> None:
    """Its sum and its quotient both read them: they are stored between."""
    (kernel,) = _kernels(_chain(_softmax_of_channels, 1))
    assert _calls(kernel, "argument") == 1
