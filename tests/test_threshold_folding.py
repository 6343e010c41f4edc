"""Affine chains and the thresholds they are folded into, where a reshape stands between comparison and product."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

import bnn_compiler

_CHAINS = {
    "per feature": (np.linspace(-2, 2.5, 6), np.linspace(-1, 1, 6)),
    "one for all": (np.array(2.0), np.array(1.0)),
    "one for all, falling": (np.array(-2.0), np.array(1.0)),
}
#: Shape behind the sign, shape of the weight (MatMul for two axes, Conv for four).
_RESHAPES = [
    ([4, 6], [6, 5]),
    ([8, 3], [3, 5]),
    ([2, 12], [12, 5]),
    ([4, 1, 6], [6, 5]),
    ([4, 6, 1, 1], [5, 6, 1, 1]),
    ([2, 6, 2, 1], [5, 6, 1, 1]),
    ([2, 2, 1, 6], [5, 2, 1, 6]),
]


@pytest.mark.parametrize("chain", _CHAINS)
@pytest.mark.parametrize(("shape", "weight"), _RESHAPES, ids=str)
def test_features_that_a_reshape_mixes(chain: str, shape: list[int], weight: list[int]) -> None:
    rng = np.random.default_rng(0)
    product = "MatMul" if len(weight) == 2 else "Conv"
    extents = ",".join("abcd"[: len(shape)])
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[4,6] x) => (float[{extents}] y)
        <float zero = {{0}}, float one = {{1}}, float minus = {{-1}}> {{ m = Mul(x, a) b = Add(m, c)
        t = GreaterOrEqual(b, zero) s = Where(t, one, minus)
        r = Reshape(s, shape) y = {product}(r, w) }}"""
    )
    scale, bias = _CHAINS[chain]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "a": scale.astype(np.float32),
        "c": bias.astype(np.float32),
        "shape": np.array(shape, np.int64),
        "w": rng.choice(np.array([-1, 1], np.float32), weight),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    x = rng.standard_normal((4, 6)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected)


def test_a_tensor_of_one_axis_is_compared() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[12] x) => (float[4,2] y) <int64[2] shape = {4, 3},
        float[3,2] w = {1, -1, -1, -1, 1, 1}> { s = Sign(x) r = Reshape(s, shape) y = MatMul(r, w) }"""
    )
    x = np.random.default_rng(0).standard_normal(12).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run({"x": x})["y"], expected)


def test_a_batch_norm_over_an_axis_of_its_own() -> None:
    """Unsqueeze and Squeeze around an affine map do not hide whose channels they are."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[4,6] x) => (float[4,5] y) <int64[1] axes = {2},
        float zero = {0}, float one = {1}, float minus = {-1}> { u = Unsqueeze(x, axes) m = Mul(u, a) b = Add(m, c)
        v = Squeeze(b, axes) t = GreaterOrEqual(v, zero) s = Where(t, one, minus) y = MatMul(s, w) }"""
    )
    rng = np.random.default_rng(0)
    constants: dict[str, np.ndarray[Any, Any]] = {
        "a": np.linspace(-2, 2.5, 6, dtype=np.float32).reshape(6, 1),
        "c": np.linspace(-1, 1, 6, dtype=np.float32).reshape(6, 1),
        "w": rng.choice(np.array([-1, 1], np.float32), [6, 5]),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    compiled = bnn_compiler.compile_model(model)
    assert [layer["input"] for layer in compiled.report["layers"]] == ["x"]
    x = rng.standard_normal((4, 6)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected)
