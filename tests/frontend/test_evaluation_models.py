"""The front end on the evaluation models: real networks as exporters write them, and graphs with one property each."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnn_compiler.errors import ModelError, UsageError
from bnn_compiler.frontend import ImportedModel, import_onnx
from tests.conftest import ModelFinder

from .onnx_text import Array, operators, run_onnx, run_relax

NETWORKS = [
    "vgg16_cifar10",
    "lenet_mnist",
    "cnv_cifar10",
    "lfc_mnist",
    "fracbnn_resnet20",
    "fracbnn_resnet20_pg_raw_legacy",
    "birealnet18",
    "birealnet18_raw_ortbasic",
    "reactnet_a_w05_onnxsim",
    "xnor_alexnet_fc768",
    "larq_quicknet",
    "larq_binaryresnete18",
    "brevitas_cnv_1w1a_plain_onnxsim",
    "brevitas_cnv_1w1a_qonnx",
    "qonnx_zoo_tfc_1w1a",
    "finn_tfc_multithreshold",
]

BAD = {
    "bad_empty_file": "the file is empty",
    "bad_bitflips": r"Conv node 'n1' has the weight -1\.329e\+36 at \[22, 13, 2, 1\] of 'w'.*the file is damaged",
    "bad_external_missing": r"the external data 'gone\.bin' of tensor 'w' is missing",
    "bad_cycle": "the graph has a cycle: Sign node 'n0' waits for its own result",
    "bad_opset99": "the ONNX operator set 99 is not supported",
    "bad_channel_mismatch": r"Conv node 'n1' has data of 16 channels, but its weight of shape .*needs 15",
}

SMALL = [
    "base_sign_conv",
    "alpha_per_channel",
    "grouped4",
    "depthwise",
    "dilation2",
    "asym_pads",
    "auto_pad_same_upper",
    "auto_pad_same_lower",
    "conv1d",
    "conv3d",
    "bias",
    "pad_minus1",
    "pad_half",
    "pad_conv_and_op",
    "bn_sign_opset17",
    "where_asym",
    "ste_residue",
    "sign_dropout",
    "sign_identity_transpose",
    "two_outputs",
    "maxpool_of_sign",
    "weights_transposed",
    "weights_int8_cast",
    "weights_dequant",
    "gemm_transA",
    "gemm_transB",
    "gemm_noT",
    "matmul_weight_left",
    "lstm_like_einsum",
    "dyn_batch",
    "dyn_hw",
    "dyn_all_gap",
    "if_branch",
    "external_ok",
    "init_also_input",
    "constant_node_weight",
    "sparse_constant_weight",
]

OPEN_SHAPES = {"dyn_hw": {"input": (1, 16, 8, 8)}, "dyn_all_gap": {"input": (1, 16, 8, 8)}}


def _sample(path: Path, imported: ImportedModel) -> tuple[dict[str, Array], list[Array]]:
    """The first of the stored inputs, and the outputs that belong to it."""
    with np.load(path.with_suffix(".npz")) as stored:
        feeds = {spec.name: stored[f"in_{spec.name}"][: spec.shape[0]] for spec in imported.inputs}
        return feeds, [stored[f"out_{spec.name}"][: spec.shape[0]] for spec in imported.outputs]


def _check_names(imported: ImportedModel) -> None:
    """Every tensor of the normalised model has a Relax variable, and every entry a node."""
    names = json.loads(imported.module.attrs["bnnc.names"])
    nodes = {node.name: node for node in imported.onnx_model.graph.node}
    computed = {name for node in nodes.values() if node.op_type != "Identity" for name in node.output if name}
    assert computed == {entry["output"] for entry in names.values()} - {None}
    for entry in names.values():
        assert nodes[entry["node"]].op_type == entry["op"]
        assert entry["output"] is None or entry["output"] in nodes[entry["node"]].output


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_import(name: str, network: ModelFinder) -> None:
    path = network(name)
    start = time.process_time()
    imported = import_onnx(path)
    assert time.process_time() - start < 10
    _check_names(imported)
    assert set(operators(imported.onnx_model)).isdisjoint(
        {"Constant", "Shape", "ConstantOfShape", "Identity", "Dropout"}
    )
    feeds, expected = _sample(path, imported)
    for found, stored in zip(run_onnx(imported.onnx_model, feeds), expected, strict=True):
        # Normalising changes no arithmetic. The stored outputs are of another machine's ONNX Runtime, whose kernels
        # may round otherwise; the largest known effect of that on these networks is 3e-6 of the output's range.
        np.testing.assert_allclose(found, stored, rtol=0, atol=1e-5 * np.abs(stored).max())


@pytest.mark.parametrize("name", BAD)
def test_bad_models_are_refused_in_one_line(name: str, small_model: ModelFinder) -> None:
    with pytest.raises(ModelError, match=rf"^{name}\.onnx: {BAD[name]}") as caught:
        import_onnx(small_model(name))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", SMALL)
def test_small_models_compute_the_same_in_relax(name: str, small_model: ModelFinder) -> None:
    path = small_model(name)
    imported = import_onnx(path, input_shapes=OPEN_SHAPES.get(name, {}))
    _check_names(imported)
    onnx.checker.check_model(imported.onnx_model, full_check=True)
    feeds, expected = _sample(path, imported)
    results = run_relax(imported.module, [feeds[spec.name] for spec in imported.inputs])
    for found, stored in zip(results, expected, strict=True):
        # Integer-valued results are exact; the others are sums of at most 576 products in another order.
        np.testing.assert_allclose(found, stored, rtol=0, atol=1e-6 * np.abs(stored).max())


def test_open_shapes_must_be_given(small_model: ModelFinder) -> None:
    with pytest.raises(UsageError, match=r"^dyn_hw.onnx: .*--input-shape input=1,16,\.\.\.,\.\.\.$"):
        import_onnx(small_model("dyn_hw"))


def test_an_output_that_is_the_input(small_model: ModelFinder) -> None:
    imported = import_onnx(small_model("passthrough"))
    feed = np.array([[1, np.nan, -0.0, np.inf]], np.float32)
    np.testing.assert_array_equal(run_relax(imported.module, [feed])[0], feed)
