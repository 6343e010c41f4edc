"""Packed activations as results: the right ones, and nothing where they cannot be told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import relax

from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.driver import compile_model, lower_model
from bnn_compiler.frontend import ImportedModel, import_onnx
from bnn_compiler.options import CompileOptions
from bnn_compiler.passes import ExposeActivationBits
from bnn_compiler.target import parse_target
from bnn_compiler.verification.reference import Reference, expose, sample_feeds

ADDED = {"activation_bits", "layer_0_bits", "layer_1_bits", "layer_2_bits"}


@pytest.fixture(scope="module")
def imported(digits: Path) -> ImportedModel:
    return import_onnx(digits)


@pytest.fixture(scope="module")
def lowered(imported: ImportedModel) -> tvm.IRModule:
    return lower_model(imported, parse_target("native"), CompileOptions()).module


@pytest.fixture(scope="module")
def compiled(digits: Path) -> CompiledNetwork:
    return compile_model(digits, verify=False)


def without_bits(module: tvm.IRModule) -> tvm.IRModule:
    functions = {variable: f for variable, f in module.functions.items() if variable.name_hint not in ADDED}
    return tvm.IRModule(functions, attrs=dict(module.attrs.items()))


def apply(module: tvm.IRModule) -> tvm.IRModule:
    return tvm.transform.Sequential([ExposeActivationBits()])(module)


def names(module: tvm.IRModule) -> set[str]:
    return {variable.name_hint for variable in module.functions}


def test_functions_are_added_once_and_no_kernel(lowered: tvm.IRModule) -> None:
    bare = without_bits(lowered)
    exposed = apply(bare)
    assert names(exposed) - names(bare) == ADDED
    relax.analysis.well_formed(exposed)  # raises
    assert names(apply(exposed)) == names(exposed)


def test_main_is_as_it_was(lowered: tvm.IRModule) -> None:
    bare = without_bits(lowered)
    tvm.ir.assert_structural_equal(apply(bare)["main"], bare["main"])


def test_bits_are_the_signs_of_the_tensors(imported: ImportedModel, compiled: CompiledNetwork) -> None:
    """Against ONNX Runtime's own signs, unpacked here: word bits are channels, inside a ring of padding."""
    feeds = sample_feeds(imported.inputs, 0, 0)
    signs = [node.output[0] for node in imported.onnx_model.graph.node if node.op_type == "Where"]
    values = Reference(expose(imported.onnx_model, signs), optimise=False).run(feeds)
    bits = compiled.activation_bits(feeds)
    assert list(bits) == ["layer_0", "layer_1", "layer_2"]
    for sign, packed in list(zip(signs, bits.values(), strict=True))[:2]:
        inside = packed[0, 0, 0, 1:-1, 1:-1]
        channels = (inside[None] >> np.arange(64, dtype=np.uint64)[:, None, None]) & np.uint64(1)
        assert np.array_equal(channels.astype(bool), values[sign][0] > 0)
    words = bits["layer_2"][0]
    feature = (words[None] >> np.arange(64, dtype=np.uint64)[:, None]) & np.uint64(1)
    # Dense activations are strided: bit c of word l is feature c * words + l.
    assert np.array_equal(feature.reshape(-1).astype(bool), values[signs[2]][0] > 0)


def test_layer_bits_are_those_of_main(imported: ImportedModel, compiled: CompiledNetwork) -> None:
    feeds = sample_feeds(imported.inputs, 0, 0)
    tensors = [str(layer["input"]) for layer in compiled.report["layers"] if layer["algorithm"] == "popcount"]
    values = Reference(expose(imported.onnx_model, tensors), optimise=False).run(feeds)
    bits = compiled.activation_bits(feeds)
    for (name, packed), tensor in zip(bits.items(), tensors, strict=True):
        source = values[tensor]
        assert np.array_equal(compiled.run_function(f"{name}_bits", source), packed)
        # And they do depend on it.
        assert not np.array_equal(compiled.run_function(f"{name}_bits", -source), packed)


def test_nothing_without_layers(lowered: tvm.IRModule) -> None:
    bare = without_bits(lowered)
    functions = {v: f for v, f in bare.functions.items() if not v.name_hint.startswith("layer_")}
    module = tvm.IRModule(functions, attrs=dict(bare.attrs.items()))
    assert names(apply(module)) == names(module)


def with_layers(module: tvm.IRModule, first: str, second: str) -> tvm.IRModule:
    """The module with the functions ``first`` and ``second`` as its layers 0 and 1."""
    functions = dict(module.functions.items())
    for name, source in (("layer_0", first), ("layer_1", second)):
        functions[module.get_global_var(name)] = module[source].with_attr("global_symbol", name)
    return tvm.IRModule(functions, attrs=dict(module.attrs.items()))


def test_nothing_where_layers_are_not_those_of_main(lowered: tvm.IRModule) -> None:
    """The same layer twice, where main has it once."""
    module = with_layers(without_bits(lowered), "layer_0", "layer_0")
    assert names(apply(module)) == names(module)


def test_layers_are_found_in_any_order(lowered: tvm.IRModule) -> None:
    """A fused kernel may stand behind that of a later layer: two layers exchanged show each other's bits."""
    bare = without_bits(lowered)
    exchanged = apply(with_layers(bare, "layer_1", "layer_0"))
    assert names(exchanged) - names(bare) == ADDED
    first, second, *rest = apply(bare)["activation_bits"].ret_ty.fields
    assert first != second
    tvm.ir.assert_structural_equal(list(exchanged["activation_bits"].ret_ty.fields), [second, first, *rest])
