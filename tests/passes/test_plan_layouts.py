from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tvm import relax

import bnn_compiler
from bnn_compiler.constants import op_name
from bnn_compiler.driver import checked_tensors, lower_model
from bnn_compiler.frontend import import_onnx
from bnn_compiler.options import CompileOptions
from bnn_compiler.passes import PlanLayouts
from bnn_compiler.passes.layout_assignment import (
    Net,
    Node,
    Permutation,
    assign_layouts,
    compose,
    inverse,
    transposed_elements,
)
from bnn_compiler.target import parse_target
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

SHAPE = (1, 4, 6, 5)
TO_NHWC, TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]
op = relax.op

Emit = Callable[[relax.Expr], relax.Var]
Body = Callable[[Emit, relax.Var], relax.Expr]


def _module(body: Body, shape: tuple[int, ...] = SHAPE) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(body(builder.emit, x))
        builder.emit_func_output(output)
    return builder.get()


def _transposes(module: tvm.IRModule) -> list[tuple[int, ...]]:
    """Shapes of the transposes in ``main``."""
    return [
        tuple(int(size) for size in binding.var.ty.shape)
        for block in module["main"].body.blocks
        for binding in block.bindings
        if op_name(binding.value) == "relax.permute_dims"
    ]


def _constant(*shape: int) -> relax.Expr:
    return relax.const(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def _nhwc(inner: Callable[[Emit, relax.Var], relax.Var]) -> Body:
    """``inner`` on the tensor in NHWC, between transposes."""

    def body(emit: Emit, x: relax.Var) -> relax.Expr:
        return op.permute_dims(inner(emit, emit(op.permute_dims(x, TO_NHWC))), TO_NCHW)

    return body


def _sign_and_pad(emit: Emit, x: relax.Var) -> relax.Var:
    return emit(op.nn.pad(emit(op.sign(x)), [0, 0, 1, 2, 3, 0, 0, 0], "constant", 1.0))


def _per_channel(emit: Emit, x: relax.Var) -> relax.Var:
    scaled = emit(op.multiply(x, _constant(4)))
    shifted = emit(op.add(emit(op.clip(scaled, -1, 1)), _constant(1, 6, 1, 4)))
    return emit(op.nn.prelu(shifted, _constant(4), 3))


def _concatenated(emit: Emit, x: relax.Var) -> relax.Var:
    return emit(op.concat([x, emit(op.negative(x)), _constant(1, 6, 5, 2)], -1))


def _chosen(emit: Emit, x: relax.Var) -> relax.Var:
    largest = emit(op.max(x, [1, 2], keepdims=True))
    return emit(op.where(emit(op.greater(x, largest)), x, emit(op.multiply(x, relax.const(np.float32(2))))))


def _pooled(emit: Emit, x: relax.Var) -> relax.Expr:
    return op.mean(emit(op.sign(emit(op.permute_dims(x, TO_NHWC)))), [1, 2])


@pytest.mark.parametrize("inner", [_sign_and_pad, _per_channel, _concatenated, _chosen])
def test_transposes_around_indifferent_operators_vanish(inner: Callable[[Emit, relax.Var], relax.Var]) -> None:
    module = _module(_nhwc(inner))
    planned = applied(module, PlanLayouts())
    assert len(_transposes(module)) == 2
    assert _transposes(planned) == []
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(run_by_default(planned, x), run_by_default(module, x))


def test_a_reduction_that_drops_rows_and_columns_reads_either_order() -> None:
    module = _module(_pooled)
    planned = applied(module, PlanLayouts())
    assert _transposes(planned) == []
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    # Sums of up to 30 ±1, times 1/30: rounded once, so that the order of summation is invisible.
    np.testing.assert_array_equal(run_by_default(planned, x), run_by_default(module, x))


def _dropped_in_another_order(emit: Emit, x: relax.Var) -> relax.Expr:
    """[W, H] is left, where NCHW would leave [H, W]."""
    return op.sum(emit(op.sign(emit(op.permute_dims(x, [0, 3, 2, 1])))), [0, 3])


def _flattened(emit: Emit, x: relax.Var) -> relax.Expr:
    return op.reshape(emit(op.nn.relu(emit(op.permute_dims(x, TO_NHWC)))), (1, 120))


def _symmetric(emit: Emit, x: relax.Var) -> relax.Expr:
    """x + xᵀ: its transpose cancels nowhere."""
    return op.add(x, emit(op.permute_dims(x, [0, 1, 3, 2])))


@pytest.mark.parametrize(
    ("body", "shape"),
    [(_dropped_in_another_order, SHAPE), (_flattened, SHAPE), (_symmetric, (1, 2, 5, 5))],
)
def test_transposes_that_are_needed_stay(body: Body, shape: tuple[int, ...]) -> None:
    module = _module(body, shape)
    planned = applied(module, PlanLayouts())
    assert len(_transposes(planned)) == 1
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(run_by_default(planned, x), run_by_default(module, x))


def test_a_transpose_moves_in_front_of_what_enlarges_its_tensor() -> None:
    def body(emit: Emit, x: relax.Var) -> relax.Expr:
        return op.permute_dims(emit(op.concat([x, x, x], 1)), TO_NHWC)

    module = _module(body)
    planned = applied(module, PlanLayouts())
    assert _transposes(planned) == [(1, 6, 5, 4)]
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(run_by_default(planned, x), run_by_default(module, x))


def test_planning_twice_changes_nothing() -> None:
    once = applied(_module(_nhwc(_per_channel)), PlanLayouts())
    assert tvm_ffi.structural_equal(applied(once, PlanLayouts()), once)


def test_a_result_keeps_the_order_of_the_model() -> None:
    """One reader wants NCHW, and the tensor is a result in NHWC as well: one transpose, of the smaller one."""

    def body(emit: Emit, x: relax.Var) -> relax.Expr:
        sign = emit(op.sign(emit(op.permute_dims(x, TO_NHWC))))
        return relax.Tuple([sign, emit(op.permute_dims(emit(op.add(sign, relax.const(np.float32(1)))), TO_NCHW))])

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            fields = [builder.emit_output(field) for field in body(builder.emit, x).fields]
        builder.emit_func_output(relax.Tuple(fields))
    module = builder.get()
    planned = applied(module, PlanLayouts())
    assert _transposes(planned) == [(1, 6, 5, 4)]
    value = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    results = []
    for variant in (module, planned):
        machine = relax.VirtualMachine(relax.build(variant, tvm.target.Target({"kind": "llvm"})), tvm.cpu())
        results.append([np.asarray(field.numpy()) for field in machine["main"](tvm.runtime.tensor(value))])
    for before, after in zip(*results, strict=True):
        np.testing.assert_array_equal(before, after)


def _random_problem(rng: np.random.Generator) -> tuple[list[Node], list[Net]]:
    """Tensors of two axes, with transposes that come from frames, so that every cycle cancels."""
    swap = ((0, 1), (1, 0))
    count = int(rng.integers(2, 8))
    frames: list[Permutation] = [swap[rng.integers(2)] for _ in range(count)]
    nodes = [Node(2, fixed=bool(rng.random() < 0.3)) for _ in range(count)]
    nets = []
    for driver in range(count):
        readers: list[tuple[int | None, Permutation]] = [
            (reader, compose(frames[driver], inverse(frames[reader])))
            for reader in range(driver + 1, count)
            if not nodes[reader].fixed and rng.random() < 0.4
        ]
        readers += [(None, swap[rng.integers(2)]) for _ in range(int(rng.integers(3)))]
        nets.append(Net(driver, int(rng.integers(1, 20)), tuple(dict.fromkeys(readers))))
    return nodes, nets


@pytest.mark.parametrize("seed", range(60))
def test_two_layouts_are_chosen_optimally(seed: int) -> None:
    nodes, nets = _random_problem(np.random.default_rng(seed))
    choices = [[(0, 1)] if node.fixed else [(0, 1), (1, 0)] for node in nodes]
    best = min(transposed_elements(nets, layouts) for layouts in itertools.product(*choices))
    found = assign_layouts(nodes, nets)
    assert transposed_elements(nets, found) == best
    assert all(layout == (0, 1) for node, layout in zip(nodes, found, strict=True) if node.fixed)


def larq_like() -> ModelProto:
    """Two binary convolutions, everything between them in NHWC; the first reads Sign alone, which may be 0."""
    rng = np.random.default_rng(0)
    weights = [rng.choice([-1, 1], shape).astype(np.float32) for shape in ((8, 4, 3, 3), (8, 8, 3, 3))]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "w0": weights[0],
        "w1": weights[1],
        "pads": np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int64),
        "ring": np.array(1, np.float32),
        "zero": np.array(0.1, np.float32),
        "scale": rng.uniform(0.5, 1, 8).astype(np.float32),
        "shift": rng.uniform(-1, 1, 8).astype(np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=TO_NHWC),
        node("Sign", ["xt"], ["b0"]),
        node("Pad", ["b0", "pads", "ring"], ["p0"]),
        node("Transpose", ["p0"], ["a0"], perm=TO_NCHW),
        node("Conv", ["a0", "w0"], ["c0"], name="first"),
        node("Transpose", ["c0"], ["t"], perm=TO_NHWC),
        node("Mul", ["t", "scale"], ["m"]),
        node("Add", ["m", "shift"], ["b"]),
        node("Sign", ["b"], ["s1"]),
        node("Add", ["s1", "zero"], ["z1"]),
        node("Sign", ["z1"], ["b1"]),
        node("Pad", ["b1", "pads", "ring"], ["p1"]),
        node("Transpose", ["p1"], ["a1"], perm=TO_NCHW),
        node("Conv", ["a1", "w1"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("b", "y")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_layers_between_transposes_are_still_verified_by_name() -> None:
    """Tensors that are stored in another order are compared in that order."""
    compiled = bnn_compiler.compile_model(larq_like(), verify=True)
    first, second = compiled.report["layers"]
    assert (first["status"], second["status"]) == ("binary", "binary")
    assert (first["input"], first["output"]) == ("x", "b")
    assert second["input"] == "b"
    verification = compiled.report["verification"]
    assert verification is not None
    assert verification["passed"]
    assert verification["layers_not_compared"] == []
    assert [layer["name"] for layer in verification["layers"]] == ["first", "second"]


def test_names_say_in_which_order_axes_are_stored() -> None:
    imported = import_onnx(larq_like())
    lowered = lower_model(imported, parse_target("native"), CompileOptions())
    first, second = lowered.layers
    assert (first.input_axes, first.output_axes) == (None, tuple(TO_NCHW))
    assert (second.input_axes, second.output_axes) == (tuple(TO_NCHW), None)
    # The Sign's own operand, not the tensor in front of the transpose that vanished.
    assert checked_tensors(lowered.report) == ["xt"]
