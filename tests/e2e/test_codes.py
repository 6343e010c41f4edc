"""Activations of a few levels, as their exporters write them: lowered to codes, equal to ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler

Array = np.ndarray[Any, np.dtype[Any]]
#: Appends nodes that quantise a tensor of a graph, and gives the result's name.
Quantiser = Callable[["Graph", str], str]


@dataclass
class Graph:
    """An ONNX graph in the making; ``add`` gives the name of a new node's result."""

    channels: int
    rank: int = 4
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, operator: str, *inputs: str | float | Array, **attributes: Any) -> str:
        """A node; numbers and arrays become initialisers."""
        names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def constant(self, value: float | Array) -> str:
        """An initialiser."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, np.float32), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def by_channel(self, values: Array) -> Array:
        """``values`` [C] aligned with the channels."""
        return values.reshape(-1, *(1,) * (self.rank - 2)).astype(np.float32)

    def model(self, output: str, x_shape: tuple[int, ...]) -> onnx.ModelProto:
        """The finished model, from ``x`` to ``output``."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "codes", [x], [y], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dorefa(bits: int) -> Quantiser:
    """round(clip(x, 0, 1)·n)/n, n = 2^bits − 1 (DoReFa-Net, equation 5)."""
    top = 2.0**bits - 1

    def quantise(g: Graph, x: str) -> str:
        return g.add("Div", g.add("Round", g.add("Mul", g.add("Clip", x, 0.0, 1.0), top)), top)

    return quantise


def integers(bits: int) -> Quantiser:
    """The same without the last division: 0 … n."""
    return lambda g, x: g.add("Round", g.add("Mul", g.add("Clip", x, 0.0, 1.0), 2.0**bits - 1))


def signed(bits: int) -> Quantiser:
    """2·round(clip(x/2 + 1/2, 0, 1)·n) − n: the odd numbers from −n to n."""
    top = 2.0**bits - 1

    def quantise(g: Graph, x: str) -> str:
        clipped = g.add("Clip", g.add("Add", g.add("Mul", x, 0.5), 0.5), 0.0, 1.0)
        return g.add("Sub", g.add("Mul", g.add("Round", g.add("Mul", clipped, top)), 2.0), top)

    return quantise


def batch_norm_then(quantise: Quantiser) -> Quantiser:
    """An affine map per channel in front, with factors of both signs."""

    def chain(g: Graph, x: str) -> str:
        random = np.random.default_rng(1)
        scale = random.uniform(0.2, 1, g.channels) * random.choice([-1, 1], g.channels)
        shift = random.uniform(-0.3, 0.8, g.channels)
        scaled = g.add("Mul", x, g.by_channel(scale))
        return quantise(g, g.add("Add", scaled, g.by_channel(shift)))

    return chain


def multi_threshold(g: Graph, x: str) -> str:
    """FINN's MultiThreshold: the number of thresholds, of a channel's own, that x reaches; minus 1."""
    thresholds = np.sort(np.random.default_rng(2).normal(0, 1, (3, g.channels)), axis=0)
    counts = [g.add("Cast", g.add("GreaterOrEqual", x, g.by_channel(row)), to=TensorProto.FLOAT) for row in thresholds]
    return g.add("Sub", g.add("Add", g.add("Add", counts[0], counts[1]), counts[2]), 1.0)


def two_signs(g: Graph, x: str) -> str:
    """{−2, 0, 2}, and what signs of 0 add to it: −1 and 1."""
    return g.add("Add", g.add("Sign", x), g.add("Sign", g.add("Sub", x, 1.0)))


def uneven(g: Graph, x: str) -> str:
    """{−1, 0.5, 1}: three of five equally spaced values."""
    middle = g.add("Where", g.add("Greater", x, 1.0), 1.0, 0.5)
    return g.add("Where", g.add("Less", x, -1.0), -1.0, middle)


def of_two_tensors(g: Graph, x: str) -> str:
    """A sum of signs of different tensors: no function of one tensor, packed as the values it holds."""
    rolled = g.add("Relu", g.add("Neg", x))
    first = g.add("Where", g.add("Greater", x, 0.25), 1.0, -1.0)
    return g.add("Add", first, g.add("Where", g.add("Greater", rolled, 1.0), 2.0, -2.0))


def one_bit(g: Graph, x: str) -> str:
    """2·round(clip(x, 0, 1)) − 1: a sign with a threshold that rounding half to even makes."""
    return g.add("Sub", g.add("Mul", g.add("Round", g.add("Clip", x, 0.0, 1.0)), 2.0), 1.0)


def asymmetric(g: Graph, x: str) -> str:
    """{−0.5, 1}: under zero padding codes of two bits, because 0 is a third of the way."""
    return g.add("Where", g.add("Greater", x, 0.0), 1.0, -0.5)


