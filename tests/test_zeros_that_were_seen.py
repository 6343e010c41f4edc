"""Zeros that verification sees in front of a Sign which was compiled as ±1: the network is compiled again."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnn_compiler
from bnn_compiler.verification.reference import Array
from tests.frontend.onnx_text import parse, run_onnx

RNG = np.random.default_rng(3)


def test_an_image_of_integers_less_its_mean() -> None:
    """0 is one float among many for an analysis, and one in 255 for an image that nobody has normalised."""
    model = parse(
        "g (float[1,8,12,12] x) => (float[1,4,10,10] y) <float m = {128}> { d = Sub(x, m) s = Sign(d) y = Conv(s, w) }"
    )
    weights: Array = RNG.choice(np.asarray([-1, 1], np.float32), (4, 8, 3, 3))
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
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
    model = parse(
        "g (float[64,64] x) => (float[64,8] y) <float m = {128}> { d = Sub(x, m) s = Sign(d) y = MatMul(s, w) }"
    )
    weights: Array = RNG.choice(np.asarray([-1, 1], np.float32), (64, 8))
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    report = bnn_compiler.compile_model(model, target=target).report
    assert [entry["zero"] for entry in report["signs"]] == ["kept"]
