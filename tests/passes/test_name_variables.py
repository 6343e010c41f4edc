from __future__ import annotations

import json

import tvm
from tvm import relax

from bnn_compiler.frontend import import_onnx
from bnn_compiler.module_attributes import NAMES_ATTRIBUTE
from bnn_compiler.passes import LowerFloatOps, NameVariables
from bnn_compiler.passes.fuse_named_ops import FuseNamedOps
from bnn_compiler.passes.name_variables import bound_variables
from bnn_compiler.target import parse_target
from tests.frontend.onnx_text import parse

CHAIN = """g (float[1,4,6,6] x) => (float[1,4,6,6] y, float[1,4,6,6] z)
    <float[4,1,1] p = {1, 2, 3, 4}> {
    [first] a = Mul(x, p) [second] b = Relu(a) [third] y = Add(b, p) [fourth] c = Sqrt(b) [fifth] z = Add(c, p) }"""


def _names(module: tvm.IRModule) -> list[str]:
    return [str(variable.name) for variable in bound_variables(module["main"])]


def test_variables_take_the_names_of_their_tensors() -> None:
    module = tvm.transform.Sequential([NameVariables()])(import_onnx(parse(CHAIN)).module)
    assert _names(module)[:5] == ["onnx_a", "onnx_b", "onnx_y", "onnx_c", "onnx_z"]
    entries = json.loads(module.attrs[NAMES_ATTRIBUTE])
    assert entries["onnx_b"] == {"node": "second", "op": "Relu", "output": "b"}
    assert set(entries) <= set(_names(module))


def test_names_are_unique_and_avoid_inputs() -> None:
    text = "g (float[4] onnx_t_1) => (float[4] y) { t_1 = Relu(onnx_t_1) other = Abs(t_1) y = Neg(other) }"
    model = parse(text)
    model.graph.node[1].output[0] = model.graph.node[2].input[0] = "t.1"
    names = _names(tvm.transform.Sequential([NameVariables()])(import_onnx(model).module))
    assert names[:2] == ["onnx_t_1_2", "onnx_t_1_3"]
    assert len(set(names)) == len(names)


def test_a_module_without_names_is_left_alone() -> None:
    module = import_onnx(parse(CHAIN)).module.without_attr(NAMES_ATTRIBUTE)
    assert tvm.transform.Sequential([NameVariables()])(module).same_as(module)


def test_fusion_keeps_the_name_of_each_result() -> None:
    target = parse_target("native").tvm_target
    with target:
        module = tvm.transform.Sequential(
            [
                NameVariables(),
                LowerFloatOps(target),
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
            ]
        )(import_onnx(parse(CHAIN)).module)
        fused = tvm.transform.Sequential([FuseNamedOps()])(module)
    calls = {
        str(binding.var.name): str(binding.value.op.name_hint)
        for block in fused["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar)
    }
    # x·p and its Relu have two readers, so they are one group; what reads them is another.
    assert calls["onnx_b"].startswith("fused_multiply")
    assert calls["onnx_z"].startswith("fused_tir_sqrt")
    # Nothing but names has changed.
    tvm.ir.assert_structural_equal(relax.transform.FuseOps()(module), fused)


def test_equal_calls_share_no_name() -> None:
    text = """g (float[8] x) => (float[8] y, float[8] z)
        <float[8] p = {1, 2, 3, 4, 5, 6, 7, 8}> {
        a = Mul(x, p) y = Relu(a) b = Mul(x, p) z = Relu(b) }"""
    target = parse_target("native").tvm_target
    passes = [NameVariables(), relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern(), FuseNamedOps()]
    with target:
        names = _names(tvm.transform.Sequential(passes)(import_onnx(parse(text)).module))
    assert len(set(names)) == len(names)
    assert {"onnx_y", "onnx_z"} <= set(names)
