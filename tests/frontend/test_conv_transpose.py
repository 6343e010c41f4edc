"""``ConvTranspose`` against ONNX Runtime: pads, automatic ones, output shapes and paddings, groups, 1 to 3 axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, parse, run_onnx, run_relax

F32 = np.float32


def _model(x: Array, weight: Array, bias: Array | None, attributes: dict[str, Any]) -> onnx.ModelProto:
    constants = [numpy_helper.from_array(weight, "w")]
    constants += [] if bias is None else [numpy_helper.from_array(bias, "b")]
    node = helper.make_node("ConvTranspose", ["x", *(t.name for t in constants)], ["y"], name="node", **attributes)
    result = [f"d{axis}" for axis in range(x.ndim)]
    given, made = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims)
        for name, dims in (("x", x.shape), ("y", result))
    )
    graph = helper.make_graph([node], "g", [given], [made], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _random_case(seed: int) -> tuple[Array, Array, Array | None, dict[str, Any]]:
    """Whole numbers, so that no sum is rounded and the order of summation does not matter."""
    rng = np.random.default_rng(seed)
    spatial, groups = int(rng.integers(1, 4)), int(rng.choice([1, 1, 2]))
    x = rng.integers(-9, 10, (2, 2 * groups, *rng.integers(1, 7, spatial))).astype(F32)
    kernel, strides, dilations = (rng.integers(1, top, spatial) for top in (5, 4, 3))
    weight = rng.integers(-9, 10, (2 * groups, 3, *kernel)).astype(F32)
    bias = rng.integers(-9, 10, 3 * groups).astype(F32) if rng.random() < 0.5 else None
    attributes: dict[str, Any] = {
        "strides": strides.tolist(), "dilations": dilations.tolist(), "group": groups
    }  # fmt: skip
    window = (kernel - 1) * dilations + 1
    full = (np.asarray(x.shape[2:]) - 1) * strides + window
    if rng.random() < 0.5:
        attributes["output_padding"] = [int(rng.integers(max(s, d))) for s, d in zip(strides, dilations, strict=True)]
    match rng.integers(4):
        case 0:
            attributes["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        case 1:
            attributes["output_shape"] = [int(rng.integers(1, size + 3)) for size in full]
            attributes["auto_pad"] = str(rng.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER"]))
        case 2:
            most = [min(w, s // 2 + 1) for w, s in zip(window, full, strict=True)]
            attributes["pads"] = [int(rng.integers(size)) for size in most * 2]
        case _:
            pass
    return x, weight, bias, attributes


@pytest.mark.parametrize("seed", range(40))
def test_random_forms(seed: int) -> None:
    _check_random(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 1000))
def test_more_random_forms(seed: int) -> None:
    _check_random(seed)


def _check_random(seed: int) -> None:
    x, weight, bias, attributes = _random_case(seed)
    model = _model(x, weight, bias, attributes)
    try:
        [expected] = run_onnx(model, {"x": x})
    except Exception as error:  # ONNX Runtime's errors are private
        assert "output_padding" in str(error)
        with pytest.raises(UnsupportedOperatorError, match="less than a stride"):
            import_onnx(model)
        return
    [found] = run_relax(import_onnx(model).module, [x])
    np.testing.assert_array_equal(found, expected, err_msg=repr((x.shape, weight.shape, attributes)))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [({"auto_pad": "SAME"}, "unknown auto_pad"), ({"output_shape": [9]}, "output_shape")],
)
def test_attributes_that_do_not_fit(attributes: dict[str, Any], reason: str) -> None:
    model = _model(np.zeros((1, 2, 4, 4), F32), np.zeros((2, 3, 3, 3), F32), None, attributes)
    with pytest.raises(ModelError, match=reason):
        import_onnx(model)


@pytest.mark.parametrize(
    ("shape", "weight", "attributes"),
    [
        # More channels than ONNX Runtime sums at once, with many and with few pixels.
        ((1, 150, 13, 14), (150, 3, 2, 2), {"strides": [2, 2]}),
        ((1, 300, 5, 5), (300, 3, 3, 3), {"strides": [2, 1], "pads": [1, 1, 0, 1]}),
        ((2, 6, 5, 9), (6, 4, 4, 3), {"group": 2, "dilations": [1, 2], "output_padding": [0, 1], "strides": [1, 2]}),
        ((1, 4, 3), (4, 2, 3), {"strides": [3]}),
        ((1, 4, 3, 4, 5), (4, 2, 2, 3, 2), {"strides": [2, 2, 2], "auto_pad": "SAME_UPPER"}),
    ],
)
def test_order_of_summation(shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, Any]) -> None:
    """Floats bit for bit: sums are taken in ONNX Runtime's order."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(size).astype(F32) for size in (shape, weight))
    model = _model(x, kernel, rng.standard_normal(weight[1] * attributes.get("group", 1)).astype(F32), attributes)
    found = bnn_compiler.compile_model(model, verify=False).run({"x": x})["y"]
    np.testing.assert_array_equal(found, run_onnx(model, {"x": x})[0])


def test_one_pixel() -> None:
    """One lane: no vectors. Whole numbers, since ONNX Runtime's product with a vector sums in another order."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.integers(-9, 10, size).astype(F32) for size in ((1, 32, 1), (32, 4, 1)))
    model = _model(x, kernel, None, {})
    found = bnn_compiler.compile_model(model, verify=False).run({"x": x})["y"]
    np.testing.assert_array_equal(found, run_onnx(model, {"x": x})[0])


def test_signs_of_sums_that_cancel() -> None:
    """Sums of 64 signs times α are 0 now and then, or rounding noise, and a sign behind them shows which."""
    rng = np.random.default_rng(0)
    scale = np.linspace(0.05, 1.3, 8, dtype=F32)[:, None, None]
    constants = {
        "v": rng.choice([-1, 1], (16, 8, 4, 4)).astype(F32) * scale,
        "w": rng.choice([-1, 1], (8, 8, 3, 3)).astype(F32) * F32(0.3),
    }
    model = parse(
        """g (float[1,16,6,6] x) => (float[1,8,10,10] y) {
        a = Sign(x) c = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1]>(a, v) s = Sign(c) y = Conv(s, w) }"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    compiled = bnn_compiler.compile_model(model, sign_zero="exact")
    verification = compiled.report["verification"]
    assert verification is not None
    assert verification["passed"]
    assert not verification["exact_sums"]
    x = rng.standard_normal((1, 16, 6, 6)).astype(F32)
    # 72 terms of 0.3, added up one by one there and multiplied here: 72 roundings of sums below 22.
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0], rtol=0, atol=72 * 22 * 2**-24)
