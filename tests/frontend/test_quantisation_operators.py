"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear against ONNX Runtime, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators
from .small_models import check_import, small_model

F32 = np.float32
SHAPE = (2, 3, 8, 5)


def _data(seed: int = 0) -> Array:
    """Values over all ranges: ties (multiples of a half), infinities, numbers beyond 32-bit integers."""
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(SHAPE) * 60).astype(F32)
    values.reshape(-1)[:60] = np.arange(60) / 2 - 15
    values.reshape(-1)[60:66] = [np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9]
    return values


def _codes(dtype: type[np.integer[Any]], shape: tuple[int, ...] = SHAPE) -> Array:
    limits = np.iinfo(dtype)
    return np.random.default_rng(1).integers(limits.min, limits.max, shape, dtype, endpoint=True)


_FORMS: dict[int, list[tuple[type[np.integer[Any]], int]]] = {
    10: [(np.uint8, 3), (np.int8, 0)],
    13: [(np.int8, -7)],
    21: [(np.int16, 9), (np.uint16, 0), (np.uint8, 255)],
}


@pytest.mark.parametrize("opset", _FORMS)
def test_quantise_and_dequantise_per_tensor(opset: int) -> None:
    """All types and scales of one operator set in one model: compiling takes most of the time."""
    nodes: list[NodeProto] = []
    constants: dict[str, Any] = {}
    feeds: dict[str, Array] = {"x": _data()}
    outputs: dict[str, int] = {}
    for index, (dtype, zero) in enumerate(_FORMS[opset]):
        feeds[f"codes{index}"] = _codes(dtype)
        constants[f"z{index}"] = np.asarray(zero, dtype)
        for number, scale in enumerate((1.0, 0.25, 0.3)):
            constants[f"s{number}"] = np.asarray(scale, F32)
            tag = f"{index}{number}"
            parameters = [f"s{number}", f"z{index}"]
            nodes += [
                helper.make_node("QuantizeLinear", ["x", *parameters], [f"q{tag}"]),
                helper.make_node("DequantizeLinear", [f"q{tag}", *parameters], [f"y{tag}"]),
                helper.make_node("DequantizeLinear", [f"codes{index}", *parameters], [f"d{tag}"]),
            ]
            outputs |= {f"q{tag}": helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), f"y{tag}": 1, f"d{tag}": 1}
    check_import(small_model(nodes, feeds, outputs, constants, opset=opset), feeds)


_PAIR = [("Quantize", "x", "q"), ("Dequantize", "q", "y")]


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("given", [False, True])
def test_parameters_per_axis(axis: int, given: bool) -> None:
    """Also as inputs of the graph: then the zero point cannot move into the bounds."""
    scale, zero = np.array([0.5, 0.25, 1.7], F32), np.array([0, 5, 255], np.uint8)
    nodes = [helper.make_node(f"{name}Linear", [data, "s", "z"], [out], axis=axis) for name, data, out in _PAIR]
    parameters: dict[str, Array] = {"s": scale, "z": zero}
    feeds: dict[str, Array] = {"x": _data()} | (parameters if given else {})
    model = small_model(nodes, feeds, {"q": TensorProto.UINT8, "y": 1}, {} if given else parameters, opset=13)
    check_import(model, feeds)


def test_parameters_per_block() -> None:
    rng = np.random.default_rng(2)
    nodes: list[NodeProto] = []
    constants: dict[str, Any] = {}
    outputs: dict[str, int] = {}
    for axis, block in ((2, 3), (-2, 4), (3, 5), (1, 1)):
        shape = [*SHAPE]
        shape[axis] = -(-shape[axis] // block)
        tag = f"{axis}_{block}"
        constants |= {f"s{tag}": rng.uniform(0.1, 2, shape).astype(F32), f"z{tag}": rng.integers(-9, 9, shape, np.int8)}
        operands = [f"s{tag}", f"z{tag}"]
        form: dict[str, Any] = {"axis": axis, "block_size": block}
        nodes.append(helper.make_node("QuantizeLinear", ["x", *operands], [f"q{tag}"], **form))
        nodes.append(helper.make_node("DequantizeLinear", [f"q{tag}", *operands], [f"y{tag}"], **form))
        outputs |= {f"q{tag}": TensorProto.INT8, f"y{tag}": 1}
    feeds = {"x": _data()}
    check_import(small_model(nodes, feeds, outputs, constants, opset=21), feeds)


def test_a_type_without_a_zero_point() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=TensorProto.INT16)
    feeds = {"x": _data()}
    check_import(small_model([node], feeds, {"y": TensorProto.INT16}, {"s": F32(0.01)}, opset=21), feeds)


