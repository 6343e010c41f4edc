"""Damaged and hostile models: whatever the bytes, the answer is a model or a ``BnncError``, soon.

A crash of a library behind the front end would end the test process, so that it cannot go unnoticed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import onnx
import pytest

from bnn_compiler.errors import BnncError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.frontend.operator_support import supported_operators

from .onnx_text import parse

SEEDS = [
    """g (float[1,4,6,6] x) => (float[1,2,6,6] y)
        <float[2,4,3,3] w = {WEIGHTS}, float[2] b = {1, 2}> {
        s = Sign(x) c = Conv<pads = [1, 1, 1, 1], kernel_shape = [3, 3]>(s, w, b) y = Relu(c) }""".replace(
        "WEIGHTS", ", ".join(["1", "-1"] * 36)
    ),
    """g (float[N,3] x) => (float[N,2] y) <float[3,2] w = {1, -1, 1, 1, -1, -1}, float z = {0}> {
        s = Shape(x) o = ConstantOfShape<value = float[1] {1}>(s) m = Neg(o) g = Greater(x, z) a = Where(g, o, m)
        y = MatMul(a, w) }""",
    """g (float[1,2,4,4] x, bool c) => (float[1,2] y) <float[2] p = {1, 2}, int64[2] t = {1, -1}> {
        n = BatchNormalization(x, p, p, p, p)
        i = If(c) <then_branch = a () => (float[1,2,4,4] u) { u = Abs(n) },
                   else_branch = b () => (float[1,2,4,4] v) { v = Neg(n) }>
        m = MaxPool<kernel_shape = [2, 2]>(i) r = ReduceMean<axes = [2, 3]>(m) y = Reshape(r, t) }""",
    """g (float[1,4,6,6] x) => (float[1,4,6,6] y)
        <float s = {0.5}, float z = {0}, float b = {2}, float[4,2] t = {0, 1, 0, 1, 0, 1, -1, 1}> {
        q = qonnx.custom_op.general.Quant<signed = 1, narrow = 0, rounding_mode = "ROUND">(x, s, z, b)
        m = finn.custom_op.general.MultiThreshold<out_scale = 2.0, data_layout = "NCHW">(q, t)
        y = onnx.brevitas.BipolarQuant(m, s) }""",
    """g (float16[2,3,4] x) => (float16[2,3,2] y) <float[3,3] w = {1, 1, 1, -1, -1, 1, 1, -1, 1}> {
        h = Cast<to = 10>(w) a, b = Split<axis = 2>(x) s = Sign(a) p = Einsum<equation = "abk,bc->ack">(s, h)
        y = Add(p, b) }""",
]

EXTREMES = [0, -1, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63)]

CASES = 400
"""Per kind of damage: a few seconds. Some 400,000 cases were run when this was written."""


def _survives(data: bytes) -> bool:
    """Whether the model is accepted; raises for anything but a clean answer."""
    start = time.monotonic()
    try:
        import_onnx(data)
    except BnncError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 1500
        accepted = False
    else:
        accepted = True
    assert time.monotonic() - start < 20
    return accepted


def _flip(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 2, 4, 10])):
        damaged[rng.randrange(len(damaged))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(damaged)


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _rewire(rng: random.Random, data: bytes) -> bytes:
    """Change the structure: names, operators, numbers, dimensions, types."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)] + ["", "nowhere"]
    node = rng.choice(graph.node)
    dims = rng.choice([*graph.input, *graph.output]).type.tensor_type.shape.dim
    tensor = rng.choice(graph.initializer)
    extreme = rng.choice(EXTREMES)
    match rng.randrange(9):
        case 0:
            node.op_type = rng.choice(sorted(supported_operators()))
        case 1:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2:
            node.output[0] = rng.choice(names)
        case 3:
            for attribute in node.attribute:
                attribute.i, attribute.ints[:] = extreme, [extreme] * len(attribute.ints)
        case 4 if dims:
            rng.choice(dims).dim_value = extreme
        case 5 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = extreme
        case 6:
            tensor.data_type = rng.randrange(30)
        case 7:
            graph.node.add().CopyFrom(node)
        case _:
            model.opset_import[0].version = rng.randrange(5, 30)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("damage", [_flip, _truncate, _rewire])
def test_damage(damage: Callable[[random.Random, bytes], bytes]) -> None:
    rng = random.Random(20240601)
    models = [parse(text).SerializeToString() for text in SEEDS]
    assert all(_survives(model) for model in models)
    accepted = sum(_survives(damage(rng, rng.choice(models))) for _ in range(CASES))
    assert accepted < CASES  # the damage is real


def test_five_thousand_nodes_in_a_row() -> None:
    nodes = [onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(5_000)]
    model = parse("g (float[1,4] t0) => (float[1,4] t5000) {}")
    model.graph.node.extend(nodes)
    assert _survives(model.SerializeToString())
    model.graph.input[0].name = "x"  # and as constants: all of them are folded
    model.graph.output[0].name = "y"
    model.graph.initializer.append(onnx.helper.make_tensor("t0", onnx.TensorProto.FLOAT, [1, 4], [1.0, 2, 3, 4]))
    model.graph.node.append(onnx.helper.make_node("Add", ["x", "t5000"], ["y"]))
    imported = import_onnx(model)
    assert [node.op_type for node in imported.onnx_model.graph.node] == ["Add"]
