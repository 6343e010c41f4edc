"""Kernels that threads share give the same bits with any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler


def layer(batch: int, channels: int, size: int, groups: int) -> bytes:
    rng = np.random.default_rng(0)
    weights = rng.choice([-1.0, 1.0], (channels, channels // groups, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"], pads=[1, 1, 1, 1], group=groups),
    ]
    shape = [batch, channels, size, size]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "layer", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def residual_network(batch: int) -> bytes:
    """A pooled stem, depthwise and 1x1 convolutions, binary ones with a residual on 28x28 and 7x7, a dense layer."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (64, 3, 7, 7), "depthwise": (64, 1, 3, 3), "wider": (128, 64, 1, 1), "dense": (256, 1000)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, shape in {"same": (128, 128, 3, 3), "down": (256, 128, 3, 3), "last": (256, 256, 3, 3)}.items():
        weights[name] = rng.choice([-1.0, 1.0], shape).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], strides=[2, 2], pads=[3, 3, 3, 3]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "depthwise"], ["d"], pads=[1, 1, 1, 1], group=64),
        helper.make_node("Conv", ["d", "wider"], ["e"]),
        helper.make_node("Sign", ["e"], ["f"]),
        helper.make_node("Conv", ["f", "same"], ["g"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["g", "e"], ["h"]),
        helper.make_node("Sign", ["h"], ["i"]),
        helper.make_node("Conv", ["i", "down"], ["j"], strides=[4, 4], pads=[1, 1, 1, 1]),
        helper.make_node("Sign", ["j"], ["k"]),
        helper.make_node("Conv", ["k", "last"], ["l"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalMaxPool", ["l"], ["m"]),
        helper.make_node("Flatten", ["m"], ["n"]),
        helper.make_node("MatMul", ["n", "dense"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 112, 112])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1000])
    initialisers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "network", [x], [y], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def check_same_bits(network: bnn_compiler.CompiledNetwork, folder: Path) -> None:
    path = folder / "network.so"
    network.export(path)
    assert b"TVMBackendParallelLaunch" in path.read_bytes(), "the network is worth threads"
    (spec,) = network.inputs
    x = np.random.default_rng(1).standard_normal(spec.shape).astype(np.float32)
    (expected,) = network.run({"x": x}).values()

    def results(threads: int) -> list[np.ndarray]:
        model = bnn_compiler.load(path, threads=threads)
        return [next(iter(model.run({"x": x}).values())) for _ in range(3)]

    for threads in (2, 3):
        with ThreadPoolExecutor(1) as caller:  # each calling thread has a pool of its own, which cannot grow
            for found in caller.submit(results, threads).result():
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("algorithm", ["bitsliced", "popcount"])
@pytest.mark.parametrize(("batch", "channels", "size", "groups"), [(1, 128, 40, 1), (3, 96, 40, 2)])
def test_layers(algorithm: str, batch: int, channels: int, size: int, groups: int, tmp_path: Path) -> None:
    model = layer(batch, channels, size, groups)
    check_same_bits(bnn_compiler.compile_model(model, algorithm=algorithm, verify=False), tmp_path)


@pytest.mark.parametrize("batch", [1, 3])
def test_network(batch: int, tmp_path: Path) -> None:
    check_same_bits(bnn_compiler.compile_model(residual_network(batch)), tmp_path)
