"""Every family of kernels on maps of one to five rows and columns, for every width of vectors.

A map may be smaller than a vector, than a window and than a tile; rows may hold one element.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper
from tvm import relax

from bnn_compiler.build import build_passes
from bnn_compiler.code_generation import LIBRARY_PIPELINE, code_generation
from bnn_compiler.driver import compile_model, lower_model
from bnn_compiler.frontend import import_onnx
from bnn_compiler.options import CompileOptions
from bnn_compiler.target import parse_target

Array = npt.NDArray[Any]

RUNNING = ["x86-64", "haswell", "znver4"]
FOREIGN = ["llvm -mcpu=cortex-a72", "llvm -mcpu=cortex-a9"]
CHANNELS = 5

WINDOWS: list[dict[str, Any]] = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [1, 3], "strides": [2, 3], "pads": [0, 2, 0, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 1], "ceil_mode": 1, "pads": [2, 0, 1, 1]},
    {"kernel_shape": [5, 5], "strides": [1, 2], "auto_pad": "SAME_LOWER"},
]


class _Graph:
    """Nodes and weights of one model in which every result is an output."""

    def __init__(self, height: int, width: int) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, Array] = {}
        self.shape = (2, CHANNELS, height, width)
        self._random = np.random.default_rng(height * 10 + width)

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        result = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [result], name=f"{result}_node", **attributes))
        return result

    def weight(self, *shape: int, binary: bool = False) -> str:
        name = f"weight_{len(self.weights)}"
        values = self._random.standard_normal(shape)
        self.weights[name] = np.asarray(np.where(values < 0, -1, 1) if binary else values, np.float32)
        return name

    def constant(self, values: npt.ArrayLike) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights[name] = np.asarray(values)
        return name

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for n in self.nodes for name in n.output],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def small_network(height: int, width: int) -> onnx.ModelProto:
    """Float and binary layers side by side, each beside the pools that read it."""
    g = _Graph(height, width)
    for window in WINDOWS:
        if window.get("auto_pad") or all(
            size + window.get("pads", [0] * 4)[axis] + window.get("pads", [0] * 4)[axis + 2] >= taps
            for axis, (size, taps) in enumerate(zip((height, width), window["kernel_shape"], strict=True))
        ):
            g.add("MaxPool", "x", **window)
            g.add("AveragePool", "x", count_include_pad=len(g.nodes) % 2, **window)
    same = {"pads": [1, 1, 1, 1]}
    signs = g.add("Sign", "x")
    conv = g.add("Conv", "x", g.weight(9, CHANNELS, 3, 3), **same)
    g.add("MaxPool", g.add("Relu", conv), kernel_shape=[3, 3], strides=[2, 2], **same)
    g.add("Conv", "x", g.weight(CHANNELS, 1, 3, 3), group=CHANNELS, strides=[2, 2], **same)
    g.add("Conv", "x", g.weight(33, CHANNELS, 1, 1))
    wide = g.add("Conv", signs, g.weight(33, CHANNELS, 3, 3, binary=True), **same)
    g.add("MaxPool", wide, kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1])
    odd = g.add("Add", wide, g.constant(np.float32(0.5)))
    g.add("Conv", g.add("Sign", odd), g.weight(3, 33, 3, 3, binary=True), strides=[2, 2], **same)
    g.add("Conv", signs, g.weight(CHANNELS, 1, 1, 1, binary=True), group=CHANNELS)
    flat = g.add("Flatten", "x")
    features = CHANNELS * height * width
    g.add("MatMul", flat, g.weight(features, 3))
    g.add("MatMul", g.add("Flatten", signs), g.weight(features, 19, binary=True))
    g.add("Softmax", "x", axis=-1)
    g.add("ReduceMean", "x", g.constant(np.asarray([2, 3])))
    g.add("ReduceMax", "x", g.constant(np.asarray([3])), keepdims=0)
    g.add("Concat", "x", g.add("Transpose", g.add("Transpose", "x", perm=[0, 2, 3, 1]), perm=[0, 3, 1, 2]), axis=1)
    return g.model()


def check_results(model: onnx.ModelProto, target: str, algorithm: str) -> None:
    compiled = compile_model(model, target=target, algorithm=algorithm)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    actual = compiled.run(x)
    for name, expected in zip(actual, session.run(list(actual), {"x": x}), strict=True):
        # Sums of at most 125 products of values of about 1, in two orders; integers are equal within that, too.
        np.testing.assert_allclose(actual[name], expected, rtol=1e-5, atol=2e-5, err_msg=name)


def generate_code(model: onnx.ModelProto, text: str) -> None:
    """All code of the library, which is not linked."""
    target = parse_target(text)
    lowered = lower_model(import_onnx(model), target, CompileOptions(target=text))
    with target.tvm_target, code_generation():
        module = build_passes()(lowered.module)
        relax.build(module, target=target.tvm_target, relax_pipeline=None, tir_pipeline=LIBRARY_PIPELINE)


def check(size: tuple[int, int], text: str, algorithm: str = "auto") -> None:
    model = small_network(*size)
    if parse_target(text).is_host:
        check_results(model, text, algorithm)
    else:
        generate_code(model, text)


@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_maps_of_less_than_a_vector(size: tuple[int, int]) -> None:
    check(size, "llvm -mcpu=x86-64")


@pytest.mark.slow
@pytest.mark.parametrize("text", [*(f"llvm -mcpu={cpu}" for cpu in RUNNING), *FOREIGN])
@pytest.mark.parametrize("size", list(itertools.product(range(1, 6), repeat=2)))
def test_every_small_map(size: tuple[int, int], text: str) -> None:
    check(size, text)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["popcount", "bitsliced", "float"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3)])
def test_algorithms(size: tuple[int, int], algorithm: str) -> None:
    check(size, "native", algorithm)
