"""What a network computes between two binary layers, max-pools above all, on bits: against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler

CHANNELS = 70


class Chain:
    """Writes a network of 3x3 convolutions of 70 channels of ±1, and of what stands between them."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.value = "x"
        self.binarise()
        self.convolution()

    def add(self, operator: str, *more: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.value, *more], [name], f"n{len(self.nodes)}", **attributes))
        self.value = name
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    def batch_norm(self) -> None:
        """Scales of both signs, and one channel without any."""
        gamma = self.random.choice([-1.5, -0.5, 0.5, 1.5], CHANNELS)
        gamma[0] = 0
        beta, mean = self.random.standard_normal((2, CHANNELS)) * [[1], [20]]
        variance = self.random.uniform(50, 200, CHANNELS)
        self.add("BatchNormalization", *(self.constant(array) for array in (gamma, beta, mean, variance)))

    def binarise(self) -> None:
        """+1 above zero, else −1, spelt with Where."""
        zero, one, minus = (self.constant(np.array(value)) for value in (0, 1, -1))
        condition = self.add("Greater", zero)
        self.nodes.append(helper.make_node("Where", [condition, one, minus], [f"{condition}_where"]))
        self.value = f"{condition}_where"

    def convolution(self) -> None:
        weights = self.random.choice([-1.0, 1.0], (CHANNELS, CHANNELS, 3, 3))
        self.add("Conv", self.constant(weights), pads=[1, 1, 1, 1])

    def model(self, outputs: list[str] | None = None) -> onnx.ModelProto:
        names = outputs or [self.value]
        graph = helper.make_graph(
            self.nodes,
            "chain",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 15, 14])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def compiled(model: onnx.ModelProto, tmp_path: Path, algorithm: str) -> bnn_compiler.CompiledNetwork:
    """Verified layer by layer and end to end; compared once more on other numbers."""
    path = tmp_path / "chain.onnx"
    onnx.save(model, path)
    network = bnn_compiler.compile_model(path, algorithm=algorithm)
    x = np.random.default_rng(1).standard_normal((1, CHANNELS, 15, 14)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = network.run({"x": x})
    for name, array in zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True):
        # Sums of integers are exact; a batch-norm may stand behind: a multiplication and an addition in float32.
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
    return network


def gives_bits(network: bnn_compiler.CompiledNetwork) -> list[bool]:
    return [bool(entry.get("gives_bits")) for entry in network.report["layers"]]


@pytest.mark.parametrize("algorithm", ["popcount", "bitsliced"])
def test_paths_of_all_kinds(algorithm: str, tmp_path: Path) -> None:
    chain = Chain()
    # Operators on both sides of an overlapping, padded pool; scales of both signs behind it.
    chain.add("Relu")
    chain.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    chain.batch_norm()
    chain.binarise()
    chain.convolution()
    # A pool of signs, rounded up, padded on one side.
    chain.batch_norm()
    chain.binarise()
    chain.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 1, 0, 0], ceil_mode=1)
    chain.convolution()
    # Dilated; clipped values, scaled down to where they are compared.
    chain.add("Clip", chain.constant(np.array(-3)), chain.constant(np.array(3)))
    chain.add("MaxPool", kernel_shape=[2, 2], strides=[1, 1], dilations=[2, 1])
    chain.add("Mul", chain.constant(chain.random.choice([-0.5, 0.25], (CHANNELS, 1, 1))))
    chain.binarise()
    chain.convolution()
    # No pool, and a choice between two branches of one tensor.
    source = chain.value
    limit = chain.constant(np.array(2))
    condition = chain.add("Greater", limit)
    chain.nodes.append(helper.make_node("Where", [condition, limit, source], ["limited"], "limit"))
    chain.value = "limited"
    chain.batch_norm()
    chain.binarise()
    chain.convolution()
    network = compiled(chain.model(), tmp_path, algorithm)
    assert gives_bits(network) == [True, True, True, True, False]


def test_dense_layers(tmp_path: Path) -> None:
    """A convolution whose only pixel is flattened, and a batch-norm over an axis of its own."""
    chain = Chain()
    chain.add("MaxPool", kernel_shape=[15, 14])
    chain.add("Flatten")
    chain.binarise()
    for features in (130, 70):
        inputs = CHANNELS if features == 130 else 130
        chain.add("MatMul", chain.constant(chain.random.choice([-1.0, 1.0], (inputs, features))))
        if features == 130:
            chain.add("Mul", chain.constant(chain.random.choice([-1.0, 0.25], features)))
        else:
            axes = numpy_helper.from_array(np.array([2]), "axes")
            chain.constants.append(axes)
            chain.add("Unsqueeze", "axes")
            chain.batch_norm()
            chain.add("Squeeze", "axes")
        chain.binarise()
    chain.add("MatMul", chain.constant(chain.random.choice([-1.0, 1.0], (CHANNELS, 9))))
    # Bit-sliced kernels, which some CPUs would take for the convolution, hand no bits through a flattened map.
    assert gives_bits(compiled(chain.model(), tmp_path, "popcount")) == [True, True, True, False]


def test_a_flattened_map_stays_float(tmp_path: Path) -> None:
    """Several pixels of a channel are apart in the order of features."""
    chain = Chain()
    chain.add("MaxPool", kernel_shape=[8, 7], strides=[7, 7])
    chain.binarise()
    chain.add("Flatten")
    chain.add("MatMul", chain.constant(chain.random.choice([-1.0, 1.0], (CHANNELS * 4, 9))))
    assert gives_bits(compiled(chain.model(), tmp_path, "auto")) == [False, False]


def _absolute(chain: Chain) -> None:
    chain.add("Abs")  # even in z: the bit is no threshold
    chain.add("Sub", chain.constant(np.array(5)))


def _pool_of_no_monotone_value(chain: Chain) -> None:
    """(max |z|) >= 5 is a threshold of max |z|, but not of z; and 5 − |z| falls on one side alone."""
    chain.add("Abs")
    chain.add("MaxPool", kernel_shape=[2, 2])
    chain.add("Sub", chain.constant(np.array(5)))


def _two_pools(chain: Chain) -> None:
    chain.add("MaxPool", kernel_shape=[2, 2])
    chain.add("MaxPool", kernel_shape=[2, 2])


def _beside_its_pool(chain: Chain) -> None:
    source = chain.value
    pooled = chain.add("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    chain.value = source
    chain.add("Add", pooled)


def _constant_per_pixel(chain: Chain) -> None:
    chain.add("Add", chain.constant(chain.random.standard_normal((15, 14))))


def _average(chain: Chain) -> None:
    chain.add("AveragePool", kernel_shape=[2, 2])


@pytest.mark.parametrize(
    "between", [_absolute, _pool_of_no_monotone_value, _two_pools, _beside_its_pool, _constant_per_pixel, _average]
)
def test_paths_that_stay_float(between: Callable[[Chain], None], tmp_path: Path) -> None:
    chain = Chain()
    between(chain)
    chain.binarise()
    chain.convolution()
    network = compiled(chain.model(), tmp_path, "popcount")
    assert gives_bits(network) == [False, False]


def test_a_path_that_is_an_output_stays_float(tmp_path: Path) -> None:
    chain = Chain()
    pooled = chain.add("MaxPool", kernel_shape=[2, 2])
    chain.binarise()
    chain.convolution()
    assert gives_bits(compiled(chain.model([pooled, chain.value]), tmp_path, "popcount")) == [False, False]
