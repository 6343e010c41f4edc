"""Composites keep the layer's float semantics, and lowering keeps the composites'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import relax

from bnn_compiler.composites import binary_composites
from bnn_compiler.errors import TargetError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.kernels.kernel_choice import ChoiceOptions
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.passes import CompileBinaryOps, DecideSignZeros, FoldBatchNorm, LowerBinaryOps, PartitionBinaryOps
from bnn_compiler.target import parse_target
from tests.conftest import ModelFinder
from tests.relax_run import run_by_default
from tests.small_relax_modules import applied

GRAPHS = [
    "base_sign_conv",
    "bn_sign_opset17",
    "int_threshold_tie_gt",
    "flipped_where",
    "sign_of_zero",
    "pad_minus1",
    "pad_conv_and_op",
    "grouped4",
    "conv1d",
    "matmul_weight_left",
    "sign_identity_transpose",
    "bias",
    "add_signs",
    "pad_half",
    "where_asym",
]


def integers(shape: tuple[int, ...]) -> np.ndarray:
    """Small integers without 0: every sum is exact, and no sign is of 0."""
    random = np.random.default_rng(0)
    return (random.integers(1, 4, shape) * np.where(random.random(shape) < 0.5, -1, 1)).astype(np.float32)


@pytest.mark.parametrize("name", GRAPHS)
def test_semantics_through_the_stages(name: str, small_model: ModelFinder) -> None:
    imported = import_onnx(small_model(name))
    target = parse_target("native").tvm_target
    x = integers(imported.inputs[0].shape)
    expected = run_by_default(imported.module, x)
    partitioned = applied(imported.module, FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps())
    assert binary_composites(partitioned)
    np.testing.assert_array_equal(run_by_default(partitioned, x), expected)
    layers: list[BinaryLayer] = []
    lowered = applied(partitioned, LowerBinaryOps(target, layers=layers))
    assert not binary_composites(lowered)
    assert [layer.function for layer in layers] == [f"layer_{i}" for i in range(len(layers))]
    with target:
        executable = relax.build(lowered, target=target)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(x)).numpy(), expected)


def test_layers_that_read_the_same_tensor_share_a_pack() -> None:
    random = np.random.default_rng(0)
    weights = [np.where(random.random((8, 4, 3, 3)) < 0.5, -1, 1).astype(np.float32) for _ in range(2)]
    nodes = [helper.make_node("Sign", ["x"], ["s"])]
    nodes += [helper.make_node("Conv", ["s", f"w{i}"], [f"y{i}"], name=f"conv{i}") for i in range(2)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, 8, 4, 4]) for i in range(2)],
        [numpy_helper.from_array(array, f"w{i}") for i, array in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    lowered = applied(import_onnx(model).module, CompileBinaryOps(parse_target("native").tvm_target))
    main = lowered["main"].script(show_meta=False)
    assert (main.count("pack_conv"), main.count("popcount_conv2d")) == (1, 2)
    # Both layers have one geometry, so they share one kernel too.
    kernels = [variable.name_hint for variable in lowered.functions if "conv" in variable.name_hint]
    assert len(kernels) == 2, kernels


def test_report_of_lowered_layers(small_model: ModelFinder) -> None:
    lowered = applied(
        import_onnx(small_model("bn_sign_opset17")).module, CompileBinaryOps(parse_target("native").tvm_target)
    )
    entries = json.loads(str(lowered.attrs["bnnc.layers"]))
    assert [entry["function"] for entry in entries] == ["layer_0", "layer_1"]
    assert all(entry["kernel"].startswith("popcount_conv2d") and entry["weight_bytes"] > 0 for entry in entries)


def test_a_target_is_needed(small_model: ModelFinder) -> None:
    partitioned = applied(import_onnx(small_model("base_sign_conv")).module, DecideSignZeros(), PartitionBinaryOps())
    with pytest.raises(TargetError, match="with target"):
        applied(partitioned, LowerBinaryOps())


def test_derived_constants_are_stored_where_nobody_derives_them(digits: Path) -> None:
    """Any pipeline of TVM's runs the module: the tables are constants, unless the caller lifts their derivation."""
    imported = import_onnx(digits)
    target = parse_target("native").tvm_target
    stored = applied(imported.module, CompileBinaryOps(target, algorithm="bitsliced"))
    assert "expand_program" not in {variable.name_hint for variable in stored.functions}
    options = ChoiceOptions("bitsliced")
    partitioned = applied(
        imported.module, FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps(algorithm="bitsliced")
    )
    derived = applied(partitioned, LowerBinaryOps(target, options, derive=True))
    x = np.random.default_rng(0).random(imported.inputs[0].shape).astype(np.float32)
    outputs = []
    for module in (stored, derived):
        with target:
            executable = relax.build(module, target=target)
        outputs.append(relax.VirtualMachine(executable, tvm.cpu())["main"](tvm.runtime.tensor(x)).numpy())
    np.testing.assert_array_equal(outputs[0], outputs[1])
