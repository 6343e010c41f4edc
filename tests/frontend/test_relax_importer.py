from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import ImportedModel, import_onnx
from bnn_compiler.frontend.operator_converters import OWN_CONVERTERS
from bnn_compiler.module_attributes import INPUTS_ATTRIBUTE, NAMES_ATTRIBUTE

from .onnx_text import parse, random_feeds, run_onnx, run_relax


def _names(imported: ImportedModel) -> dict[str, dict[str, str | None]]:
    names: dict[str, dict[str, str | None]] = json.loads(imported.module.attrs[NAMES_ATTRIBUTE])
    return names


def _calls(imported: ImportedModel) -> dict[str, str]:
    """Relax operator by the variable that it is bound to."""
    bindings = [binding for block in imported.module["main"].body.blocks for binding in block.bindings]
    return {
        str(b.var.name): str(b.value.op.name)
        for b in bindings
        if hasattr(b.value, "op") and hasattr(b.value.op, "name")
    }


def _arguments(imported: ImportedModel, operator: str) -> list[Any]:
    for block in imported.module["main"].body.blocks:
        for binding in block.bindings:
            if getattr(getattr(binding.value, "op", None), "name", None) == operator:
                return list(binding.value.args)
    raise AssertionError(f"no {operator} among {_calls(imported)}")


def _agrees(imported: ImportedModel, text: str, opset: int, atol: float = 0) -> None:
    feeds = random_feeds([(spec.name, spec.shape) for spec in imported.inputs])
    expected = run_onnx(parse(text, opset=opset), feeds)
    found = run_relax(imported.module, [feeds[spec.name] for spec in imported.inputs])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


def test_every_result_is_bound_and_named() -> None:
    text = """g (float[1,2,5,5] x, float[3,2,3,3] w, float[3] b) => (float[1,3,3,3] y, float[1,2,5,5] s) {
        [sign] s = Sign(x) [conv] c = Conv(s, w, b) y = Relu(c) }"""
    imported = import_onnx(parse(text))
    by_operator = {operator: _names(imported)[variable] for variable, operator in _calls(imported).items()}
    assert by_operator["relax.sign"] == {"node": "sign", "op": "Sign", "output": "s"}
    assert by_operator["relax.nn.conv2d"] == {"node": "conv", "op": "Conv", "output": None}
    assert by_operator["relax.add"] == {"node": "conv", "op": "Conv", "output": "c"}
    assert by_operator["relax.nn.relu"] == {"node": "Relu_2", "op": "Relu", "output": "y"}
    _agrees(imported, text, 17, atol=1e-5)  # 18 products of values around 1, summed in another order


def test_a_convolution_without_bias_is_its_own_result() -> None:
    imported = import_onnx(parse("g (float[1,2,5,5] x, float[3,2,3,3] w) => (float[1,3,3,3] y) { [c] y = Conv(x, w) }"))
    [(variable, operator)] = _calls(imported).items()
    assert operator == "relax.nn.conv2d"
    assert _names(imported)[variable] == {"node": "c", "op": "Conv", "output": "y"}


