"""Binarisers as exporters spell them, in ONNX: what is found, and that compiled layers give ONNX Runtime's integers.

Each spelling makes an activation ``a`` from the input ``x`` (and ``y``) in front of a convolution with ±1 weights. All
of one kind are compiled as one model with an output each, because compiling takes longer than running.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import Array, parse, run_onnx

BINARY = ("binary", "")
SPELLINGS: dict[str, tuple[str, tuple[str, str]]] = {
    "sign": ("a = Sign(x)", BINARY),
    "larq": ("s = Sign(x)  t = Add(s, tenth)  a = Sign(t)", BINARY),
    "greater, cast": ("m = Greater(x, half)  c = Cast<to=1>(m)  d = Mul(c, two)  a = Sub(d, one)", BINARY),
    "less, cast, flipped": ("m = Less(x, half)  c = Cast<to=1>(m)  d = Mul(c, two)  a = Sub(one, d)", BINARY),
    "cast through int8": (
        "m = Greater(x, half)  i = Cast<to=3>(m)  c = Cast<to=1>(i)  d = Mul(c, two)  a = Sub(d, one)",
        BINARY,
    ),
    "not less": ("m = Less(x, zero)  n = Not(m)  a = Where(n, one, minus)", BINARY),
    "constant first": ("m = LessOrEqual(half, x)  a = Where(m, one, minus)", BINARY),
    "threshold per channel": ("m = Greater(x, perchannel)  a = Where(m, one, minus)", BINARY),
    "threshold per pixel": ("m = Greater(x, perpixel)  a = Where(m, one, minus)", BINARY),
    "threshold per element": ("m = Greater(x, perelement)  a = Where(m, one, minus)", BINARY),
    "threshold computed at run time": ("m = Greater(x, y)  a = Where(m, one, minus)", BINARY),
    "threshold from a mean": ("r = ReduceMean<axes=[2,3]>(x)  m = Greater(x, r)  a = Where(m, one, minus)", BINARY),
    "either of two": ("m = Greater(x, half)  n = Less(y, zero)  o = Or(m, n)  a = Where(o, one, minus)", BINARY),
    "band": ("m = Greater(x, minus)  n = Less(x, half)  o = And(m, n)  a = Where(o, one, minus)", BINARY),
    "sign of a product": (
        "s = Sign(x)  t = Add(s, tenth)  u = Sign(t)  m = Greater(y, half)  v = Where(m, one, minus)  a = Mul(u, v)",
        BINARY,
    ),
    "scaled": ("s = Sign(x)  a = Mul(s, half)", BINARY),
    "rounded hard sigmoid": (
        "p = Add(x, one)  q = Mul(p, half)  r = Clip(q, zero, one)  i = Round(r)  d = Mul(i, two)  a = Sub(d, one)",
        BINARY,
    ),
    "floor": ("r = Clip(x, zero, top)  i = Floor(r)  d = Mul(i, two)  a = Sub(d, one)", BINARY),
    "clamped large multiple": ("s = Sign(x)  t = Add(s, tenth)  b = Mul(t, big)  a = Clip(b, minus, one)", BINARY),
    "x over |x|": ("n = Abs(x)  a = Div(x, n)", BINARY),
    "residue of a clip": ("s = Sign(x)  c = Clip(x, minus, one)  d = Sub(s, c)  a = Add(d, c)", BINARY),
    "residue of a tanh": ("s = Sign(x)  c = Tanh(x)  d = Sub(s, c)  a = Add(d, c)", BINARY),
    "residue of a hard tanh, flipped": (
        "s = Sign(x)  n = Neg(s)  c = Clip(x, minus, one)  d = Add(c, n)  a = Sub(d, c)",
        BINARY,
    ),
    "pad of -1": ("s = Sign(x)  a = Pad(s, ring, minus)", BINARY),
    "reflected": ('s = Sign(x)  a = Pad<mode="reflect">(s, ring)', BINARY),
    "edge": ('s = Sign(x)  a = Pad<mode="edge">(s, ring)', BINARY),
    "max-pool of signs": (
        "s = Sign(x)  t = Add(s, tenth)  u = Sign(t)  a = MaxPool<kernel_shape=[2,2], strides=[1,1]>(u)",
        BINARY,
    ),
    "slices joined": (
        "s = Sign(x)  t = Slice(s, start, end, axis)  u = Slice(s, end, last, axis)  a = Concat<axis=1>(u, t)",
        BINARY,
    ),
    "split, joined": ("s = Sign(x)  t, u = Split<axis=1>(s)  a = Concat<axis=1>(u, t)", BINARY),
    "channels permuted": ("s = Sign(x)  a = Gather<axis=1>(s, order)", BINARY),
    "channels shuffled": (
        "s = Sign(x)  r = Reshape(s, groups)  t = Transpose<perm=[0,2,1,3,4]>(r)  a = Reshape(t, shape)",
        BINARY,
    ),
    "nearest neighbours": ('s = Sign(x)  a = Resize<mode="nearest">(s, , scales)', BINARY),
    "zero or one": ("m = Greater(x, zero)  a = Cast<to=1>(m)", ("binary_weight", "activations_not_symmetric")),
    "sign plus something": ("s = Sign(x)  a = Add(s, tenth)", ("binary_weight", "activations_not_symmetric")),
    "relu": ("a = Relu(x)", ("binary_weight", "activations_float")),
    "residue that is not bounded": (
        "s = Sign(x)  d = Sub(s, x)  a = Add(d, x)",
        ("binary_weight", "activations_float"),
    ),
    "x over |x| and a bit": ("n = Abs(x)  o = Add(n, tenth)  a = Div(x, o)", ("binary_weight", "activations_float")),
}

CHANNELS, EXTENT = 8, 6
SHAPE = (1, CHANNELS, EXTENT, EXTENT)


def constants() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    scalars = {"zero": 0, "one": 1, "minus": -1, "two": 2, "half": 0.5, "tenth": 0.1, "big": 1e4, "top": 1.5}
    weights = rng.choice(np.asarray([-1, 1], np.float32), (4, CHANNELS, 3, 3))
    return {
        **{name: np.asarray(value, np.float32) for name, value in scalars.items()},
        "w": weights,
        "perchannel": rng.standard_normal((CHANNELS, 1, 1)).astype(np.float32),
        "perpixel": rng.standard_normal((EXTENT, EXTENT)).astype(np.float32),
        "perelement": rng.standard_normal(SHAPE).astype(np.float32),
        "ring": np.asarray([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "start": np.asarray([0], np.int64),
        "end": np.asarray([3], np.int64),
        "last": np.asarray([CHANNELS], np.int64),
        "axis": np.asarray([1], np.int64),
        "order": np.asarray([3, 1, 0, 2, 7, 7, 5, 0], np.int64),
        "groups": np.asarray([1, 2, CHANNELS // 2, EXTENT, EXTENT], np.int64),
        "shape": np.asarray(SHAPE, np.int64),
        "scales": np.asarray([1, 1, 2, 2], np.float32),
    }


def model_of(spellings: Mapping[str, str]) -> onnx.ModelProto:
    """One model: output ``y<i>`` of convolution ``<name>`` for each spelling."""
    known = constants()
    nodes = []
    for index, text in enumerate(spellings.values()):
        part = parse(f"g (float[1,8,6,6] x, float[1,8,6,6] y) => (float[A,B,C,D] a) {{ {text} }}")
        for node in part.graph.node:
            for names in (node.input, node.output):
                names[:] = [name if name in (*known, "x", "y", "") else f"{name}_{index}" for name in names]
            nodes.append(node)
    outputs = []
    for index, name in enumerate(spellings):
        nodes.append(onnx.helper.make_node("Conv", [f"a_{index}", "w"], [f"y{index}"], name=name, pads=[1, 1, 1, 1]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, None))
    inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, SHAPE) for name in ("x", "y")]
    initializers = [numpy_helper.from_array(value, name) for name, value in known.items()]
    graph = onnx.helper.make_graph(nodes, "spellings", inputs, outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def feeds(seed: int) -> dict[str, Array]:
    """Values around the thresholds, and the thresholds themselves; never 0, which ``Sign`` is ambiguous about."""
    rng = np.random.default_rng(seed)
    numbers = np.asarray([-2, -1, -0.5, -1e-30, 1e-30, 0.3, 0.5, 0.5000001, 0.7, 1, 3, 1e10], np.float32)
    return {name: rng.choice(numbers, SHAPE) for name in ("x", "y")}


@pytest.fixture(scope="module")
def compiled() -> tuple[onnx.ModelProto, bnn_compiler.CompiledNetwork]:
    model = model_of({name: text for name, (text, _) in SPELLINGS.items()})
    return model, bnn_compiler.compile_model(model)


@pytest.mark.parametrize("name", SPELLINGS)
def test_status(name: str, compiled: tuple[onnx.ModelProto, bnn_compiler.CompiledNetwork]) -> None:
    (layer,) = [layer for layer in compiled[1].report["layers"] if layer["name"] == name]
    assert (layer["status"], layer["reason"]) == SPELLINGS[name][1], layer


def test_results(compiled: tuple[onnx.ModelProto, bnn_compiler.CompiledNetwork]) -> None:
    model, network = compiled
    for seed in range(4):
        given = feeds(seed)
        actual = network.run(given)
        for index, (name, expected) in enumerate(zip(SPELLINGS, run_onnx(model, given), strict=True)):
            if "x over" in name or "relu" in name or "not bounded" in name:
                continue  # floats
            # A residue moves each of 72 activations by at most 2^-20 of 1 in the model.
            np.testing.assert_allclose(actual[f"y{index}"], expected, rtol=0, atol=1e-4, err_msg=name)