def test_dequantise_32_bit_integers() -> None:
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"])
    feeds = {"x": _codes(np.int32)}
    check_import(small_model([node], feeds, {"y": 1}, {"s": F32(0.1)}, opset=10), feeds)


@pytest.mark.parametrize("opset", [11, 18])
def test_dynamic_quantisation(opset: int) -> None:
    finite = _data().clip(-100, 90)
    feeds = {"a": finite, "b": np.zeros((2, 3), F32), "c": np.full((4,), 7, F32), "d": -np.abs(finite[0])}
    nodes = [helper.make_node("DynamicQuantizeLinear", [x], [f"{x}q", f"{x}s", f"{x}z"], name=x) for x in feeds]
    outputs = {f"{x}{part}": TensorProto.FLOAT if part == "s" else TensorProto.UINT8 for x in feeds for part in "qsz"}
    check_import(small_model(nodes, feeds, outputs, {}, opset=opset), feeds)


def test_codes_stay_floats() -> None:
    """No cast is left between a quantiser and the layer, whatever is done to the integers in between."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Clip", ["q", "low", "high"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("DequantizeLinear", ["t", "s", "z"], ["y"]),
    ]
    constants = {"s": F32(0.5), "z": np.int8(1), "low": np.int8(-2), "high": np.int8(4)}
    feeds = {"x": _data()}
    imported = check_import(small_model(nodes, feeds, {"y": 1}, constants, opset=14), feeds)
    expected = ["Div", "Clip", "Round", "Add", "Clip", "MaxPool", "Transpose", "Sub", "Mul"]
    assert operators(imported.onnx_model) == expected


def test_codes_that_are_read_as_integers_stay() -> None:
    """A cast that wraps around is no code: 300 as uint8 is 44."""
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Round", ["c"], ["r"]),
        helper.make_node("Cast", ["r"], ["i"], to=TensorProto.UINT8),
        helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    constants = {"low": F32(0), "high": F32(300)}
    feeds = {"x": np.abs(_data())}
    imported = import_onnx(small_model(nodes, feeds, {"y": 1}, constants, opset=14))
    assert operators(imported.onnx_model) == ["Clip", "Round", "Cast", "Cast"]
    constants["high"] = F32(255)
    check = check_import(small_model(nodes, feeds, {"y": 1, "i": TensorProto.UINT8}, constants, opset=14), feeds)
    assert operators(check.onnx_model) == ["Clip", "Round", "Cast"]
    assert list(check.onnx_model.graph.node[1].output) == ["y"]


@pytest.mark.parametrize(
    ("attributes", "scale", "message"),
    [
        (
            {"axis": 1},
            np.ones(4, F32),
            r"scale or zero point of shape \[4\] for axis 1 of data of shape",
        ),
        ({"axis": 4}, np.ones(5, F32), "axis 4, but data of rank 4"),
        ({"axis": 2, "block_size": 3}, np.ones((2, 3, 2, 5), F32), "in blocks of 3 along axis 2"),
    ],
)
def test_parameters_that_do_not_fit(attributes: dict[str, Any], scale: Array, message: str) -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], name="q", **attributes)
    model = small_model([node], {"x": _data()}, {"y": TensorProto.UINT8}, {"s": scale}, opset=21)
    with pytest.raises(ModelError, match=f"QuantizeLinear node 'q'.*{message}|contradict"):
        import_onnx(model)


def test_eight_bit_floats_are_refused() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="q", output_dtype=TensorProto.FLOAT8E4M3FN)
    back = helper.make_node("DequantizeLinear", ["q", "s"], ["y"])
    model = small_model([node, back], {"x": _data()}, {"y": 1}, {"s": F32(1)}, opset=21)
    with pytest.raises(UnsupportedOperatorError, match="'q' quantises to or from a narrow float type at run time"):
        import_onnx(model)
