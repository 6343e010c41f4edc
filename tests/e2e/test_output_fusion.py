"""What follows binary convolutions runs in their kernels: against ONNX Runtime, layer by layer, and bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from bnn_compiler.passes import expose_activation_bits, lower_binary_ops

SHAPE = [2, 24, 9, 10]


class Graph:
    """Builds a model of signs, convolutions and whatever else, on ``x``."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], output, **attributes))
        return output

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def per_channel(self, channels: int = 24, rank: int = 3) -> str:
        return self.constant(self.rng.standard_normal((channels, *[1] * (rank - 1))))

    def conv(self, value: str, name: str, channels: tuple[int, int] = (24, 24), *, kernel: int = 3) -> str:
        """A sign and a convolution of ±1 with a bias, which keeps sizes."""
        weights = self.rng.choice([-0.25, 0.25], (channels[1], channels[0], kernel, kernel))
        sign = self.node("Sign", value)
        pads = [kernel // 2] * 4
        bias = self.constant(self.rng.standard_normal(channels[1]))
        return self.node("Conv", sign, self.constant(weights), bias, name=name, pads=pads)

    def model(self, *outputs: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "fused",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def residuals(graph: Graph) -> onnx.ModelProto:
    """Sums go to the next sign and to the next sum."""
    first = graph.node("Add", graph.conv("x", "a"), "x", name="sum_a")
    second = graph.node("Add", first, graph.conv(first, "b"), name="sum_b")
    return graph.model(graph.node("Relu", graph.conv(second, "c"), name="relu_c"))


def activations(graph: Graph) -> onnx.ModelProto:
    """RPReLU, Relu with an affine map, and a result that signs alone read."""
    value = graph.node("Add", graph.node("Add", graph.conv("x", "a"), "x"), graph.per_channel())
    value = graph.node("Add", graph.node("PRelu", value, graph.per_channel()), graph.per_channel())
    value = graph.node("Mul", graph.node("Relu", graph.conv(value, "b")), graph.per_channel())
    value = graph.node("Sub", graph.per_channel(), value)
    low, high = graph.constant(np.array(-1.5)), graph.constant(np.array(2.5))
    value = graph.node("Clip", graph.node("Add", "x", graph.conv(value, "c")), low, high)
    return graph.model(graph.node("LeakyRelu", value, alpha=0.1))


def norms(graph: Graph) -> onnx.ModelProto:
    """A batch-norm behind a Relu is two operators and one node."""
    statistics = [graph.constant(graph.rng.uniform(0.5, 2, 24)) for _ in range(4)]
    norm = graph.node(
        "BatchNormalization", graph.node("Relu", graph.conv("x", "a"), name="relu"), *statistics, name="n"
    )
    return graph.model(graph.node("Add", norm, "x", name="sum"))


def duplication(graph: Graph) -> onnx.ModelProto:
    """ReActNet's doubling of channels: the kernels behind a concatenation, in the other order than the layers."""
    parts = [graph.node("Add", graph.conv("x", name, kernel=1), "x") for name in ("a", "b")]
    value = graph.node("Concat", *reversed(parts), axis=1)
    value = graph.node("PRelu", graph.node("Add", value, graph.per_channel(48)), graph.per_channel(48))
    return graph.model(graph.node("Add", graph.conv(value, "c", (48, 48)), value))


def meetings(graph: Graph) -> onnx.ModelProto:
    """Two layers that meet in a sum, one that meets itself, and a result that is an output as well."""
    left, right = graph.conv("x", "a"), graph.node("Relu", graph.conv("x", "b"))
    value = graph.node("Add", left, right, name="meeting")
    twice = graph.conv(value, "c")
    twice = graph.node("Mul", twice, twice)
    shared = graph.node("Relu", graph.conv(twice, "d"), name="shared")
    return graph.model(graph.node("Add", graph.conv(shared, "e"), twice), "shared")


GRAPHS: dict[Callable[[Graph], onnx.ModelProto], dict[str, tuple[list[str], list[str], bool]]] = {
    residuals: {
        "a": (["sum_a"], ["b"], False),
        "b": (["sum_b"], ["c"], True),
        "c": (["relu_c"], [], False),
    },
    activations: {
        "a": (["add2", "add3", "prelu4"], ["b"], True),
        # A monotone function of integers: c takes their thresholds (bits_between_layers).
        "b": ([], [], True),
        "c": (["add13", "clip14", "leakyrelu15"], [], False),
    },
    norms: {"a": (["relu", "n", "sum"], [], False)},
    duplication: {
        "a": (["b", "add5", "add2", "concat6", "add7", "prelu8"], ["c"], False),
        "b": (["add5", "a", "add2", "concat6", "add7", "prelu8"], ["c"], False),
        "c": (["add11"], [], False),
    },
    meetings: {
        "a": (["meeting"], ["c"], True),
        "b": (["relu4"], [], False),
        "c": ([], [], False),
        "d": (["shared"], ["e"], False),
        "e": (["add14"], [], False),
    },
}


def compiled(model: onnx.ModelProto, tmp_path: Path, algorithm: str) -> bnn_compiler.CompiledNetwork:
    path = tmp_path / "fused.onnx"
    onnx.save(model, path)
    return bnn_compiler.compile_model(path, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", ["popcount", "bitsliced"])
@pytest.mark.parametrize("build", GRAPHS, ids=lambda build: build.__name__)
def test_fused_networks(
    build: Callable[[Graph], onnx.ModelProto], algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = compiled(build(Graph()), tmp_path, algorithm)  # verified layer by layer and end to end
    assert expose_activation_bits.FUNCTION in network.model.functions, "verification sees the bits of main"
    layers = {entry["name"]: entry for entry in network.report["layers"]}
    if algorithm == "popcount":
        found = {name: (entry["fused"], entry["packs_for"], entry["gives_bits"]) for name, entry in layers.items()}
        assert found == GRAPHS[build]
    monkeypatch.setattr(lower_binary_ops, "plan_output_fusion", lambda *_arguments: [])
    plain = compiled(build(Graph()), tmp_path, algorithm)
    assert not any(entry["fused"] for entry in plain.report["layers"])
    x = np.random.default_rng(5).standard_normal(SHAPE).astype(np.float32)
    for name, array in plain.run({"x": x}).items():
        np.testing.assert_array_equal(network.run({"x": x})[name], array)
