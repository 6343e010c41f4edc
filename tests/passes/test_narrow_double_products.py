from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import Array, run_onnx

X = np.random.default_rng(0).standard_normal((1, 8, 6, 7))
SIGNS = np.random.default_rng(1).choice([-1.0, 1.0], (4, 8, 3, 3))


def _convolution(dtype: str, weights: Array, activation: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g ({dtype}[1,8,6,7] x) => ({dtype}[1,4,6,7] y) {{
        {activation} y = Conv<pads = [1, 1, 1, 1]>(a, w) }}"""
    )
    kind = np.float64 if dtype == "double" else np.float32
    for name, value in {"w": weights, "h": np.asarray(0.5), "t": np.asarray(1.0)}.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(kind), name))
    return model


@pytest.mark.parametrize(
    ("weights", "activation", "lowered"),
    [
        (SIGNS, "a = Sign(x)", True),
        (SIGNS * 0.125, "s = Sign(x) a = Mul(s, h)", True),
        (SIGNS * 0.3, "a = Sign(x)", False),  # rounds
        (SIGNS, "s = Sign(x) a = Add(s, h)", False),  # two magnitudes
        (SIGNS, "a = Identity(x)", False),
        (SIGNS * np.arange(9.0).reshape(3, 3), "a = Sign(x)", False),
    ],
)
def test_convolutions(weights: Array, activation: str, lowered: bool) -> None:
    """ONNX Runtime has no convolution of doubles; that of floats is as exact here, or the tolerance is its own."""
    compiled = bnn_compiler.compile_model(_convolution("double", weights, activation), verify=False)
    [layer] = compiled.report["layers"]
    assert (layer["op"], layer["algorithm"] != "float") == ("Conv", lowered)
    [expected] = run_onnx(_convolution("float", weights, activation), {"x": X.astype(np.float32)})
    found = compiled.run({"x": X})["y"]
    assert found.dtype == np.float64
    # 72 products of values up to 8, each rounded to float32 by ONNX Runtime.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if lowered else 1e-4)
