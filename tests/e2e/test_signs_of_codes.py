"""A network that quantises to a few levels and takes signs of these: the sign starts where the levels do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import run_onnx

SHAPE = (1, 6, 7, 5)
STEP = np.float32(2 / 3)

Nodes = list[NodeProto]


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


#: From the codes q to signs s.
SIGNS: dict[str, Nodes] = {
    "sign": [node("Sign", "q", "s")],
    "residue": [
        node("Sign", "q", "sign"), node("Clip", "q low high", "c"), node("Sub", "sign c", "d"), node("Add", "d c", "s"),
    ],
    "above a level": [node("Greater", "q third", "g"), node("Where", "g one minus", "s")],
    "at most a level": [node("LessOrEqual", "q third", "g"), node("Where", "g one minus", "s")],
    "not less": [node("Less", "q zero", "l"), node("Not", "l", "g"), node("Where", "g one minus", "s")],
}  # fmt: skip
#: What the quantiser starts from.
STARTS: dict[str, Nodes] = {
    "as it is": [node("Identity", "x", "t")],
    "falling": [node("Neg", "x", "t")],
    "per channel": [node("Mul", "x scale", "m"), node("Add", "m shift", "t")],
}


def model(start: str, sign: str) -> ModelProto:
    rng = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "low": np.float32(-1.3),
        "high": np.float32(1.3),
        "minus": np.float32(-1),
        "one": np.float32(1),
        "zero": np.float32(0),
        "third": np.round(np.float32(0.9) / STEP).astype(np.float32) * STEP - np.float32(1),
        "step": STEP,
        "scale": rng.uniform(0.5, 2, (6, 1, 1)).astype(np.float32) * np.array([1, -1, 1, 1, -1, 1]).reshape(6, 1, 1),
        "shift": rng.uniform(-1, 1, (6, 1, 1)),
        "w": rng.choice([-1, 1], (4, 6, 3, 3)),
    }
    quantiser = [
        node("Clip", "t minus one", "k"), node("Add", "k one", "k1"), node("Div", "k1 step", "k2"),
        node("Round", "k2", "k3"), node("Mul", "k3 step", "k4"), node("Sub", "k4 one", "q"),
    ]  # fmt: skip
    convolutions = [node("Conv", "s w", "y", pads=[1] * 4), node("Conv", "q w", "z", pads=[1] * 4)]
    graph = helper.make_graph(
        [*STARTS[start], *quantiser, *SIGNS[sign], *convolutions],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("sign", SIGNS)
def test_signs_of_codes(start: str, sign: str) -> None:
    network = model(start, sign)
    compiled = bnn_compiler.compile_model(network)
    signs, codes = compiled.report["layers"]
    assert (signs["status"], codes["status"]) == ("binary", "binary_weight")
    assert signs["input"] == codes["input"] == "x"  # the codes themselves are not computed
    rng = np.random.default_rng(1)
    x = rng.uniform(-1.5, 1.5, SHAPE).astype(np.float32)
    x.flat[:60] = np.round(x.flat[:60] * 3) / np.float32(3)  # where levels begin, or next to it
    x.flat[60:64] = [np.inf, -np.inf, 0, -0.0]
    expected = dict(zip(("y", "z"), run_onnx(network, {"x": x}), strict=True))
    actual = compiled.run({"x": x})
    # Residues leave ±1 up to an ulp or two, of which 54 are summed.
    np.testing.assert_allclose(actual["y"], expected["y"], atol=1e-4 if sign == "residue" else 0, rtol=0)
    np.testing.assert_allclose(actual["z"], expected["z"], atol=1e-4, rtol=0)


def test_a_quantiser_that_is_read_as_it_is_still_gives_signs() -> None:
    """The codes are a result of the network as well."""
    network = model("as it is", "sign")
    network.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, None))
    compiled = bnn_compiler.compile_model(network)
    x = np.random.default_rng(1).uniform(-1.5, 1.5, SHAPE).astype(np.float32)
    expected = run_onnx(network, {"x": x})
    actual = compiled.run({"x": x})
    np.testing.assert_array_equal(actual["y"], expected[0])
    np.testing.assert_array_equal(actual["q"], expected[2])
