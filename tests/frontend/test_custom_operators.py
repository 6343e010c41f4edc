"""Quantisers of other domains against their definition, written here in NumPy as the ``qonnx`` executor has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators, run_onnx, run_relax

QONNX = "qonnx.custom_op.general"
F32 = np.float32


def f32(value: Any) -> Array:
    return np.asarray(value, F32)


# Ties, values around integers and thresholds, zeros of both signs, values beyond every range.
EDGES = np.array(
    [0, -0.0, 0.5, -0.5, 1.5, 2.5, -1.5, -2.5, 0.49999997, 3.4999998, 1e-30, -1e-30, 7, -8, 100, -300], F32
)


def _model(
    operator: str,
    constants: Mapping[str, Array],
    shape: tuple[int, ...] = (2, 3, 4, 4),
    *,
    domain: str = QONNX,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    node = helper.make_node(operator, ["x", *constants], ["y"], name="q", domain=domain, **attributes)
    border = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", border[:1], border[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _data(shape: tuple[int, ...] = (2, 3, 4, 4), extra: Array | None = None) -> Array:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(shape) * 4).astype(F32).reshape(-1)
    edges = EDGES if extra is None else np.concatenate([EDGES, extra.reshape(-1).astype(F32)])
    values[: edges.size] = edges[: values.size]
    return values.reshape(shape)


def _check(model: onnx.ModelProto, data: Array, expected: Array) -> None:
    imported = import_onnx(model)
    assert {node.domain for node in imported.onnx_model.graph.node} == {""}
    assert [entry.domain for entry in imported.onnx_model.opset_import] == [""]
    onnx.checker.check_model(imported.onnx_model, full_check=True)
    np.testing.assert_array_equal(run_onnx(imported.onnx_model, {"x": data})[0], expected)
    np.testing.assert_array_equal(run_relax(imported.module, [data])[0], expected)


ROUNDING: dict[str, Callable[[Array], Array]] = {
    "ROUND": np.round,
    "half_even": np.round,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
    "DOWN": np.fix,
    "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + f32(0.5)),
    "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - f32(0.5)),
}


def _quant(x: Array, s: Array, z: Array, bits: int, signed: bool, narrow: bool, mode: str) -> Array:
    y = x / s + z
    if bits == 1 and signed:
        y = np.where(y >= 0, f32(1), f32(-1))
    else:
        low = -(2 ** (bits - 1)) + narrow if signed else 0
        high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1 - narrow
        y = ROUNDING[mode](np.clip(y, f32(low), f32(high)))
    return np.asarray((y - z) * s)


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize(
    ("bits", "signed", "narrow"),
    [(1, 1, 1), (1, 0, 0), (2, 1, 0), (2, 1, 1), (2, 0, 0), (4, 0, 1), (8, 1, 0), (16, 1, 0)],
)
def test_quant(bits: int, signed: int, narrow: int, opset: int) -> None:
    scale, zero = f32(0.25), f32(0)
    constants = {"s": scale, "z": zero, "b": f32(bits)}
    model = _model("Quant", constants, opset=opset, signed=signed, narrow=narrow, rounding_mode="ROUND")
    data = _data(extra=EDGES * scale)
    _check(model, data, _quant(data, scale, zero, bits, bool(signed), bool(narrow), "ROUND"))


@pytest.mark.parametrize("mode", ROUNDING)
def test_rounding_modes(mode: str) -> None:
    constants = {"s": f32(1), "z": f32(0), "b": f32(4)}
    model = _model("IntQuant", constants, signed=1, narrow=0, rounding_mode=mode)
    _check(model, _data(), _quant(_data(), f32(1), f32(0), 4, True, False, mode))


def test_a_scale_per_channel_and_a_zero_point() -> None:
    scale = np.array([0.3, 1, 2.7], F32).reshape(1, 3, 1, 1)
    constants = {"s": scale, "z": np.full(1, 3, F32), "b": np.full(1, 4, F32)}
    model = _model("Quant", constants, domain="onnx.brevitas", signed=0, narrow=0)
    _check(model, _data(), _quant(_data(), scale, np.full(1, 3, F32), 4, False, False, "ROUND"))


@pytest.mark.parametrize("opset", [9, 12])
@pytest.mark.parametrize("scale", [f32(1), f32(-0.3), np.array([0.5, 2, 3], F32).reshape(3, 1, 1)])
def test_bipolar_quant(scale: Array, opset: int) -> None:
    data = _data()
    data[1, 2, 3, 3] = np.nan
    model = _model("BipolarQuant", {"s": scale}, domain="onnx.brevitas", opset=opset)
    expected = np.where(data >= 0, f32(1), f32(-1)) * scale
    imported = import_onnx(model)
    np.testing.assert_array_equal(run_onnx(imported.onnx_model, {"x": data})[0], expected)
    np.testing.assert_array_equal(run_relax(imported.module, [np.nan_to_num(data)])[0][:1], expected[:1])


@pytest.mark.parametrize(("before", "after"), [(8, 4), (6, 6), (10, 1)])
@pytest.mark.parametrize("mode", ["FLOOR", "ROUND"])
def test_trunc_version_1(before: int, after: int, mode: str) -> None:
    scale, zero = f32(0.125), f32(0)
    constants = {"s": scale, "z": zero, "b": f32(before), "o": f32(after)}
    expected = ROUNDING[mode](np.round(_data() / scale) / f32(2.0 ** (before - after))) * scale
    _check(_model("Trunc", constants, rounding_mode=mode), _data(), expected)


def test_trunc_version_2() -> None:
    scale, out = f32(0.125), f32(0.5)
    constants = {"s": scale, "z": f32(0), "b": f32(8), "t": out, "o": f32(4)}
    expected = np.floor(np.clip(np.round(_data() / scale) / f32(4), f32(0), f32(15))) * out
    _check(_model("Trunc", constants, signed=0, narrow=0), _data(), expected)


def _multi_threshold(x: Array, thresholds: Array, axis: int, scale: float, bias: float) -> Array:
    moved = np.moveaxis(x, axis, -1)[..., None]
    count = np.moveaxis(np.count_nonzero(moved >= thresholds, axis=-1).astype(F32), -1, axis)
    return np.asarray(f32(scale) * count + f32(bias))


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize(
    ("shape", "layout", "axis"),
    [((2, 4), "", 1), ((2, 4, 6), "", 2), ((2, 4, 3, 5), "", 1), ((2, 3, 5, 4), "NHWC", 3), ((2, 4, 3, 2, 2), "", 1)],
)
@pytest.mark.parametrize(("steps", "shared"), [(1, False), (3, False), (3, True), (15, False)])
def test_multi_threshold(shape: tuple[int, ...], layout: str, axis: int, steps: int, shared: bool, opset: int) -> None:
    rng = np.random.default_rng(1)
    thresholds = np.sort(rng.standard_normal((1 if shared else shape[axis], steps)).astype(F32) * 2, axis=1)
    thresholds[0, 0] = 0
    attributes = {"data_layout": layout} if layout else {}
    model = _model("MultiThreshold", {"t": thresholds}, shape, opset=opset, out_scale=0.5, out_bias=-1.5, **attributes)
    data = _data(shape, extra=thresholds[0])  # thresholds themselves: >= holds
    _check(model, data, _multi_threshold(data, thresholds, axis, 0.5, -1.5))


def test_thresholds_behind_each_other() -> None:
    """The second node's rank follows from the first one's lowering."""
    model = _model("MultiThreshold", {"t": np.array([[0.0], [1.0], [2.0]], F32)}, out_dtype="BINARY")
    second = helper.make_node("MultiThreshold", ["y", "t"], ["z"], name="second", domain=QONNX)
    model.graph.node.append(second)
    model.graph.output[0].name = "z"
    data = _data()
    thresholds = np.array([[0.0], [1.0], [2.0]], F32)
    first = _multi_threshold(data, thresholds, 1, 1, 0)
    _check(model, data, _multi_threshold(first, thresholds, 1, 1, 0))


def test_weights_behind_a_quantiser_are_constants() -> None:
    """And a layer between two quantisers is binary, though the file does not import their domain."""
    rng = np.random.default_rng(0)
    model = _model("BipolarQuant", {"s": f32(1)}, shape=(1, 16, 6, 6))
    weight = helper.make_node(
        "Quant", ["w", "s", "zero", "one"], ["v"], name="w_quant", domain=QONNX, signed=1, narrow=1
    )
    model.graph.node.extend([weight, helper.make_node("Conv", ["y", "v"], ["c"], name="conv")])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("c", TensorProto.FLOAT, (1, 8, 4, 4)))
    latent = rng.standard_normal((8, 16, 3, 3)).astype(F32)
    for name, value in {"w": latent, "zero": f32(0), "one": f32(1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    compiled = bnn_compiler.compile_model(model)
    [layer] = compiled.report["layers"]
    assert (layer["name"], layer["status"]) == ("conv", "binary")
    data = rng.standard_normal((1, 16, 6, 6)).astype(F32)
    signs = np.where(data >= 0, f32(1), f32(-1))
    plain = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["c"])],
            "g",
            model.graph.input,
            model.graph.output,
            [numpy_helper.from_array(np.where(latent >= 0, f32(1), f32(-1)), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    np.testing.assert_array_equal(compiled.run({"x": data})["c"], run_onnx(plain, {"x": signs})[0])


def test_a_quantiser_in_a_branch() -> None:
    model = _model("BipolarQuant", {"s": f32(2)})
    inner = helper.make_graph(list(model.graph.node), "then", [], list(model.graph.output))
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"])],
        "else",
        [],
        [helper.make_tensor_value_info("n", TensorProto.FLOAT, (2, 3, 4, 4))],
    )
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("If", ["c"], ["r"], name="if", then_branch=inner, else_branch=other))
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, ()))
    model.graph.output[0].name = "r"
    imported = import_onnx(model)
    data = _data()
    for condition, expected in ((True, np.where(data >= 0, f32(2), f32(-2))), (False, -data)):
        feeds = {"x": data, "c": np.array(condition)}
        np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds)[0], expected)


def test_a_computed_bit_width_is_folded() -> None:
    model = _model("Quant", {"s": f32(1), "z": f32(0), "b": f32(2)}, signed=1, narrow=0)
    model.graph.node.insert(0, helper.make_node("Ceil", ["learned"], ["bits"]))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(f32(1.3)), "learned"))
    model.graph.node[1].input[3] = "bits"
    _check(model, _data(), _quant(_data(), f32(1), f32(0), 2, True, False, "ROUND"))


GOOD = {"s": f32(1), "z": f32(0), "b": f32(2)}


@pytest.mark.parametrize(
    ("operator", "constants", "attributes", "message"),
    [
        ("Quant", GOOD, {"signed": 1}, "q' lacks the attribute 'narrow'"),
        ("Quant", GOOD, {"signed": 2, "narrow": 0}, "q' has a bad 'signed'"),
        ("Quant", {**GOOD, "b": f32(0)}, {"signed": 1, "narrow": 0}, "bit width of 0; 1 to 32 are supported"),
        ("Quant", {**GOOD, "b": f32(np.nan)}, {"signed": 1, "narrow": 0}, "bit width of nan"),
        ("Quant", {"s": f32(1)}, {"signed": 1, "narrow": 0}, "q' has 2 inputs; it needs 4"),
        ("Quant", GOOD, {"signed": 1, "narrow": 0, "rounding_mode": "ODD"}, "unknown rounding_mode 'ODD'"),
        ("BipolarQuant", {}, {}, "q' has 1 inputs; it needs 2"),
        ("MultiThreshold", {"t": np.zeros(3, F32)}, {}, r"thresholds of shape \[3\]"),
        ("MultiThreshold", {"t": np.zeros((2, 3, 4), F32)}, {}, r"thresholds of shape \[2, 3, 4\]"),
        ("MultiThreshold", {"t": np.zeros((3, 256), F32)}, {}, "1 <= n <= 255"),
        ("MultiThreshold", {"t": np.zeros((3, 1), F32)}, {"out_scale": float("nan")}, "no finite number"),
        ("MultiThreshold", {"t": np.zeros((3, 1), F32)}, {"data_layout": "NHWDXC"}, "rank 4 without channels"),
        ("MultiThreshold", {"t": np.zeros((5, 1), F32)}, {}, "contradict"),
        ("Trunc", {**GOOD, "o": f32(4)}, {}, "truncates 2 bits to 4"),
    ],
)
def test_contradictions(operator: str, constants: dict[str, Array], attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=rf"^g: .*{message}"):
        import_onnx(_model(operator, constants, **attributes))


def test_what_must_be_constant() -> None:
    model = _model("Quant", GOOD, signed=1, narrow=0)
    model.graph.input.append(helper.make_tensor_value_info("bits", TensorProto.FLOAT, ()))
    model.graph.node[0].input[3] = "bits"
    message = rf"{QONNX}.Quant node 'q' cannot be compiled: its bit width is not one constant number$"
    with pytest.raises(UnsupportedOperatorError, match=message):
        import_onnx(model)
    thresholds = _model("MultiThreshold", {"t": np.zeros((3, 1), F32)})
    thresholds.graph.node[0].input[1] = "x"
    with pytest.raises(UnsupportedOperatorError, match=r"its thresholds are not constants$"):
        import_onnx(thresholds)


def test_unknown_operators_of_known_domains() -> None:
    with pytest.raises(UnsupportedOperatorError, match=rf"{QONNX}.Im2Col node 'q': .* except BipolarQuant, IntQuant,"):
        import_onnx(_model("Im2Col", {}))


def test_too_old_an_operator_set() -> None:
    with pytest.raises(UnsupportedOperatorError, match="needs the ONNX operator set 9 or newer, the model uses 8"):
        import_onnx(_model("BipolarQuant", {"s": f32(1)}, opset=8))


def test_opset_9_uses_no_later_operator() -> None:
    imported = import_onnx(_model("Quant", GOOD, opset=9, signed=1, narrow=0))
    assert operators(imported.onnx_model) == ["Clip", "Add", "Sub"]
