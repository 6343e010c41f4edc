"""Kernels whose blocks of pixels are shared among threads give the same bits with any number of them."""

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


@pytest.mark.parametrize(("batch", "channels", "size", "groups"), [(1, 128, 40, 1), (3, 96, 40, 2)])
def test_same_bits(batch: int, channels: int, size: int, groups: int, tmp_path: Path) -> None:
    network = bnn_compiler.compile_model(layer(batch, channels, size, groups), algorithm="bitsliced", verify=False)
    path = tmp_path / "layer.so"
    network.export(path)
    assert b"TVMBackendParallelLaunch" in path.read_bytes(), "the layer is worth threads"
    x = np.random.default_rng(1).standard_normal((batch, channels, size, size)).astype(np.float32)
    (expected,) = network.run({"x": x}).values()

    def results(threads: int) -> list[np.ndarray]:
        model = bnn_compiler.load(path, threads=threads)
        return [next(iter(model.run({"x": x}).values())) for _ in range(3)]

    for threads in (2, 3):
        with ThreadPoolExecutor(1) as caller:  # each calling thread has a pool of its own, which cannot grow
            for found in caller.submit(results, threads).result():
                np.testing.assert_array_equal(found, expected)
