"""Operators that TVM computes by calls of its run-time library."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnxruntime
import pytest

import bnn_compiler


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ("v, y = TopK<axis = -1>(x, k)", "int64[3,3]"),
        ("y, i = TopK<axis = 1>(x, k)", "float[3,3]"),
        ("v, y = TopK<axis = 0, largest = 0>(x, k)", "int64[3,8]"),
        ("y = CumSum(x, a)", "float[3,8]"),
    ],
)
def test_matches_onnx_runtime(body: str, result: str) -> None:
    """Ties included: of equal values, the one with the lower index comes first."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[3,8] x) => ({result} y)
        <int64[1] k = {{3}}, int64 a = {{1}}> {{ {body} }}"""
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    x = np.random.default_rng(0).integers(0, 4, (3, 8)).astype(np.float32)
    compiled = bnn_compiler.compile_model(model)
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], session.run(None, {"x": x})[0])
