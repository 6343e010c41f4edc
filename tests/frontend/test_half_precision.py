from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import bnn_compiler
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators, parse, run_onnx

NETWORK = """g (float16[1,16,8,8] x) => (float16[1,10] y) {
    s = Sign(x) [conv] c = Conv<pads = [1, 1, 1, 1]>(s, w) b = BatchNormalization(c, g, be, mu, va) r = Sign(b)
    p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) f = Flatten(p) [fc] y = MatMul(f, v) }"""


def _with_constants(model: onnx.ModelProto, constants: dict[str, Array]) -> onnx.ModelProto:
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float16), name))
    return model


def _network() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    parameters = {name: rng.standard_normal(24) for name in ("g", "be", "mu")}
    weights = {"w": rng.choice([-1, 1], (24, 16, 3, 3)), "v": rng.choice([-1, 1], (24 * 16, 10))}
    return _with_constants(parse(NETWORK), {**parameters, **weights, "va": rng.random(24) * 100 + 1})


def test_a_binary_network_in_half_precision_is_exact() -> None:
    model = _network()
    compiled = bnn_compiler.compile_model(model)
    assert [(layer["name"], layer["status"]) for layer in compiled.report["layers"]] == [
        ("conv", "binary"),
        ("fc", "binary"),
    ]
    assert "half precision" in compiled.report["notes"][0]["detail"]
    x = np.random.default_rng(1).standard_normal((1, 16, 8, 8)).astype(np.float16)
    [expected] = run_onnx(model, {"x": x})
    found = compiled.run({"x": x})["y"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected)


def test_float_layers_in_half_precision() -> None:
    rng = np.random.default_rng(0)
    text = "g (float16[1,16,8,8] x) => (float16[1,8,8,8] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Relu(c) }"
    model = _with_constants(parse(text), {"w": rng.standard_normal((8, 16, 3, 3))})
    x = rng.standard_normal((1, 16, 8, 8)).astype(np.float16)
    [expected] = run_onnx(model, {"x": x})
    found = bnn_compiler.compile_model(model).run({"x": x})["y"]
    # One rounding to half precision each, by half an ulp (2^-12 relative), of sums that differ less than that.
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=2**-10, atol=1e-5)


@pytest.mark.parametrize(
    ("border", "body", "kept"),
    [
        ("(float16[2,3] x) => (float16[2,3] y)", "y = Identity(x)", []),
        ("(float16[2,3] x) => (float16[2,3] x)", "u = Neg(x)", ["Neg"]),
        ("(float[2,3] x) => (float[2,3] y)", "h = Cast<to = 10>(x) n = Neg(h) y = Cast<to = 1>(n)", ["Neg"]),
        ("(float16[2,3] x) => (float16[2,3] y, float16[2,3] z)", "y = Neg(x) z = Abs(y)", ["Neg", "Abs"]),
    ],
)
def test_the_border_keeps_its_types(border: str, body: str, kept: list[str]) -> None:
    model = parse(f"g {border} {{ {body} }}")
    imported = import_onnx(model)
    found = [name for name in operators(imported.onnx_model) if name not in {"Cast", "Identity"}]
    assert found == kept
    x = np.array([[1, -2, 0.5], [1e-7, -0.0, 6e4]], np.float16)
    feed = {"x": x.astype(imported.inputs[0].dtype)}
    for result, expected in zip(run_onnx(imported.onnx_model, feed), run_onnx(model, feed), strict=True):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


def test_branches_are_widened() -> None:
    model = parse(
        """g (float16[2,3] x, bool c) => (float16[2,3] y) {
        y = If(c) <then_branch = a () => (float16[2,3] u) { u = Neg(x) },
                   else_branch = b () => (float16[2,3] v) { v = Mul(x, k) }> }"""
    )
    _with_constants(model, {"k": np.array(3)})
    imported = import_onnx(model)
    assert {tensor.data_type for tensor in imported.onnx_model.graph.initializer} == {TensorProto.FLOAT}
    x = np.array([[1, -2, 0.5], [4, 0, 7]], np.float16)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds)[0], run_onnx(model, feeds)[0])


@pytest.mark.parametrize(
    "body", ["h = Cast<to = 10>(x) y = Cast<to = 1>(h)", "h = Cast<to = 10>(x) z = Sign(h) y = Cast<to = 1>(z)"]
)
def test_a_cast_to_half_precision_rounds(body: str) -> None:
    """Explicit casts of float32 networks: mixed precision, or a quantiser of eleven bits."""
    model = parse(f"g (float[3,4] x) => (float[3,4] y) {{ {body} }}")
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    x[0] = [1e-9, -1e-9, 1e-7, 0]
    [expected] = run_onnx(model, {"x": x})
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run({"x": x})["y"], expected)
