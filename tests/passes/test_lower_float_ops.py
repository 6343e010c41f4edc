"""What the float passes lower, fuse, share and leave alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tvm
from tvm import relax, te, tirx
from tvm.relax.frontend.onnx import from_onnx

from bnn_compiler.passes import LowerFloatOps, float_pipeline, lower_float_ops
from bnn_compiler.passes.schedule_float_kernels import KERNEL_ATTR, ScheduleFloatKernels
from bnn_compiler.schedules.float_conv import plan_conv
from bnn_compiler.schedules.float_conv_channels_plan import plan_channel_conv
from bnn_compiler.target import parse_target
from tests.schedules.float_harness import FOREIGN_TARGETS, Layer, node, normal
from tests.schedules.kernel_harness import cpu_target
from tests.small_relax_modules import applied

TARGET = cpu_target("skylake-avx512").tvm_target
Body = Callable[[relax.BlockBuilder, relax.Var], relax.Expr]


def module_of(shape: tuple[int, ...], body: Body, dtype: str = "float32") -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(body(builder, x))
        builder.emit_func_output(result)
    return builder.get()


def prim_funcs(module: tvm.IRModule) -> dict[str, tirx.PrimFunc]:
    return {str(v.name_hint): f for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}


def compiled(module: tvm.IRModule) -> tvm.IRModule:
    with TARGET:
        return tvm.transform.Sequential(float_pipeline(TARGET))(module)


def weight(*shape: int) -> relax.Constant:
    return relax.const(normal(shape))


def test_elementwise_work_joins_the_convolution() -> None:
    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        y = builder.emit(relax.op.nn.conv2d(x, weight(8, 8, 3, 3), padding=1))
        y = builder.emit(relax.op.add(y, weight(1, 8, 1, 1)))
        y = builder.emit(relax.op.multiply(y, weight(1, 8, 1, 1)))
        y = builder.emit(relax.op.add(y, x))
        return relax.op.nn.relu(y)

    kernels = prim_funcs(compiled(module_of((1, 8, 14, 14), body)))
    assert len(kernels) == 1
    (kernel,) = kernels.values()
    schedule = tvm.s_tir.Schedule(kernel)
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    assert len(blocks) == 4  # border, planes, multiply, out: no block of its own for what follows
    assert "T.max(T.float32(0.0), " in kernel.script()  # the constant first: NaN stays


@pytest.mark.parametrize("cpu", ["skylake-avx512", "x86-64"])
@pytest.mark.parametrize("first", ["box filter", "mean"])
def test_broadcasting_consumer(first: str, cpu: str) -> None:
    """A kernel result smaller than that of the work fused behind it, as in XNOR-Net: K times the product."""
    filtered = (
        node("Conv", "m k", "f", pads=[1, 1, 1, 1]) if first == "box filter" else node("ReduceMean", "x", "f", axes=[3])
    )
    nodes = (node("ReduceMean", "x", "m", axes=[1]), filtered, node("Mul", "x f", "p"), node("Relu", "p"))
    layer = Layer(nodes, normal((1, 6, 9, 11)), {"k": normal((1, 1, 3, 3), 1)})
    # Means and sums of at most 11 values of about 1, times such a value.
    np.testing.assert_allclose(layer.run(cpu), layer.reference(), rtol=0, atol=1e-5)


def test_convolutions_of_one_shape_share_a_kernel() -> None:
    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        y = builder.emit(relax.op.nn.conv2d(x, weight(8, 8, 3, 3), padding=1))
        return relax.op.nn.conv2d(y, relax.const(normal((8, 8, 3, 3), 1)), padding=1)

    assert len(prim_funcs(compiled(module_of((1, 8, 14, 14), body)))) == 1


def test_weight_behind_a_chain_is_packed() -> None:
    """No kernel is left that transposes a weight at run time."""

    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        return relax.op.matmul(x, builder.emit(relax.op.permute_dims(weight(40, 16))))

    assert list(prim_funcs(compiled(module_of((1, 16), body)))) == ["float_gemm"]


def nhwc(_builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.nn.conv2d(x, weight(3, 3, 9, 4), data_layout="NHWC", kernel_layout="HWIO")


def own_weight(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.nn.conv2d(x, builder.emit(relax.op.permute_dims(x, [1, 0, 2, 3])))


def batched(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.matmul(x, builder.emit(relax.op.permute_dims(x, [0, 1, 3, 2])))


def leading_axis(_builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
    return relax.op.sum(x, axis=[0])


@pytest.mark.parametrize(
    ("body", "op"),
    [(nhwc, "conv2d"), (own_weight, "conv2d"), (batched, "matmul"), (leading_axis, "sum")],
)
def test_near_misses_stay_operators(body: Body, op: str) -> None:
    module = module_of((9, 9, 9, 9), body)
    lowered = applied(module, LowerFloatOps(TARGET))
    assert not prim_funcs(lowered)
    assert f".{op}(" in lowered["main"].script()
    # … and still compile, by TVM's definition.
    assert prim_funcs(compiled(module))


def test_other_dtypes_stay_operators() -> None:
    module = module_of((4, 4), lambda _, x: relax.op.matmul(x, relax.const(np.eye(4), "float64")), "float64")
    assert not prim_funcs(applied(module, LowerFloatOps(TARGET)))


def test_finished_kernels_are_left_alone() -> None:
    tensor = te.placeholder((1, 8), name="tensor")
    doubled = te.compute(tensor.shape, lambda *i: tensor(*i) * 2.0, name="doubled")
    kernel = te.create_prim_func([tensor, doubled]).with_attrs({KERNEL_ATTR: "double", "op_pattern": 8})

    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        function = builder.add_func(kernel, "double")
        y = builder.emit(relax.op.nn.relu(x))
        y = builder.emit(relax.call_tir(function, [y], out_ty=relax.TensorType((1, 8), "float32")))
        return relax.op.abs(y)

    kernels = prim_funcs(compiled(module_of((1, 8), body)))
    assert len(kernels) == 3
    tvm.ir.assert_structural_equal(kernels["double"].body, kernel.body)


def test_idempotent() -> None:
    def body(builder: relax.BlockBuilder, x: relax.Var) -> relax.Expr:
        y = builder.emit(relax.op.nn.conv2d(x, weight(8, 8, 3, 3), padding=1))
        return relax.op.nn.relu(y)

    module = module_of((1, 8, 14, 14), body)
    lowered = applied(module, LowerFloatOps(TARGET))
    tvm.ir.assert_structural_equal(applied(lowered, LowerFloatOps(TARGET)), lowered, map_free_vars=True)
    scheduled = compiled(module)
    tvm.ir.assert_structural_equal(applied(scheduled, ScheduleFloatKernels(TARGET)), scheduled)


def small_network() -> Layer:
    """One of everything that has a kernel."""
    nodes = (
        node("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c", "r"),
        node("Conv", "r d", "e", pads=[1, 1, 1, 1], group=20),
        node("MaxPool", "e", "p", kernel_shape=[3, 3], strides=[2, 2]),
        node("AveragePool", "p", "a", kernel_shape=[2, 2]),
        node("Sigmoid", "a", "s"),
        node("ReduceMean", "s", "m", axes=[2, 3], keepdims=0),
        node("Gemm", "m g", "h", transB=1),
        node("Softmax", "h", "y", axis=-1),
    )
    weights = {
        "w": normal((20, 3, 3, 3), 1),
        "b": normal((20,), 2),
        "d": normal((20, 1, 3, 3), 3),
        "g": normal((9, 20)),
    }
    return Layer(nodes, normal((1, 3, 23, 23)), weights)


@pytest.mark.parametrize(("text", "multiply_add"), list(zip(FOREIGN_TARGETS, ["fmla", "vmul|vmla|vfma"], strict=True)))
def test_other_architectures_compile_to_vectors(text: str, multiply_add: str) -> None:
    target = parse_target(text).tvm_target
    executable = relax.build(small_network().lowered(target), target)
    (library,) = [module for module in executable.mod.imports if module.kind == "llvm"]
    assert re.search(rf"\b({multiply_add})\S*\s+[vq]\d", library.inspect_source("asm"))


@pytest.mark.parametrize("plan", [plan_conv, plan_channel_conv])
def test_accumulators_stay_in_registers(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of 8 x 3 vectors of pixels with a rest of 8 x 1, or of 14 pixels x 2 with one of 6 x 2: nothing spills."""
    monkeypatch.setattr(lower_float_ops, "plan_float_conv", plan)
    layer = Layer((node("Conv", "x w"),), normal((1, 16, 10, 16)), {"w": normal((64, 16, 1, 1), 1)})
    kernel = prim_funcs(layer.lowered(TARGET))["float_conv2d"].with_attr("global_symbol", "conv")
    assembly = tvm.compile(tvm.IRModule({"conv": kernel}), target=TARGET).mod.inspect_source("asm")
    assert len(re.findall(r"vfmadd231ps.*zmm", assembly)) >= 24
    assert not re.search(r"zmm.*\(%rsp\)|\(%rsp\).*zmm", assembly)


@pytest.mark.parametrize("name", ["lenet_mnist", "birealnet18"])
def test_networks(name: str, network: Callable[[str], Path]) -> None:
    path = network(name)
    data = np.load(path.with_suffix(".npz"))
    model = onnx.load(path)
    (given,) = model.graph.input
    x = data[f"in_{given.name}"][:1]
    target = cpu_target("haswell")
    if not target.is_host:
        pytest.skip("this machine has no AVX2")
    with target.tvm_target as inner:
        module = tvm.transform.Sequential(float_pipeline(inner))(from_onnx(model, {given.name: x.shape}))
    machine = relax.VirtualMachine(relax.build(module, inner), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(x)).numpy()
    expected = data[f"out_{model.graph.output[0].name}"][:1]
    # No sign flips on these inputs; the README gives 4e-7 between two settings of ONNX Runtime itself.
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
