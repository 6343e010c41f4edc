"""Zeros in front of a Sign: which prove that 0 is common there."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.sample_inputs import number_of_inputs, sample_inputs
from bnn_compiler.verification.sign_zeros import count_sign_zeros, may_be_common
from tests.frontend.onnx_text import parse

RNG = np.random.default_rng(2)
SHAPE = (1, 4, 10, 10)
WEIGHTS = {
    "w": RNG.standard_normal((8, 4, 3, 3)).astype(np.float32),
    "b": RNG.standard_normal(8).astype(np.float32),
    "signs": RNG.choice(np.asarray([-1, 1], np.float32), (8, 4, 3, 3)),
}


@pytest.mark.parametrize(
    ("body", "common"),
    [
        ("t = Conv(x, w, b)", False),
        ("t = Conv(x, w)", False),  # zeros where the input is zero: its own
        ("t = Identity(x)", False),
        ("a = Conv(x, w) r = Relu(a) t = Conv(r, v, c)", False),
        ("a = Conv(x, w, b) t = Relu(a)", True),
        ("a = Conv<pads = [2, 2, 2, 2]>(x, w, b) r = Relu(a) t = MaxPool<kernel_shape = [2, 2]>(r)", True),
        ("a = Sign(x) t = Conv(a, signs)", True),
        ("a = Conv(x, w, b) p = Sign(a) q = Sign(a) t = Sub(p, q)", True),
        ("a = Conv(x, w, b) q = Round(a) t = Clip(q, low, high)", True),
        ("t = Sub(x, five)", True),  # of an image in integers
    ],
)
def test_which_zeros_count(body: str, common: bool) -> None:
    constants = {
        **WEIGHTS,
        "v": RNG.standard_normal((4, 8, 1, 1)).astype(np.float32),
        "c": RNG.standard_normal(4).astype(np.float32),
        "low": np.asarray(-2, np.float32),
        "high": np.asarray(2, np.float32),
        "five": np.asarray(5, np.float32),
    }
    model = parse(f"g (float[1,4,10,10] x) => (float y) {{ {body} y = Sign(t) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    samples = list(sample_inputs((TensorSpec("x", SHAPE, "float32"),), 0))
    assert (list(count_sign_zeros(model, ["t"], samples)) == ["t"]) is common


def test_unusual_inputs() -> None:
    specs = (TensorSpec("x", (1, 2, 5, 4), "float32"), TensorSpec("n", (3,), "int64"))
    samples = {sample.kind: sample.feed for sample in sample_inputs(specs, 0)}
    assert number_of_inputs(specs) == 7 and number_of_inputs(specs[1:]) == 4
    assert not samples["zeros"]["x"].any() and samples["zeros"]["n"].any()
    half = samples["half zeros"]["x"]
    assert half[:, :, :3].all() and not half[:, :, 3:].any()
    whole = samples["integers"]["x"]
    assert (whole == np.rint(whole)).all() and whole.min() >= 1 and whole.max() > 100
    again = {sample.kind: sample.feed for sample in sample_inputs(specs, 0)}
    assert all(np.array_equal(again[kind]["x"], feed["x"]) for kind, feed in samples.items())
    assert [sample.kind for sample in sample_inputs(specs, 0, without=["zeros"])][-1] == "half zeros"


def test_a_single_zero_may_be_an_accident() -> None:
    ordinary, *_, zeros = sample_inputs((TensorSpec("x", (8,), "float32"),), 0)
    assert not may_be_common(ordinary, [np.asarray([0, 1, 2, 3], np.float32)])
    assert may_be_common(ordinary, [np.asarray([0, 0, 2, 3], np.float32)])
    assert not may_be_common(zeros, [np.zeros(4, np.float32)])
