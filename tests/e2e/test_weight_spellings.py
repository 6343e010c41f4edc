"""Weights as exporters leave them, in ONNX: folded and judged by their values, and compiled layers as in ONNX Runtime.

Each spelling makes the weight ``w`` from the latent floats ``l`` of a convolution behind one sign. All are compiled as
one model with an output each.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import Array, parse, run_onnx

BINARY = ("binary", "")
SPELLINGS: dict[str, tuple[str, tuple[str, str]]] = {
    "sign": ("w = Sign(l)", BINARY),
    "sign times mean magnitude": ("s = Sign(l)  m = Abs(l)  r = ReduceMean<axes=[1,2,3]>(m)  w = Mul(s, r)", BINARY),
    "one mean after the other": (
        "s = Sign(l)  m = Abs(l)  r = ReduceMean<axes=[3]>(m)  p = ReduceMean<axes=[2]>(r)"
        "  q = ReduceMean<axes=[1]>(p)  w = Mul(s, q)",
        BINARY,
    ),
    "one mean for all": ("s = Sign(l)  m = Abs(l)  r = ReduceMean<keepdims=0>(m)  w = Mul(s, r)", BINARY),
    "residue of a clip": ("s = Sign(l)  c = Clip(l, minus, one)  d = Sub(s, c)  w = Add(d, c)", BINARY),
    "scaled residue of the latent": (
        "s = Sign(l)  t = Mul(s, scales)  d = Sub(t, l)  e = Add(d, l)  w = Mul(e, scales)",
        ("float", "weights_not_two_valued"),
    ),
    "comparison": ("m = GreaterOrEqual(l, zero)  w = Where(m, one, minus)", BINARY),
    "cast": ("m = Greater(l, zero)  c = Cast<to=1>(m)  d = Mul(c, two)  w = Sub(d, one)", BINARY),
    "through int8": ("s = Sign(l)  i = Cast<to=3>(s)  w = Cast<to=1>(i)", BINARY),
    "dequantised": ("w = DequantizeLinear<axis=0>(quantised, steps)", BINARY),
    "stored in another order": (
        "s = Sign(l)  t = Transpose<perm=[2,3,1,0]>(s)  w = Transpose<perm=[3,2,0,1]>(t)",
        BINARY,
    ),
    "stored flat": ("s = Sign(l)  r = Reshape(s, flat)  w = Reshape(r, shape)", BINARY),
    "scales over orders of magnitude": ("s = Sign(l)  w = Mul(s, scales)", BINARY),
    "batch-norm folded in": ("s = Sign(l)  t = Mul(s, scales)  u = Mul(t, gamma)  w = Div(u, sigma)", BINARY),
    "centred": ("r = ReduceMean<axes=[1,2,3]>(l)  c = Sub(l, r)  w = Sign(c)", BINARY),
    "scale per input channel": ("s = Sign(l)  w = Mul(s, perinput)", ("float", "weights_scaled_per_input")),
    "one latent is zero": ("z = Mul(l, mask)  w = Sign(z)", ("float", "weights_contain_zero")),
    "ternary": (
        "p = Greater(l, half)  n = Less(l, minushalf)  a = Cast<to=1>(p)  b = Cast<to=1>(n)  w = Sub(a, b)",
        ("float", "weights_contain_zero"),
    ),
    "latent": ("w = Mul(l, one)", ("float", "weights_not_two_valued")),
    "magnitudes": ("s = Abs(l)  t = Sign(s)  w = Mul(t, one)", ("float", "weights_constant")),
}
SHAPE, OUTPUTS = (1, 6, 5, 5), 4


def constants() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    per_output = (OUTPUTS, 1, 1, 1)
    scalars = {"zero": 0, "one": 1, "minus": -1, "two": 2, "half": 0.5, "minushalf": -0.5}
    mask = np.ones((OUTPUTS, 6, 3, 3), np.float32)
    mask[1, 2, 0, 1] = 0
    return {
        **{name: np.asarray(value, np.float32) for name, value in scalars.items()},
        "l": rng.standard_normal((OUTPUTS, 6, 3, 3)).astype(np.float32),
        "scales": np.asarray([3e-4, -1.7, 12.3, 0.011], np.float32).reshape(per_output),
        "gamma": rng.standard_normal(per_output).astype(np.float32),
        "sigma": rng.uniform(0.1, 30, per_output).astype(np.float32),
        "perinput": rng.uniform(0.5, 2, (1, 6, 1, 1)).astype(np.float32),
        "mask": mask,
        "quantised": rng.choice(np.asarray([-3, 3], np.int8), (OUTPUTS, 6, 3, 3)),
        "steps": rng.uniform(0.01, 2, OUTPUTS).astype(np.float32),
        "flat": np.asarray([-1], np.int64),
        "shape": np.asarray([OUTPUTS, 6, 3, 3], np.int64),
    }


def model() -> onnx.ModelProto:
    known = constants()
    nodes = [helper.make_node("Greater", ["x", "zero"], ["m"]), helper.make_node("Where", ["m", "one", "minus"], ["a"])]
    outputs = []
    for index, (name, (text, _)) in enumerate(SPELLINGS.items()):
        part = parse(f"g (float[4,6,3,3] l) => (float[4,6,3,3] w) {{ {text} }}")
        for node in part.graph.node:
            for names in (node.input, node.output):
                names[:] = [tensor if tensor in known else f"{tensor}_{index}" for tensor in names]
            nodes.append(node)
        nodes.append(helper.make_node("Conv", ["a", f"w_{index}"], [f"y{index}"], name=name, pads=[1, 1, 1, 1]))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None))
    initializers = [numpy_helper.from_array(value, name) for name, value in known.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)]
    graph = helper.make_graph(nodes, "weights", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


@pytest.fixture(scope="module")
def compiled() -> bnn_compiler.CompiledNetwork:
    return bnn_compiler.compile_model(model())


@pytest.mark.parametrize("name", SPELLINGS)
def test_status(name: str, compiled: bnn_compiler.CompiledNetwork) -> None:
    (layer,) = [layer for layer in compiled.report["layers"] if layer["name"] == name]
    assert (layer["status"], layer["reason"]) == SPELLINGS[name][1], layer


def test_results(compiled: bnn_compiler.CompiledNetwork) -> None:
    x = np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)
    actual = compiled.run({"x": x})
    for index, (name, expected) in enumerate(zip(SPELLINGS, run_onnx(model(), {"x": x}), strict=True)):
        # Sums of 54 rounded terms of at most max|w| each; a channel's own |w| may be 10^-5 of the largest.
        tolerance = 54 * 2.0**-20 * np.abs(expected).max(axis=(0, 2, 3), keepdims=True)
        assert np.all(np.abs(actual[f"y{index}"] - expected) <= tolerance), name
