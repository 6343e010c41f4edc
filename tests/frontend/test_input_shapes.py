from __future__ import annotations

import onnx
import pytest

import bnn_compiler
from bnn_compiler.errors import ModelError, OpenShapeError, UsageError
from bnn_compiler.frontend import import_onnx

from .onnx_text import parse

RELU = "g (float[{}] x) => (float[{}] y) {{ y = Relu(x) }}"


def _shape(dims: str, **given: tuple[int, ...]) -> tuple[int, ...]:
    imported = import_onnx(parse(RELU.format(dims, ",".join("M" for _ in dims.split(",")))), input_shapes=given)
    assert imported.inputs[0].shape == imported.outputs[0].shape
    return imported.inputs[0].shape


def test_static_shapes_stay() -> None:
    imported = import_onnx(parse(RELU.format("2,3", "2,3")))
    assert imported.inputs[0].shape == (2, 3)
    assert imported.notes == ()


def test_an_open_batch_is_one_and_the_note_says_how_to_change_it() -> None:
    imported = import_onnx(parse(RELU.format("N,3", "N,3")))
    assert imported.inputs[0].shape == (1, 3)
    assert imported.outputs[0].shape == (1, 3)
    [note] = imported.notes
    assert "--input-shape x=N,3" in note


@pytest.mark.parametrize("dims", ["N,3", "2,3", "N,M", "?,?"])
def test_given_shapes_count(dims: str) -> None:
    assert _shape(dims, x=(2, 3)) == (2, 3)


def test_an_open_inner_dimension_needs_the_option() -> None:
    with pytest.raises(UsageError, match=r"input 'x' has the shape \[1, 3, H, W\].*--input-shape x=1,3,\.\.\.,\.\.\.$"):
        _shape("N,3,H,W")
    assert _shape("N,3,H,W", x=(1, 3, 8, 9)) == (1, 3, 8, 9)


def test_a_symbol_has_one_value_everywhere() -> None:
    text = "g (float[N,4] a, float[4,N] b, float[N,W] c) => (float[P,Q] y) { t = MatMul(a, b) y = Add(t, c) }"
    imported = import_onnx(parse(text), input_shapes={"c": (3, 3)})
    assert [spec.shape for spec in imported.inputs] == [(3, 4), (4, 3), (3, 3)]
    assert imported.notes == ()
    with pytest.raises(UsageError, match="contradicts the model, whose dimension 0 is 3"):
        import_onnx(parse(text), input_shapes={"c": (3, 3), "a": (2, 4)})


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ({"z": (1, 3)}, "no input 'z'.*its inputs: 'x'"),
        ({"x": (1, 3, 1)}, "has 3 dimensions"),
        ({"x": (1, 4)}, "contradicts the model, whose dimension 1 is 3"),
        ({"x": (0, 3)}, "dimension below 1"),
        ({"x": (-1, 3)}, "dimension below 1"),
    ],
)
def test_given_shapes_that_do_not_fit(given: dict[str, tuple[int, ...]], cause: str) -> None:
    with pytest.raises(UsageError, match=f"^g: .*{cause}"):
        import_onnx(parse(RELU.format("N,3", "N,3")), input_shapes=given)


def test_minus_one_is_open_and_other_numbers_below_one_are_refused() -> None:
    model = parse(RELU.format("1,3", "1,3"))
    dim = model.graph.input[0].type.tensor_type.shape.dim
    dim[0].dim_value = -1
    assert import_onnx(model).inputs[0].shape == (1, 3)
    dim[0].dim_value = -7
    with pytest.raises(ModelError, match="negative dimension -7"):
        import_onnx(model)
    dim[0].dim_value = model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 0
    assert import_onnx(model).outputs[0].shape == (0, 3)


def test_an_unknown_rank_needs_the_option() -> None:
    model = parse(RELU.format("1,3", "1,3"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="input 'x' has no shape in the file: give it with --input-shape x=1,"):
        import_onnx(model)
    assert import_onnx(model, input_shapes={"x": (2, 3)}).outputs[0].shape == (2, 3)


def test_absurd_ranks() -> None:
    model = parse(RELU.format("1,3", "1,3"))
    shape = model.graph.input[0].type.tensor_type.shape
    shape.dim.extend([shape.dim[0]] * 100)
    with pytest.raises(ModelError, match="102 dimensions"):
        import_onnx(model)


def test_scalars_have_rank_zero() -> None:
    assert import_onnx(parse("g (float x) => (float y) { y = Relu(x) }")).inputs[0].shape == ()


def _open_model(features: int) -> onnx.ModelProto:
    """A dense layer on images of any size that has so many pixels."""
    weights = ", ".join(["1", "-1"] * features)
    return parse(
        f"""g (float[N,1,H,W] x) => (float[A,B] y) <float[{features},2] w = {{{weights}}}> {{
        f = Flatten(x) y = MatMul(f, w) }}"""
    )


def test_a_proposed_size_counts_where_nothing_else_is_known() -> None:
    imported = import_onnx(_open_model(9), open_dimension=3)
    assert imported.inputs[0].shape == (1, 1, 3, 3)
    expected = (
        "the open dimensions of input 'x', [1, 1, H, W], are taken as 3: --input-shape x=1,1,...,... chooses others"
    )
    assert expected in imported.notes
    given = import_onnx(_open_model(9), input_shapes={"x": (1, 1, 1, 9)}, open_dimension=3)
    assert given.inputs[0].shape == (1, 1, 1, 9)


def test_inspection_finds_a_size_that_fits() -> None:
    report = bnn_compiler.inspect_model(_open_model(64))
    assert any("taken as 8: --input-shape" in note["detail"] for note in report["notes"])
    with pytest.raises(OpenShapeError, match="--input-shape x="):
        bnn_compiler.compile_model(_open_model(64))
    with pytest.raises(OpenShapeError, match="--input-shape x="):  # 9 values are no square of a usual size
        bnn_compiler.inspect_model(_open_model(9))
