"""Constants of 2 and 4 bits, bfloat16, float8 and float4 against ONNX Runtime; refusals at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import bnn_compiler
from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, constants, operators, run_onnx
from .small_models import check_import, small_model

F32 = np.float32
SHAPE = (4, 6)
INTEGERS = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}
FLOATS = ["FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"]


def _tensor(name: str, kind: str, values: Array, *, raw: bool = False) -> TensorProto:
    """The values in a narrow type, packed into raw bytes or one of the typed fields."""
    element_type = TensorProto.DataType.Value(kind)
    if not raw:
        return helper.make_tensor(name, element_type, values.shape, values.reshape(-1).tolist())
    return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(element_type)), name)


def _integers(kind: str, shape: tuple[int, ...] = SHAPE) -> Array:
    low, high = INTEGERS[kind]
    return np.random.default_rng(0).integers(low, high, shape, endpoint=True)


def _add(values: str, result: str) -> NodeProto:
    return helper.make_node("Add", ["x", values], [result])


@pytest.mark.parametrize(("opset", "kinds"), [(21, ["INT4", "UINT4"]), (25, ["INT2", "UINT2"])])
@pytest.mark.parametrize("raw", [False, True])
def test_dequantised_constants(opset: int, kinds: list[str], raw: bool) -> None:
    """Per tensor, per axis and in blocks, with and without a zero point, and behind a move."""
    rng = np.random.default_rng(1)
    scales = {"t": np.asarray(0.3), "a": rng.uniform(0.1, 1, 4), "b": rng.uniform(0.1, 1, (4, 2))}
    forms: dict[str, dict[str, Any]] = {"t": {}, "a": {"axis": 0}, "b": {"axis": 1, "block_size": 4}}
    values: dict[str, Any] = {f"s{form}": scale.astype(F32) for form, scale in scales.items()}
    nodes: list[NodeProto] = []
    for kind in kinds:
        values[f"q{kind}"] = _tensor(f"q{kind}", kind, _integers(kind), raw=raw)
        nodes.append(helper.make_node("Transpose", [f"q{kind}"], [f"turned{kind}"], perm=[1, 0]))
        nodes.append(helper.make_node("Transpose", [f"turned{kind}"], [f"back{kind}"], perm=[1, 0]))
        for form, scale in scales.items():
            zero = f"z{kind}{form}"
            values[zero] = _tensor(zero, kind, _integers(kind, scale.shape), raw=raw)
            for index, operands in enumerate(([f"q{kind}", f"s{form}"], [f"back{kind}", f"s{form}", zero])):
                tag = f"{kind}{form}{index}"
                nodes.append(helper.make_node("DequantizeLinear", operands, [f"d{tag}"], **forms[form]))
                nodes.append(_add(f"d{tag}", f"y{tag}"))
    feeds: dict[str, Array] = {"x": rng.standard_normal(SHAPE).astype(F32)}
    outputs: dict[str, int] = {name: 1 for node in nodes for name in node.output if name.startswith("y")}
    imported = check_import(small_model(nodes, feeds, outputs, values, opset=opset), feeds)
    assert set(operators(imported.onnx_model)) == {"Add"}


@pytest.mark.parametrize("raw", [False, True])
def test_narrow_floats(raw: bool) -> None:
    """Cast, and dequantised with a scale per axis; the values are exact in float32."""
    rng = np.random.default_rng(2)
    values: dict[str, Any] = {"s": rng.uniform(0.1, 1, 6).astype(F32)}
    nodes: list[NodeProto] = []
    for kind in [*FLOATS, "BFLOAT16"]:
        values[kind] = _tensor(kind, kind, rng.standard_normal(SHAPE).astype(F32), raw=raw)
        nodes += [helper.make_node("Cast", [kind], [f"c{kind}"], to=1), _add(f"c{kind}", f"y{kind}")]
        if kind != "BFLOAT16":
            nodes.append(helper.make_node("DequantizeLinear", [kind, "s"], [f"d{kind}"], axis=1))
            nodes.append(_add(f"d{kind}", f"yd{kind}"))
    feeds: dict[str, Array] = {"x": rng.standard_normal(SHAPE).astype(F32)}
    outputs: dict[str, int] = {name: 1 for node in nodes for name in node.output if name.startswith("y")}
    imported = check_import(small_model(nodes, feeds, outputs, values, opset=21), feeds)
    assert set(operators(imported.onnx_model)) == {"Add"}


def test_four_bit_floats() -> None:
    """ONNX Runtime does not run them on CPUs; the definition is (x - 0) * s, s per block of 3."""
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6, -1, -1.5], F32).reshape(2, 6)
    scale = np.array([[0.5, 3], [0.1, -1]], F32)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=1, block_size=3),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    x = np.zeros((2, 6), F32)
    model = small_model(nodes, {"x": x}, {"y": 1}, {"q": _tensor("q", "FLOAT4E2M1", values), "s": scale}, opset=23)
    [folded] = constants(import_onnx(model).onnx_model).values()
    np.testing.assert_array_equal(folded, values * np.repeat(scale, 3, 1))


def test_binary_weights_of_four_bits() -> None:
    """The layer is binary, and gives ONNX Runtime's sums."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=0),
        helper.make_node("Conv", ["s", "w"], ["y"], name="conv"),
    ]
    values = {
        "q": _tensor("q", "UINT4", rng.choice([3, 5], (8, 32, 3, 3))),
        "zero": _tensor("zero", "UINT4", np.full(8, 4)),
        "scale": np.full(8, 0.25, F32),
    }
    feeds: dict[str, Array] = {"x": rng.standard_normal((1, 32, 5, 5)).astype(F32)}
    model = small_model(nodes, feeds, {"y": 1}, values, opset=21)
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    np.testing.assert_array_equal(compiled.run(feeds)["y"], run_onnx(model, feeds)[0])


