from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators, parse, run_onnx, run_relax

IF = """[choice] y = If({condition}) <
    then_branch = a () => (float[1,4] p) {{ h = Abs(x) p = Add(h, w) }},
    else_branch = b () => (float[1,4] q) {{ h2 = Neg(x) q = Mul(h2, w) }}>"""


def _feeds(condition: bool) -> dict[str, Array]:
    return {"x": np.array([[-1, 2, np.nan, np.inf]], np.float32), "c": np.array(condition)}


def test_a_computed_condition_selects_between_both() -> None:
    model = parse(
        "g (float[1,4] x, bool c) => (float[1,4] y) <float[4] w = {1, 2, 3, 4}> {" + IF.format(condition="c") + "}"
    )
    imported = import_onnx(model)
    assert operators(imported.onnx_model) == ["Abs", "Add", "Neg", "Mul", "Where"]
    assert imported.onnx_model.graph.node[-1].name == "choice"
    for condition in (True, False):
        feeds = _feeds(condition)
        [expected] = run_onnx(model, feeds)
        np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds)[0], expected)
        np.testing.assert_array_equal(run_relax(imported.module, [feeds["x"], feeds["c"]])[0], expected)


@pytest.mark.parametrize(("rank", "taken"), [(2, ["Abs", "Add"]), (3, ["Neg", "Mul"])])
def test_a_known_condition_takes_its_branch(rank: int, taken: list[str]) -> None:
    text = f"""g (float[1,4] x) => (float[1,4] y) <float[4] w = {{1, 2, 3, 4}}, int64 expected = {{{rank}}}> {{
        s = Shape(x) r = Size(s) c = Equal(r, expected) {IF.format(condition="c")} }}"""
    assert operators(import_onnx(parse(text)).onnx_model) == taken


def test_branches_in_branches() -> None:
    text = """g (float[1,4] x, bool c, bool d) => (float[1,4] y) {
        [outer] y = If(c) <
            then_branch = a () => (float[1,4] p) {
                t = Abs(x)
                [inner] p = If(d) <then_branch = e () => (float[1,4] u) { u = Sqrt(t) },
                                   else_branch = f () => (float[1,4] v) { v = Neg(t) }> },
            else_branch = b () => (float[1,4] q) { q = Relu(x) }> }"""
    model = parse(text)
    imported = import_onnx(model)
    assert "If" not in operators(imported.onnx_model)
    for outer in (True, False):
        for inner in (True, False):
            feeds = {"x": np.array([[1, -2, 3, -4]], np.float32), "c": np.array(outer), "d": np.array(inner)}
            np.testing.assert_array_equal(run_onnx(imported.onnx_model, feeds), run_onnx(model, feeds))


def test_names_inside_branches_do_not_collide() -> None:
    branches = IF.format(condition="c")
    text = f"""g (float[1,4] x, bool c) => (float[1,4] z) <float[4] w = {{1, 2, 3, 4}}> {{
        {branches} {branches.replace("y =", "y2 =")} z = Sub(y, y2) }}"""
    imported = import_onnx(parse(text))
    tensors = [name for node in imported.onnx_model.graph.node for name in node.output]
    assert len(set(tensors)) == len(tensors)


def test_results_of_different_shapes_are_refused() -> None:
    text = """g (float[1,4] x, bool c) => (float y) {
        [choice] t = If(c) <then_branch = a () => (float[1,4] p) { p = Abs(x) },
                            else_branch = b () => (float[4,1] q) { q = Transpose(x) }>
        y = ReduceSum(t) }"""
    model = parse(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UnsupportedOperatorError, match="'choice': the shape of its output 't' depends on the branch"):
        import_onnx(model)


def test_conditions_of_several_elements() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) <bool[2] c = {1, 0}, float[4] w = {1, 2, 3, 4}> {"
    with pytest.raises(ModelError, match=r"'choice'|condition"):
        import_onnx(parse(text + IF.format(condition="c") + "}"))
