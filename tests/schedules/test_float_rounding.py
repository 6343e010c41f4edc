from __future__ import annotations

import numpy as np
import onnx.parser
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