def test_four_bit_activations() -> None:
    """They are kept in eight bits; between a quantiser and its inverse, as floats."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        helper.make_node("QuantizeLinear", ["x", "s"], ["u"], output_dtype=TensorProto.UINT4),
        helper.make_node("Cast", ["u"], ["v"], to=TensorProto.INT32),
    ]
    values = {"s": F32(0.5), "z": _tensor("z", "INT4", np.array(-3))}
    feeds: dict[str, Array] = {"x": np.arange(-12, 12, dtype=F32).reshape(SHAPE) / 4}
    model = small_model(nodes, feeds, {"y": 1, "v": TensorProto.INT32}, values, opset=21)
    imported = check_import(model, feeds)
    assert TensorProto.INT8 not in {info.type.tensor_type.elem_type for info in imported.onnx_model.graph.value_info}


def test_half_precision_scales_round_the_result() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=0),
        helper.make_node("Cast", ["d"], ["w"], to=1),
        helper.make_node("Add", ["x", "w"], ["y"]),
        helper.make_node("DequantizeLinear", ["c", "s"], ["e"], axis=0),
        helper.make_node("Cast", ["e"], ["z"], to=1),
    ]
    rng = np.random.default_rng(4)
    values = {"q": rng.integers(-128, 127, SHAPE, np.int8), "s": rng.uniform(0.01, 1, 4).astype(np.float16)}
    feeds: dict[str, Array] = {"x": np.zeros(SHAPE, F32), "c": rng.integers(0, 255, SHAPE, np.uint8)}
    check_import(small_model(nodes, feeds, {"y": 1, "z": 1}, values, opset=19), feeds)


_BF16 = _tensor("b", "BFLOAT16", np.ones(SHAPE, F32))
_E4M3 = _tensor("f", "FLOAT8E4M3FN", np.ones(SHAPE, F32))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Cast", ["x"], "h", {"to": TensorProto.BFLOAT16}), ("Cast", ["h"], "y", {"to": 1})], "a bfloat16 tensor at"),
        (
            [("Cast", ["x"], "h", {"to": TensorProto.INT4}), ("Cast", ["h"], "y", {"to": 1})],
            "a int4 tensor",
        ),
        ([("Add", ["b", "b"], "h", {}), ("Cast", ["h"], "y", {"to": 1})], "Add node 'n0' computes with the bfloat16"),
        ([("CastLike", ["x", "b"], "h", {}), ("Cast", ["h"], "y", {"to": 1})], "CastLike node 'n0' computes with the"),
        ([("QuantizeLinear", ["x", "s", "f1"], "h", {}), ("Cast", ["h"], "y", {"to": 1})], "'n0' quantises to or from"),
        (
            [("Reshape", ["f", "shape"], "h", {}), ("DequantizeLinear", ["h", "s"], "y", {})],
            "'n1' dequantises",
        ),
    ],
)
def test_refused_at_run_time(nodes: list[tuple[str, list[str], str, dict[str, Any]]], message: str) -> None:
    """Each message names the node and the way out."""
    protos = [
        helper.make_node(operator, inputs, [output], name=f"n{index}", **attributes)
        for index, (operator, inputs, output, attributes) in enumerate(nodes)
    ]
    values = {
        "b": _BF16,
        "f": _E4M3,
        "f1": _tensor("f1", "FLOAT8E4M3FN", np.zeros(())),
        "s": F32(1),
        "shape": np.array([6, 4]),
    }
    model = small_model(protos, {"x": np.zeros(SHAPE, F32)}, {"y": 1}, values, opset=21)
    with pytest.raises(UnsupportedOperatorError, match=rf"{message}.*: export it in float32 or with integers"):
        import_onnx(model)


def test_scales_that_do_not_fit() -> None:
    node = helper.make_node("DequantizeLinear", ["f", "s"], ["y"], name="n", axis=1)
    add = helper.make_node("Add", ["x", "y"], ["z"])
    values = {"f": _E4M3, "s": np.ones(5, F32)}
    model = small_model([node, add], {"x": np.zeros(SHAPE, F32)}, {"z": 1}, values, opset=21)
    with pytest.raises(ModelError, match=r"'n' has a scale of shape \[5\] for axis 1 of data of shape \[4, 6\]"):
        import_onnx(model)


def test_damaged_tensors() -> None:
    """The packed size is checked before anything reads it."""
    node = helper.make_node("Cast", ["q"], ["y"], to=1)
    tensor = _tensor("q", "INT4", np.zeros((3, 3), np.int64), raw=True)
    tensor.raw_data = tensor.raw_data[:-1]
    model = small_model([node], {"x": np.zeros(SHAPE, F32)}, {"y": 1}, {"q": tensor}, opset=21)
    with pytest.raises(ModelError, match=r"'q' of shape \[3, 3\] and type int4 needs 5 bytes, but the model holds 4"):
        import_onnx(model)
