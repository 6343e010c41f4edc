"""Networks of blocks whose activations read their operand twice, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from tests.relax_run import Array

_SIZE = 16


class _Graph:
    """Nodes in order, each with one result; numbers and arrays among the operands become initializers."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(0)

    def __call__(self, operator: str, *operands: object, **attributes: Any) -> str:
        names = [operand if isinstance(operand, str) else self._constant(operand) for operand in operands]
        result = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, names, [result], **attributes))
        return result

    def _constant(self, value: object) -> str:
        name = f"c{len(self._constants)}"
        array = value if isinstance(value, np.ndarray) else np.float32(value)  # type: ignore[arg-type]
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, *shape: int) -> Array:
        """Random ones that keep the size of what they multiply."""
        fan = int(np.prod(shape[1:])) if len(shape) == 4 else shape[0]
        return np.asarray(self._random.standard_normal(shape) / np.sqrt(fan), np.float32)

    def model(self, shape: tuple[int, ...], *outputs: str) -> onnx.ModelProto:
        results = [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None) for output in outputs]
        x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "blocks", [x], results, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)


def _silu(g: _Graph, x: str) -> str:
    return g("Mul", x, g("Sigmoid", x))


def _gelu(g: _Graph, x: str) -> str:
    return g("Mul", g("Mul", 0.5, x), g("Add", 1, g("Erf", g("Div", x, 1.4142135))))


def _hard_swish(g: _Graph, x: str) -> str:
    return g("Div", g("Mul", x, g("Clip", g("Add", x, 3), 0, 6)), 6)


def _mish(g: _Graph, x: str) -> str:
    return g("Mul", x, g("Tanh", g("Softplus", x)))


ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "silu": _silu,
    "gelu": _gelu,
    "hard swish": _hard_swish,
    "mish": _mish,
}


def _verify(model: onnx.ModelProto) -> None:
    verification = bnn_compiler.compile_model(model).report["verification"]
    assert verification is not None
    assert verification["passed"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_chains_of_thirty(name: str) -> None:
    g, x = _Graph(), "x"
    for _ in range(30):
        x = ACTIVATIONS[name](g, x)
    _verify(g.model((1, 3, 5, 7), x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_residual_network(name: str) -> None:
    """Convolutions, depthwise ones among them, squeeze and excitation, and several activations in a row."""
    g, activation = _Graph(), ACTIVATIONS[name]
    x = activation(g, g("Conv", "x", g.weights(_SIZE, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    for _ in range(2):
        y = activation(g, g("Conv", x, g.weights(_SIZE, _SIZE, 1, 1)))
        y = activation(g, g("Conv", y, g.weights(_SIZE, 1, 3, 3), pads=[1, 1, 1, 1], group=_SIZE))
        gate = activation(g, g("Conv", g("ReduceMean", y, axes=[2, 3]), g.weights(4, _SIZE, 1, 1)))
        y = g("Mul", y, g("Sigmoid", g("Conv", gate, g.weights(_SIZE, 4, 1, 1))))
        x = activation(g, activation(g, g("Add", x, y)))
    _verify(g.model((1, 3, 12, 12), g("ReduceMean", x, axes=[2, 3], keepdims=0)))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_perceptron_blocks(name: str) -> None:
    """Products with normalisation before and activations behind them; the sum of every block is an output, too."""
    g, activation = _Graph(), ACTIVATIONS[name]
    x, outputs = "x", []
    for _ in range(3):
        centred = g("Sub", x, g("ReduceMean", x, axes=[-1]))
        variance = g("ReduceMean", g("Mul", centred, centred), axes=[-1])
        y = g("MatMul", g("Div", centred, g("Sqrt", g("Add", variance, 1e-5))), g.weights(_SIZE, 4 * _SIZE))
        y = activation(g, activation(g, g("Add", y, g.weights(1, 4 * _SIZE))))
        x = g("Add", x, g("MatMul", y, g.weights(4 * _SIZE, _SIZE)))
        outputs.append(x)
    _verify(g.model((1, 9, _SIZE), *outputs))
