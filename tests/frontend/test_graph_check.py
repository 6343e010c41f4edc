from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import operators, parse

RELU = "g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"
TWO = "g (float[1,4] x) => (float[1,4] y) { t = Relu(x) y = Abs(t) }"


def _rename(field: str, name: str) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(getattr(model.graph, field)[0], "name", name)


def _opset(version: int) -> Callable[[onnx.ModelProto], None]:
    return lambda model: setattr(model.opset_import[0], "version", version)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_opset(99), "operator set 99 is not supported"),
        (_opset(6), "operator set 6 is not supported"),
        (_opset(-(2**63)), "is not supported"),
        (lambda model: model.ClearField("opset_import"), "names 0 versions of the standard operator set"),
        (lambda model: setattr(model, "ir_version", 99), "IR version 99 is not supported"),
        (lambda model: setattr(model, "ir_version", 2), "IR version 2 is not supported"),
        (lambda model: model.graph.ClearField("input"), "has no inputs"),
        (lambda model: model.graph.ClearField("output"), "has no outputs"),
        (lambda model: model.graph.input.append(model.graph.input[0]), "input 'x' is listed twice"),
        (lambda model: model.graph.output.append(model.graph.output[0]), "output 'y' is listed twice"),
        (_rename("input", ""), "has an input without a name"),
        (_rename("input", "z"), "reads the tensor 'x', which nothing gives"),
        (_rename("output", "z"), "nothing computes the graph's output 'z'"),
        (lambda model: model.graph.node.append(model.graph.node[0]), "tensor 't' is written twice"),
        (lambda model: model.graph.node[0].input.append("x"), "not a valid ONNX model: .*input size 2"),
        (lambda model: model.graph.node[0].ClearField("op_type"), "names no operator"),
        (lambda model: model.graph.input[0].type.ClearField("value"), "input 'x' is no type"),
    ],
)
def test_refused_models(change: Callable[[onnx.ModelProto], None], cause: str) -> None:
    model = parse(TWO)
    change(model)
    with pytest.raises(ModelError, match=f"^g: .*{cause}"):
        import_onnx(model)


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20, 23])
def test_supported_opsets(opset: int) -> None:
    assert operators(import_onnx(parse(RELU, opset=opset)).onnx_model) == ["Relu"]


def test_cycles_are_named_and_disorder_is_mended() -> None:
    with pytest.raises(ModelError, match=r"has a cycle: .*Relu node with output 't'"):
        import_onnx(parse("g (float[1,4] x) => (float[1,4] y) { t = Relu(y) y = Add(t, x) }"))
    with pytest.raises(ModelError, match="has a cycle"):
        import_onnx(parse("g (float[1,4] x) => (float[1,4] y) { t = Relu(t) y = Add(t, x) }"))
    imported = import_onnx(parse("g (float[1,4] x) => (float[1,4] y) { y = Abs(t) t = Relu(x) }"))
    assert operators(imported.onnx_model) == ["Relu", "Abs"]
    assert "sorted" in imported.notes[0]


def test_an_unsupported_operator_is_named_with_its_node() -> None:
    model = parse("g (float[1,4] x) => (float[1,4] y) { [act] t = Bernoulli(x) [again] y = Bernoulli(t) }")
    with pytest.raises(
        UnsupportedOperatorError, match=r"^g: Bernoulli node 'act': the operator Bernoulli is not supported \(2 nodes"
    ):
        import_onnx(model)


@pytest.mark.parametrize("domain", ["com.microsoft", "finn.custom_op.general", "ai.onnx.ml", "evil"])
def test_other_domains_are_refused_even_for_known_operators(domain: str) -> None:
    model = parse(TWO)
    model.opset_import.append(helper.make_opsetid(domain, 1))
    model.graph.node[1].domain = domain
    model.graph.node[1].name = "abs"
    with pytest.raises(UnsupportedOperatorError, match=rf"{domain}.Abs node 'abs': operators of the domain '{domain}'"):
        import_onnx(model)


def test_both_spellings_of_the_standard_domain() -> None:
    model = parse(RELU)
    model.graph.node[0].domain = "ai.onnx"
    assert import_onnx(model).onnx_model.graph.node[0].domain == ""


def test_unsupported_operators_in_branches_are_found() -> None:
    text = """g (float[1,4] x, bool c) => (float[1,4] y) {
        [choice] y = If(c) <then_branch = a () => (float[1,4] p) { [inner] p = Bernoulli(x) },
                            else_branch = b () => (float[1,4] q) { q = Relu(x) }> }"""
    with pytest.raises(UnsupportedOperatorError, match="Bernoulli node 'inner'"):
        import_onnx(parse(text))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            'g (float[1,4,3] x) => (float[1,4] y) { [e] y = Einsum<equation = "abc,bc->ab">(x, "") }',
            "'e' lacks its input",
        ),
        (
            "g (float[1,4] x) => (float[M,N] y) { [s] y, z, w = Split<num_outputs = 1>(x) }",
            "num_outputs 1, but 3 outputs",
        ),
        (
            "g (float[1,4] x, int64[1,1] i) => (float y) { [n] y = GatherND<batch_dims = -9>(x, i) }",
            "negative batch_dims",
        ),
    ],
)
def test_what_would_crash_the_libraries_behind(text: str, cause: str) -> None:
    model = parse(text, opset=18)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=cause):
        import_onnx(model)


def test_training_forms_are_refused() -> None:
    parameters = "<float[4] p = {1, 1, 1, 1}>"
    outputs = {14: "y, m, v", 9: "y, m, v, a, b"}
    attributes = {14: "<training_mode = 1>", 9: ""}
    for opset in (9, 14):
        text = f"""g (float[1,4,2,2] x) => (float[1,4,2,2] y) {parameters} {{
            [bn] {outputs[opset]} = BatchNormalization{attributes[opset]}(x, p, p, p, p) }}"""
        with pytest.raises(UnsupportedOperatorError, match="'bn': the operator BatchNormalization in training mode"):
            import_onnx(parse(text, opset=opset))


def test_sequences_are_no_tensors() -> None:
    model = parse(
        "g (float[1,4] x) => (float[1,4] y) { s = SequenceConstruct(x) i = Constant<value_int = 0>() "
        "y = SequenceAt(s, i) }"
    )
    with pytest.raises(UnsupportedOperatorError, match="SequenceConstruct"):
        import_onnx(model)
    model.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    with pytest.raises(UnsupportedOperatorError, match="input 'x' is a sequence; only dense tensors"):
        import_onnx(model)


def test_a_long_name_does_not_make_a_long_message() -> None:
    model = parse("g (float[1,4] x) => (float[1,4] y) { y = Relu(x) }")
    model.graph.node[0].name, model.graph.node[0].op_type = "n" * 9_000, "Unheard"
    with pytest.raises(UnsupportedOperatorError) as caught:
        import_onnx(model)
    assert len(str(caught.value)) < 1100
    assert "Unheard" in str(caught.value)
