from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import bnn_compiler
from bnn_compiler.frontend import import_onnx
from bnn_compiler.profiling.kernel_table import KernelEntry
from tests.frontend.onnx_text import parse


def table_of(model: Path | onnx.ModelProto, algorithm: str = "popcount") -> list[KernelEntry]:
    compiled = bnn_compiler.compile_model(model, algorithm=algorithm, verify=False)
    table: list[KernelEntry] = compiled.model.manifest["kernels"]
    return table


def test_each_kernel_of_the_example_has_its_nodes(digits: Path) -> None:
    table = [(entry["kind"], entry["layer"], entry["nodes"]) for entry in table_of(digits)]
    first, conv = "conv1/Conv", "conv2/Conv"
    sign = ["conv1.activation/GreaterOrEqual", "conv1.activation/Where"]
    path = ["norm2/BatchNormalization", "conv2.activation/GreaterOrEqual", "conv2.activation/Where", conv, "conv2/Mul"]
    assert ("float", "norm1/Conv", ["norm1/Conv"]) in table
    assert ("glue", first, []) not in table  # the float convolution's kernel packs its activations
    assert ("binary", first, [*sign, first]) in table
    [nodes] = [nodes for kind, layer, nodes in table if kind == "binary" and layer == conv]
    assert nodes[-5:] == path


@pytest.mark.parametrize("algorithm", ["popcount", "bitsliced", "float"])
def test_each_node_belongs_to_one_kernel(digits: Path, algorithm: str) -> None:
    nodes = [node for entry in table_of(digits, algorithm) for node in entry["nodes"]]
    assert sorted(nodes) == sorted(node.name for node in import_onnx(digits).onnx_model.graph.node)


def test_a_pool_that_moved_to_its_convolution_keeps_the_nodes() -> None:
    text = """g (float[1,3,16,16] x, float[64,3,3,3] w, float[64] b) => (float[1,64,7,7] y) {
        [conv] c = Conv(x, w, b) [act] r = Relu(c) [pool] y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r) }"""
    model = parse(text)
    generator = np.random.default_rng(0)
    for value, shape in zip(list(model.graph.input)[1:], ((64, 3, 3, 3), (64,)), strict=True):
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    nodes = [(entry["kind"], node) for entry in table_of(model) for node in entry["nodes"]]
    assert ("float", "conv") in nodes
    assert {node for _, node in nodes} == {"conv", "act", "pool"}


@pytest.mark.parametrize(
    "name",
    ["vgg16_cifar10", *(pytest.param(n, marks=pytest.mark.slow) for n in ("birealnet18", "reactnet_a_w05_onnxsim"))],
)
def test_each_node_of_a_network_belongs_to_one_kernel(network: Callable[[str], Path], name: str) -> None:
    compiled = bnn_compiler.compile_model(network(name), algorithm="popcount", verify=False)
    table: list[KernelEntry] = compiled.model.manifest["kernels"]
    nodes = [node for entry in table for node in entry["nodes"]]
    assert len(set(nodes)) == len(nodes)
    model = import_onnx(network(name)).onnx_model
    assert set(nodes) == {node.name for node in model.graph.node}
    # Each layer is computed by a call that says so; convolutions of one tensor may be one call.
    computed = {node for entry in table if entry["kind"] != "glue" for node in entry["nodes"]}
    assert {layer["name"] for layer in compiled.report["layers"]} <= computed
    products = [entry for entry in table if entry["kind"] == "binary"]
    assert all(entry["layer"] in entry["nodes"] for entry in products)


def test_layers_that_hand_on_bits_keep_their_nodes() -> None:
    text = """g (float[1,64,8,8] x, float[64,64,3,3] v, float[64,64,3,3] w) => (float[1,64,4,4] y) {
        [s] a = Sign(x) [first] c = Conv(a, v) [t] b = Sign(c) [second] y = Conv(b, w) }"""
    model = parse(text)
    generator = np.random.default_rng(0)
    for value in list(model.graph.input)[1:]:
        array = generator.choice(np.array([-1, 1], np.float32), (64, 64, 3, 3))
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.input[1:]
    table = table_of(model)
    products = {entry["layer"]: entry["nodes"] for entry in table if entry["kind"] == "binary"}
    assert products == {"first": ["s", "first"], "second": ["t", "second"]}
