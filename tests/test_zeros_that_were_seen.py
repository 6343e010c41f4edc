"""Zeros that verification sees in front of a Sign which was compiled as ±1: the network is compiled again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler.verification.reference import Array
from tests.frontend.onnx_text import parse, run_onnx

RNG = np.random.default_rng(3)


def _differences(body: str, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Differences of two channels, and 9: 0 is one float among many for an analysis, and one in 255 for integers."""
    model = parse(f"g (float x) => (float y) <float nine = {{9}}> {{ {body} }}")
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    difference = np.eye(8, dtype=np.float32) - np.roll(np.eye(8, dtype=np.float32), 1, axis=1)
    weights: Array = RNG.choice(np.asarray([-1, 1], np.float32), (4, 8, 3, 3))
    for name, value in (
        ("v", difference[:, :, None, None]),
        ("u", difference),
        ("w", weights),
        ("t", weights[:, :, 0, 0].T),
    ):
        if any(name in node.input for node in model.graph.node):
            model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return model


def test_differences_of_integers() -> None:
    model = _differences("c = Conv(x, v) d = Add(c, nine) s = Sign(d) y = Conv(s, w)", (1, 8, 12, 12))
    compiled = bnn_compiler.compile_model(model)
    (sign,) = compiled.report["signs"]
    assert (sign["input"], sign["zero"]) == ("d", "kept")
    (note,) = [note for note in compiled.report["notes"] if note["code"] == "sign_zero_kept"]
    assert note["detail"] == "Sign(0) stays 0: verification found 0 to be common in 'd'"
    assert compiled.report["verification"] is not None
    own = compiled.report["verification"]["own_model"]
    assert own is not None and own["agrees"]
    image = RNG.integers(126, 131, (1, 8, 12, 12)).astype(np.float32)
    np.testing.assert_array_equal(compiled.run({"x": image})["y"], run_onnx(model, {"x": image})[0])
    plus = bnn_compiler.compile_model(model, sign_zero="plus").report
    assert [entry["zero"] for entry in plus["signs"]] == ["plus"], "what the user chose stays"
    assert plus["verification"] is not None and [z["tensor"] for z in plus["verification"]["sign_zeros"]] == ["d"]


@pytest.mark.parametrize("target", ["llvm -mcpu=cortex-a72"])
def test_another_target_keeps_them_too(target: str) -> None:
    model = _differences("c = MatMul(x, u) d = Add(c, nine) s = Sign(d) y = MatMul(s, t)", (640, 8))
    report = bnn_compiler.compile_model(model, target=target).report
    assert [entry["zero"] for entry in report["signs"]] == ["kept"]