#: Quantiser, bits of the codes (in the kernel's name), and the ONNX tensor that is packed (None: not checked).
QUANTISERS: dict[str, tuple[Quantiser, str, str | None]] = {
    "dorefa2": (dorefa(2), "unsigned2", "x"),
    "dorefa3": (dorefa(3), "unsigned3", "x"),
    "dorefa4": (dorefa(4), "unsigned4", "x"),
    "integers2": (integers(2), "unsigned2", "x"),
    "integers4": (integers(4), "unsigned4", "x"),
    "signed2": (signed(2), "bipolar2", "x"),
    "signed3": (signed(3), "bipolar3", "x"),
    "signed4": (signed(4), "bipolar4", "x"),
    "batch norm, signed2": (batch_norm_then(signed(2)), "bipolar2", "x"),
    "batch norm, integers3": (batch_norm_then(integers(3)), "unsigned3", "x"),
    "multi-threshold": (multi_threshold, "unsigned2", "x"),
    "two signs": (two_signs, "unsigned3", "x"),
    "uneven": (uneven, "unsigned3", None),
    "two tensors": (of_two_tensors, "bipolar2", "t6"),
    "one bit": (one_bit, "bipolar", "x"),
    "asymmetric": (asymmetric, "unsigned2", "x"),
}
#: Sums of thirds and sevenths are rounded; all others are sums of integers and halves.
ROUNDED = {"dorefa2", "dorefa3", "dorefa4"}


def conv_model(quantise: Quantiser) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A padded, strided, grouped convolution with weights ±1 of a quantised input."""
    g = Graph(channels=10)
    weights = np.where(np.random.default_rng(0).random((6, 5, 3, 3)) < 0.5, 1, -1)
    activation = quantise(g, "x")
    output = g.add("Conv", activation, weights, pads=[1, 1, 1, 1], strides=[2, 1], group=2)
    return g.model(output, (2, 10, 9, 7)), (2, 10, 9, 7)


def dense_model(quantise: Quantiser) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A matrix product with weights ±1 of a quantised input."""
    g = Graph(channels=70, rank=2)
    weights = np.where(np.random.default_rng(0).random((70, 9)) < 0.5, 1, -1)
    return g.model(g.add("MatMul", quantise(g, "x"), weights), (5, 70)), (5, 70)


def inputs(shape: tuple[int, ...]) -> Array:
    """Multiples of 1/28 and of 1/16, so that thresholds are hit, their neighbours, and ordinary floats."""
    random = np.random.default_rng(3)
    ties = random.integers(-56, 57, shape) / random.choice([28.0, 16.0], shape)
    beside = np.nextafter(ties.astype(np.float32), np.float32(np.inf) * random.choice([-1, 1], shape))
    return np.choose(random.integers(0, 3, shape), [ties, beside, random.normal(0, 1, shape)]).astype(np.float32)


def check(model: onnx.ModelProto, shape: tuple[int, ...], name: str, padded: bool) -> None:
    _, alphabet, packed = QUANTISERS[name]
    compiled = bnn_compiler.compile_model(model.SerializeToString())
    (layer,) = compiled.report["layers"]
    assert layer["algorithm"] == "popcount", layer
    if padded or name != "asymmetric":
        assert f"_{alphabet}_" in str(layer["kernel"]), layer
    assert layer["status"] == ("binary" if name == "one bit" else "binary_weight"), layer
    assert packed is None or layer["input"] == packed, layer
    assert compiled.report["verification"] is not None and compiled.report["verification"]["passed"]
    x = inputs(shape)
    (actual,) = compiled.run({"x": x}).values()
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    if name in ROUNDED:
        # At most 70 terms of at most 1: γ_72 · 70 = 3e-4 at worst, and sums err like its root.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", QUANTISERS)
def test_conv(name: str) -> None:
    check(*conv_model(QUANTISERS[name][0]), name, padded=True)


@pytest.mark.parametrize("name", QUANTISERS)
def test_dense(name: str) -> None:
    check(*dense_model(QUANTISERS[name][0]), name, padded=False)


@pytest.mark.parametrize("algorithm", ["bitsliced", "float"])
def test_other_algorithms(algorithm: str) -> None:
    """Bit-sliced kernels count the same codes; forced float computes the quantiser as the model has it."""
    model, shape = conv_model(integers(2))
    compiled = bnn_compiler.compile_model(model.SerializeToString(), algorithm=algorithm)
    (layer,) = compiled.report["layers"]
    assert layer["algorithm"] == algorithm
    x = inputs(shape)
    (actual,) = compiled.run({"x": x}).values()
    (expected,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_array_equal(actual, expected)