def test_no_binding_without_a_name() -> None:
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,2,6,6] z)
        <float[4] p = {1, 2, 3, 4}, int64[2] parts = {2, 2}> {
        [norm] n = BatchNormalization(x, p, p, p, p)
        [split] z, rest = Split<axis = 1>(n, parts) [act] y = HardSwish(n) }"""
    imported = import_onnx(parse(text))
    bindings = [str(b.var.name) for block in imported.module["main"].body.blocks for b in block.bindings]
    names = _names(imported)
    assert set(bindings) - set(names) <= {"gv"}  # the tuple of the graph's outputs
    tensors = {entry["output"]: entry["node"] for entry in names.values()}
    assert {key: tensors[key] for key in "nzy"} == {"n": "norm", "z": "split", "y": "act"}
    _agrees(imported, text, 17, atol=1e-5)


@pytest.mark.parametrize("name", ["lv", "gv", "lv1", "x.y", "1", "a b", "input", "é"])
def test_input_names_become_unique_parameters(name: str) -> None:
    model = parse("g (float[1,4] x, float[1,4] second) => (float[1,4] y) { t = Add(x, second) y = Relu(t) }")
    model.graph.input[0].name = name
    model.graph.node[0].input[0] = name
    imported = import_onnx(model)
    function = imported.module["main"]
    inputs = json.loads(imported.module.attrs[INPUTS_ATTRIBUTE])
    assert list(inputs.values()) == [name, "second"]
    assert list(inputs) == [str(parameter.name) for parameter in function.params]
    assert all(key.isidentifier() for key in inputs)
    assert not set(inputs) & set(_names(imported))
    assert [spec.name for spec in imported.inputs] == [name, "second"]


PADS = {
    2: "y = Pad<pads = [0, 0, 1, 2, 0, 0, 0, 1], value = -1.0>(x)",
    11: "p = Constant<value = int64[8] {0, 0, 1, 2, 0, 0, 0, 1}>() v = Constant<value = float {-1}>() y = Pad(x, p, v)",
    13: 'p = Constant<value = int64[8] {0, 0, 1, 2, 0, 0, 0, 1}>() y = Pad<mode = "constant">(x, p)',
    18: """p = Constant<value = int64[4] {1, 2, 0, 1}>() v = Constant<value = float {0.5}>()
          a = Constant<value = int64[2] {2, -1}>() y = Pad(x, p, v, a)""",
    19: "p = Constant<value = int64[8] {0,0,-1,2, 0,0,2,-1}>() v = Constant<value = float {7}>() y = Pad(x, p, v)",
}


@pytest.mark.parametrize("opset", PADS)
def test_constant_pads_stay_pads(opset: int) -> None:
    text = f"g (float[1,2,4,5] x) => (float[N,C,H,W] y) {{ {PADS[opset]} }}"
    imported = import_onnx(parse(text, opset=max(opset, 7)))
    assert "relax.nn.pad" in _calls(imported).values()
    _agrees(imported, text, max(opset, 7))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_other_pads_are_left_to_tvm(mode: str) -> None:
    text = f"""g (float[1,4,5] x) => (float[N,C,L] y) <int64[6] p = {{0, 1, 2, 0, 1, 1}}> {{
        y = Pad<mode = "{mode}">(x, p) }}"""
    imported = import_onnx(parse(text))
    assert "relax.nn.pad" not in _calls(imported).values()
    _agrees(imported, text, 17)


CLIPS = {
    "attributes": (6, "y = Clip<min = -0.25, max = 0.5>(x)"),
    "only max": (6, "y = Clip<max = 0.5>(x)"),
    "inputs": (13, "l = Constant<value = float {-0.25}>() h = Constant<value = float {0.1}>() y = Clip(x, l, h)"),
    "only min": (13, "l = Constant<value = float {-0.25}>() y = Clip(x, l)"),
    "no min": (13, 'h = Constant<value = float {-0.25}>() y = Clip(x, "", h)'),
    "none": (13, "y = Clip(x)"),
    "crossed": (13, "l = Constant<value = float {0.5}>() h = Constant<value = float {-0.5}>() y = Clip(x, l, h)"),
}


@pytest.mark.parametrize("case", CLIPS)
def test_constant_clips_stay_clips(case: str) -> None:
    opset, body = CLIPS[case]
    text = f"g (float[4,5] x) => (float[4,5] y) {{ {body} }}"
    imported = import_onnx(parse(text, opset=max(opset, 7)))
    assert "relax.clip" in _calls(imported).values()
    _agrees(imported, text, max(opset, 7))


def test_a_result_that_its_converter_binds_has_a_name() -> None:
    text = 'g (float[2,3] x, float[4,3] w) => (float[2] y) { [e] y = Einsum<equation = "bk,nk->b">(x, w) }'
    imported = import_onnx(parse(text))
    assert {"node": "e", "op": "Einsum", "output": "y"} in _names(imported).values()
    _agrees(imported, text, 17, atol=1e-6)


def test_a_computed_bound_is_left_to_tvm() -> None:
    text = """g (float[4,5] x) => (float[4,5] y) {
        l = ReduceMin<keepdims = 0>(x) h = ReduceMax<keepdims = 0>(x) y = Clip(x, l, h) }"""
    _agrees(import_onnx(parse(text)), text, 17)


@pytest.mark.parametrize("transpose", [0, 1])
@pytest.mark.parametrize("scales", ["", ", alpha = 0.5, beta = 2.0"])
def test_dense_layers_keep_plain_constants(transpose: int, scales: str) -> None:
    shape = "4,3" if transpose else "3,4"
    text = f"""g (float[2,3] x) => (float[2,4] y)
        <float[{shape}] w = {{1, -1, 1, 1, -1, 1, 1, 1, -1, -1, 1, -1}}, float[4] b = {{1, 2, 3, 4}}> {{
        [fc] y = Gemm<transB = {transpose}{scales}>(x, w, b) }}"""
    imported = import_onnx(parse(text))
    assert list(_calls(imported).values()) == ["relax.matmul", "relax.add"]
    assert isinstance(_arguments(imported, "relax.matmul")[1], tvm.ir.GenericConst)
    assert isinstance(_arguments(imported, "relax.add")[1], tvm.ir.GenericConst)
    _agrees(imported, text, 17, atol=1e-6)


def test_a_constant_bias_is_reshaped_at_once() -> None:
    text = """g (float[1,2,5,5] x) => (float[1,2,5,5] y) <float[2,2,1,1] w = {1, 2, 3, 4}, float[2] b = {5, 6}> {
        y = Conv(x, w, b) }"""
    imported = import_onnx(parse(text))
    assert list(_calls(imported).values()) == ["relax.nn.conv2d", "relax.add"]
    assert _arguments(imported, "relax.add")[1].value.numpy().shape == (1, 2, 1, 1)


def test_computed_operands_of_gemm() -> None:
    text = """g (float[3,2] x, float[4,3] w, float[2,4] b) => (float[2,4] y) {
        y = Gemm<transA = 1, transB = 1, beta = 0.5>(x, w, b) }"""
    _agrees(import_onnx(parse(text)), text, 17, atol=1e-6)


def test_constant_outputs() -> None:
    imported = import_onnx(
        parse(
            "g (float[1,4] x) => (float[1,4] y, float[2] c) { y = Relu(x) c = Constant<value_floats = [1.0, 2.0]>() }"
        )
    )
    feed = np.array([[-1, 0, 1, 2]], np.float32)
    y, c = run_relax(imported.module, [feed])
    np.testing.assert_array_equal(y, np.maximum(feed, 0))
    np.testing.assert_array_equal(c, np.array([1, 2], np.float32))


def test_a_form_that_tvm_refuses_is_said_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    text = "g (int64[2] x) => (int64[2] y) <int64[2] zero = {0, 0}> { t = Abs(x) [d] y = Div(t, zero) }"
    with pytest.raises(
        UnsupportedOperatorError, match=r"^g: Div node 'd' has a form that cannot be compiled: .*divisor value 0"
    ):
        import_onnx(parse(text))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [KeyError("num_heads"), IndexError("index 2 is out of bounds"), TypeError("no len()"), AssertionError()]
)
def test_a_converter_that_fails_has_its_form_described(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a converter has no words for what it cannot do, Python's are not passed on."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setitem(OWN_CONVERTERS, "Clip", fail)
    text = "g (float[2] x) => (float[2] y) <float low = {0}> { t = Abs(x) [c] y = Clip(t, low) }"
    with pytest.raises(UnsupportedOperatorError) as refused:
        import_onnx(parse(text))
    words = "g: Clip node 'c' has a form that cannot be compiled: inputs float32[2], constant float32[]"
    assert str(refused.value) == words


def test_shapes_that_depend_on_data_are_told_from_operators_without_a_rule() -> None:
    with pytest.raises(UnsupportedOperatorError, match="depends on data"):
        import_onnx(parse("g (float[2] x) => (int64[1,?] y) { y = NonZero(x) }"))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda data: relax.op.expand_dims(data, 0), "float32[1, 2]"),
        (lambda data: relax.op.astype(data, "int8"), "int8[2]"),
    ],
)
def test_a_converter_that_gives_another_type_is_refused(
    wrong: Callable[[relax.Expr], relax.Expr], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OWN_CONVERTERS, "Clip", lambda _builder, inputs, _attributes: wrong(inputs[0]))
    text = "g (float[2] x) => (float[2] y) <float low = {0}> { t = Abs(x) [c] y = Clip(t, low) }"
    with pytest.raises(UnsupportedOperatorError) as refused:
        import_onnx(parse(text))
    assert (
        f"Clip node 'c' has a form that cannot be compiled: its output 'y' would be {found}, and not float32[2]"
        in str(refused.value)
    )
