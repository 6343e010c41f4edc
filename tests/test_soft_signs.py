"""``Sign(0)`` taken as +1, where the sign has several readers or elements that move: one rule for all of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnn_compiler
from bnn_compiler.verification.reference import Reference, take_zero_as_plus_one
from tests.frontend.onnx_text import Array, parse, run_onnx

RNG = np.random.default_rng(0)
WEIGHTS = RNG.choice(np.asarray([-1, 1], np.float32), (4, 8, 3, 3))

GRAPHS = {
    "an output, too": "(float[1,8,6,6] x) => (float[1,8,6,6] s, float[1,4,4,4] y) { s = Sign(x) y = Conv(s, w) }",
    "behind a max-pool": """(float[1,8,6,6] x) => (float[1,4,3,3] y) {
        s = Sign(x) m = MaxPool<kernel_shape = [2, 2]>(s) y = Conv(m, w) }""",
    "negated, permuted": """(float[1,8,6,6] x) => (float[1,4,4,4] y) {
        s = Sign(x) n = Neg(s) g = Gather<axis = 1>(n, order) y = Conv(g, w) }""",
    "of a sum with a sign": """(float[1,8,6,6] x) => (float[1,4,4,4] y) {
        s = Sign(x) a = Add(x, s) t = Sign(a) g = Gather<axis = 1>(t, order) y = Conv(g, w) }""",
}


def _model(text: str) -> onnx.ModelProto:
    model = parse(f"g {text}")
    model.graph.output[-1].type.tensor_type.ClearField("shape")
    constants = {"w": WEIGHTS, "order": np.asarray([3, -1, 0, 2, 7, 1, 5, 0])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def _whole_numbers() -> Array:
    """Zeros of both signs among them."""
    numbers = np.asarray([-2, -1, -0.0, 0, 1, 2], np.float32)
    return np.random.default_rng(1).choice(numbers, (1, 8, 6, 6))


@pytest.mark.parametrize("name", GRAPHS)
def test_all_readers_see_the_same_sign(name: str) -> None:
    model = _model(GRAPHS[name])
    compiled = bnn_compiler.compile_model(model)
    assert [note["code"] for note in compiled.report["notes"]] == ["sign_zero_taken_as_plus_one"]
    data = {"x": _whole_numbers()}
    signs = [node.input[0] for node in model.graph.node if node.op_type == "Sign"]
    # Only the last sign is the layer's; one before it keeps ONNX's rule.
    expected = Reference(take_zero_as_plus_one(model, signs[-1:])).run(data)
    actual = compiled.run(data)
    for output in expected:
        np.testing.assert_array_equal(actual[output], expected[output])


@pytest.mark.parametrize("move", ["Identity(p)", "Gather<axis = 1>(p, order)", "Transpose<perm = [0, 1, 3, 2]>(p)"])
def test_zeros_of_a_pad_stay_zeros(move: str) -> None:
    text = f"""(float[1,8,6,6] x) => (float[1,4,6,6] y) <int64[8] ring = {{0, 0, 1, 1, 0, 0, 1, 1}}> {{
        s = Sign(x) p = Pad(s, ring) m = {move} y = Conv(m, w) }}"""
    model = _model(text)
    data = {"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)}
    [expected] = run_onnx(model, data)
    np.testing.assert_array_equal(bnn_compiler.compile_model(model).run(data)["y"], expected)
