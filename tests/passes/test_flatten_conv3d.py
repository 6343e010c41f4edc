from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import Array, run_onnx

SHAPE = (2, 4, 5, 6, 7)


def _model(weights: Array, *, sign: bool, shape: tuple[int, ...] = SHAPE, **attributes: Any) -> onnx.ModelProto:
    nodes = [helper.make_node("Sign", ["x"], ["s"])] if sign else []
    nodes.append(helper.make_node("Conv", ["s" if sign else "x", "w"], ["y"], name="conv", **attributes))
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [output],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


GEOMETRIES: list[dict[str, Any]] = [
    {},
    {"pads": [1, 1, 1, 1, 1, 1]},
    {"pads": [2, 0, 1, 0, 1, 2]},
    {"pads": [1, 0, 0, 2, 0, 0], "strides": [2, 1, 3]},
    {"pads": [2, 2, 2, 2, 2, 2], "dilations": [2, 2, 2], "strides": [1, 2, 1]},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("kernel", "group"), [((3, 3, 3), 1), ((2, 1, 3), 2), ((1, 3, 3), 4)])
def test_binary_convolutions_are_exact(geometry: dict[str, Any], kernel: tuple[int, ...], group: int) -> None:
    rng = np.random.default_rng(0)
    model = _model(rng.choice([-1, 1], (8, 4 // group, *kernel)), sign=True, group=group, **geometry)
    compiled = bnn_compiler.compile_model(model)
    [layer] = compiled.report["layers"]
    assert (layer["name"], layer["op"], layer["status"]) == ("conv", "Conv", "binary")
    x = rng.standard_normal(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0])


@pytest.mark.parametrize("sign_zero", ["plus", "exact"])
def test_zeros_of_the_input(sign_zero: str) -> None:
    """Frames are +1 and subtracted again also where zeros inside are kept."""
    rng = np.random.default_rng(0)
    model = _model(rng.choice([-1, 1], (8, 4, 3, 3, 3)), sign=True, pads=[1] * 6)
    x = rng.integers(-1, 2, SHAPE).astype(np.float32)
    compiled = bnn_compiler.compile_model(model, sign_zero=sign_zero)
    seen = np.where(x == 0, np.float32(1), x) if sign_zero == "plus" else x
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], run_onnx(model, {"x": seen})[0])


@pytest.mark.parametrize("geometry", GEOMETRIES[:3])
@pytest.mark.parametrize("sign", [True, False])
def test_float_convolutions(geometry: dict[str, Any], sign: bool) -> None:
    rng = np.random.default_rng(0)
    model = _model(rng.standard_normal((8, 4, 3, 3, 3)), sign=sign, **geometry)
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["float"]
    x = rng.standard_normal(SHAPE).astype(np.float32)
    # 108 products of values around 1, in another order.
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0], rtol=0, atol=2e-5)


def test_scaled_signs_and_weights() -> None:
    rng = np.random.default_rng(0)
    alpha = np.array([0.3, -1.7, 2.5, 0.01]).reshape(4, 1, 1, 1, 1)
    model = _model(alpha * rng.choice([-1, 1], (4, 4, 3, 3, 3)), sign=True, pads=[1] * 6)
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    x = rng.standard_normal(SHAPE).astype(np.float32)
    # Up to 108 rounded terms of magnitude 2.5, and one subtraction of at most as much.
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0], rtol=0, atol=1e-4)
