"""Bit-sliced layers in a library: little is stored, tables are made once per load, results are those of popcount."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_compiler import artifact
from bnn_compiler.artifact import read_manifest
from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.driver import compile_model
from bnn_compiler.errors import ArtifactError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.kernels.derived_constant import DerivedConstant
from bnn_compiler.kernels.kernel_choice import Choice, ChoiceOptions, choose_kernels
from bnn_compiler.passes import DecideSignZeros, FoldBatchNorm, LowerBinaryOps, PartitionBinaryOps, lower_binary_ops
from bnn_compiler.report import LayerReport
from bnn_compiler.runtime import CompiledModel, load
from bnn_compiler.target import parse_target
from tests.small_relax_modules import applied

WORD_BITS = 64


@pytest.fixture(scope="module")
def compiled(digits: Path) -> CompiledNetwork:
    return compile_model(digits, algorithm="bitsliced")


@pytest.fixture(scope="module")
def library(compiled: CompiledNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "digits.so"
    compiled.export(path)
    return path


@pytest.fixture(scope="module")
def choices(digits: Path) -> list[Choice]:
    """The kernels of the bit-sliced layers, as the library has them."""
    found: list[Choice] = []

    def choose(*arguments: Any) -> Choice:
        choice = choose_kernels(*arguments)
        if choice.kernels.algorithm == "bitsliced":
            found.append(choice)
        return choice

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lower_binary_ops, "choose_kernels", choose)
        lowering = LowerBinaryOps(parse_target("native").tvm_target, ChoiceOptions("bitsliced"))
        applied(import_onnx(digits).module, FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps(), lowering)
    return found


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).random((1, 1, 8, 8)).astype(np.float32)


def bitsliced(compiled: CompiledNetwork) -> list[LayerReport]:
    return [layer for layer in compiled.report["layers"] if layer["algorithm"] == "bitsliced"]


def tables(choice: Choice) -> DerivedConstant:
    (derived,) = [constant for constant in choice.kernels.constants if isinstance(constant, DerivedConstant)]
    return derived


def test_at_most_two_bits_per_weight(compiled: CompiledNetwork, choices: list[Choice]) -> None:
    """Solved trees with synthetic nodes: vectors of all nodes, and nothing else that grows with the weights."""
    layers = bitsliced(compiled)
    assert len(choices) == len(layers) == 2
    for choice, layer in zip(choices, layers, strict=True):
        tree = layer["choice"]["tree"]
        assert tree["synthetic_nodes"] > 0
        vectors = tables(choice).stored[0]
        weights = int(np.prod(layer["weight_shape"]))
        # Two words more, whatever the layer: the last one is a part, and one is read beyond it.
        assert 8 * vectors.nbytes <= 2 * weights + 2 * WORD_BITS
        assert 8 * vectors.nbytes >= tree["nodes"] * weights // layer["weight_shape"][0]


def test_library_holds_vectors_and_not_lists(library: Path, choices: list[Choice]) -> None:
    content = library.read_bytes()
    for choice in choices:
        derived = tables(choice)
        assert all(array.tobytes() in content for array in derived.stored)
        assert derived.value.tobytes() not in content


def test_report_states_bytes_and_the_papers_count(compiled: CompiledNetwork, choices: list[Choice]) -> None:
    for choice, layer in zip(choices, bitsliced(compiled), strict=True):
        lists = tables(choice).value
        assert layer["resident_bytes"] == layer["weight_bytes"] + lists.nbytes
        differing = layer["choice"]["tree"]["differing_weights"]
        # Lists are padded to blocks, two per node.
        assert differing <= lists.size <= differing + 14 * layer["choice"]["tree"]["nodes"]


def test_results_are_those_of_popcount(compiled: CompiledNetwork, digits: Path, image: np.ndarray) -> None:
    popcount = compile_model(digits, algorithm="popcount", verify=False)
    assert "derivation" not in popcount.model.manifest
    np.testing.assert_array_equal(compiled.run(image)["score"], popcount.run(image)["score"])
    for layer in bitsliced(compiled):
        (spec,) = compiled.model._signatures[layer["function"]].inputs
        x = np.random.default_rng(1).standard_normal(spec.shape).astype(np.float32)
        expected = popcount.run_function(layer["function"], x)
        np.testing.assert_array_equal(compiled.run_function(layer["function"], x), expected)


def test_derived_once_per_load(
    library: Path, choices: list[Choice], image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not per run, function or thread; and two loads have nothing in common."""
    calls: list[Mapping[str, Any]] = []
    derive = CompiledModel._derive

    def counted(model: CompiledModel, derivation: Mapping[str, Any]) -> Any:
        calls.append(derivation)
        return derive(model, derivation)

    monkeypatch.setattr(CompiledModel, "_derive", counted)
    first, second = load(library), load(library)
    expected = first.run(image)["score"]
    results: list[np.ndarray] = []

    def work(model: CompiledModel) -> None:
        for _ in range(20):
            results.append(model.run(image)["score"])

    threads = [threading.Thread(target=work, args=(model,)) for model in (first, second) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6 * 20
    assert all(np.array_equal(result, expected) for result in results)
    assert len(calls) == 2
    for model in (first, second):
        made = {tensor.numpy().tobytes() for tensor in model._derived}
        assert made == {tables(choice).value.tobytes() for choice in choices}
    assert {tensor.data_ptr() for tensor in first._derived}.isdisjoint(t.data_ptr() for t in second._derived)


def test_damaged_libraries_are_refused_before_anything_is_derived(
    library: Path, choices: list[Choice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector or a node table with one wrong bit would write anywhere."""
    monkeypatch.setattr(CompiledModel, "_derive", lambda *_: pytest.fail("derived from a damaged library"))
    content = library.read_bytes()
    for array in tables(choices[0]).stored:
        damaged = bytearray(content)
        damaged[content.index(array.tobytes()) + 3] ^= 0x40
        path = tmp_path / "damaged.so"
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            load(path)


def test_functions_of_the_manifest_and_their_derived_arguments(library: Path) -> None:
    manifest = read_manifest(library)
    outputs = manifest["derivation"]["outputs"]
    assert [output["dtype"] for output in outputs] == ["uint16", "uint16"]
    assert manifest["derived"] == [0, 1]
    assert manifest["functions"]["layer_0"]["derived"] == [0]
    assert "derived" not in manifest["functions"]["layer_2"]  # a dense layer
    assert manifest["derivation"]["function"] not in load(library).functions


def test_format_without_derivation_loads(
    digits: Path, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries of the first format have nothing to derive, and their manifests are not compressed."""
    monkeypatch.setattr(artifact, "FORMAT_VERSION", 1)
    monkeypatch.setattr("bnn_compiler.artifact.zlib.compress", lambda text, level: text)
    compile_model(digits, algorithm="popcount", verify=False).export(tmp_path / "first.so")
    monkeypatch.undo()
    assert load(tmp_path / "first.so").run(image)["score"].shape == (1, 10)
