from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import operators, parse, random_feeds, run_onnx, run_relax


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("a = Identity(x) b = Dropout(a) y = Abs(b)", ["Abs"]),
        ("a = Abs(x) b = Identity(a) y = Add(a, b)", ["Abs", "Add"]),
        ("a = Abs(x) y = Identity(a)", ["Abs"]),
        ("a = Abs(x) y = Dropout(a)", ["Abs"]),
        ("a = Abs(x) y = Identity(a) unused = Neg(a)", ["Abs", "Neg"]),
        ("y = Identity(x)", ["Identity"]),
        ("a, unused = Dropout(x) y = Abs(a)", ["Abs"]),
    ],
)
def test_the_border_keeps_its_names_and_the_values_stay(body: str, kept: list[str]) -> None:
    model = parse(f"g (float[2,3] x) => (float[2,3] y) {{ {body} }}")
    imported = import_onnx(model)
    assert operators(imported.onnx_model) == kept
    assert imported.onnx_model.graph.output[0].name == "y"
    feeds = random_feeds([("x", (2, 3))])
    expected = run_onnx(model, feeds)
    np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds), expected)
    np.testing.assert_array_equal(run_relax(imported.module, [feeds["x"]]), expected)


def test_one_tensor_under_two_output_names() -> None:
    text = "g (float[2,3] x) => (float[2,3] y, float[2,3] z, float[2,3] c) {{ a = Abs(x) {} c = Neg(a) }}"
    for body, kept in (
        ("y = Identity(a) z = Identity(a)", ["Abs", "Identity", "Neg"]),
        ("y = Identity(a) z = Identity(y)", ["Abs", "Identity", "Neg"]),
    ):
        model = parse(text.format(body))
        imported = import_onnx(model)
        assert operators(imported.onnx_model) == kept
        feeds = random_feeds([("x", (2, 3))])
        expected = run_onnx(model, feeds)
        np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds), expected)
        np.testing.assert_array_equal(run_relax(imported.module, [feeds["x"]]), expected)


def test_the_output_may_be_the_input() -> None:
    imported = import_onnx(parse("g (float[1,4] x) => (float[1,4] x) {}"))
    feed = np.arange(4, dtype=np.float32).reshape(1, 4)
    np.testing.assert_array_equal(run_relax(imported.module, [feed])[0], feed)


@pytest.mark.parametrize("declared", ["float[]", "float[n,4]"])
def test_an_output_of_no_declared_shape_that_is_an_input_or_a_constant(declared: str) -> None:
    model = parse(f"""g (float[1,4] x) => ({declared} x, {declared} k, float[1,4] y)
        <float[2,4] k = {{1, 2, 3, 4, 5, 6, 7, 8}}> {{ y = Abs(x) }}""")
    for output in model.graph.output:
        if declared == "float[]":
            output.type.tensor_type.ClearField("shape")
    assert [spec.shape for spec in import_onnx(model).outputs] == [(1, 4), (2, 4), (1, 4)]


def test_dropout_that_is_not_a_pass_through() -> None:
    training = """g (float[2,3] x) => (float[2,3] y) <float r = {0.5}, bool t = {1}> { [d] y = Dropout(x, r, t) }"""
    with pytest.raises(UnsupportedOperatorError, match="'d' cannot be compiled: it is in training mode"):
        import_onnx(parse(training))
    computed = "g (float[2,3] x, bool t) => (float[2,3] y) <float r = {0.5}> { [d] y = Dropout(x, r, t) }"
    with pytest.raises(UnsupportedOperatorError, match="'d' cannot be compiled: whether it trains is not a constant"):
        import_onnx(parse(computed))


@pytest.mark.parametrize("declared", ["float[1,4]", "int32[1,8]", "float[8]"])
def test_an_input_that_is_declared_otherwise_as_an_output(declared: str) -> None:
    model = parse(f"g (float[1,8] x) => ({declared} x) {{}}")
    with pytest.raises(ModelError, match=r"the output 'x' is declared as .*, but it is an input or a constant of"):
        import_onnx(model)
