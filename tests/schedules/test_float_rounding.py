from __future__ import annotations

import numpy as np
import onnx.parser
import onnxruntime
import pytest

import bnn_compiler

_AFFINE = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,7,9] x) => (float[1,8,7,9] y)
    <float a = {0.7341181}, float b = {-1.1436615}, float d = {17.838068}> {
    s = Div(x, d) t = Mul(s, a) y = OPERATOR(t, b) }"""


@pytest.mark.parametrize("operator", ["Add", "Sub"])
def test_each_operation_rounds(operator: str) -> None:
    """Contracted into fused multiply-adds, about a quarter of these results differ in the last bit."""
    compiled = bnn_compiler.compile_model(onnx.parser.parse_model(_AFFINE.replace("OPERATOR", operator)))
    x = np.random.default_rng(0).standard_normal((1, 8, 7, 9)).astype(np.float32) * 20
    product = x / np.float32(17.838068) * np.float32(0.7341181)
    expected = np.add(product, np.float32(-1.1436615)) if operator == "Add" else product - np.float32(-1.1436615)
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected)


@pytest.mark.parametrize("target", ["llvm -mcpu=cortex-a72", "llvm -mcpu=nehalem"])
def test_other_targets_have_the_fence(target: str) -> None:
    model = onnx.parser.parse_model(_AFFINE.replace("OPERATOR", "Add"))
    assert bnn_compiler.compile_model(model, target=target).report["layers"] == []


_UNSIMPLIFIED = {
    "Rounded to integers by a large constant": "float c = {12582912} => t = Add(x, c) y = Sub(t, c)",
    "The same in halves, behind a sum": "float c = {6291456} => s = Add(x, x) t = Add(c, s) y = Sub(t, c)",
    "NaN is not below 0": "float c = {0} => l = Less(x, c) n = Not(l) y = Cast<to = 1>(n)",
    "NaN is not 1": "float c = {1} => l = Equal(x, c) n = Not(l) y = Cast<to = 1>(n)",
    "Divided by 0": "float c = {0} => y = Div(x, c)",
    "Times 0": "float c = {0} => y = Mul(x, c)",
    "NaN replaced": "float c = {7} => e = Equal(x, x) y = Where(e, x, c)",
    "Neither below nor above": """float c = {0} => l = Less(x, c) g = GreaterOrEqual(x, c) o = Or(l, g) n = Not(o)
        y = Cast<to = 1>(n)""",
}


@pytest.mark.parametrize("name", _UNSIMPLIFIED)
def test_no_algebra_of_real_numbers(name: str) -> None:
    constants, nodes = _UNSIMPLIFIED[name].split("=>")
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,7,9] x) => (float[1,8,7,9] y)
        <{constants}> {{{nodes}}}"""
    )
    x = np.random.default_rng(0).standard_normal((1, 8, 7, 9)).astype(np.float32) * 9
    x[:, 3] = np.nan
    x[:, 4, 0] = np.inf
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run({"x": x})["y"], expected)


def test_epilogues_keep_their_roundings() -> None:
    """Behind a convolution, in its kernel."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,7,9] x, float[6,8,3,3] w) => (float[1,6,5,7] y)
        <float c = {12582912}> { a = Conv(x, w) t = Add(a, c) y = Sub(t, c) }"""
    )
    feeds = {
        name: np.random.default_rng(0).integers(-4, 5, shape).astype(np.float32) / 4
        for name, shape in (("x", (1, 8, 7, 9)), ("w", (6, 8, 3, 3)))
    }
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run(feeds)["y"], expected)


def test_what_a_reduction_reads_keeps_its_roundings() -> None:
    """The last axis but one is reduced by the definition of the operator, with the affine map inlined into it."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[4,64,7,7] x) => (float[4,7,7] y)
        <float a = {0.7341181}, float b = {-1.1436615}> {
            t = Mul(x, a) s = Add(t, b) y = ReduceMax<axes = [1], keepdims = 0>(s) }"""
    )
    x = np.random.default_rng(0).standard_normal((4, 64, 7, 7)).astype(np.float32)
    expected = (x * np.float32(0.7341181) + np.float32(-1.1436615)).max(axis=1)
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run({"x": x})["y"], expected)
