"""Models of a few nodes from protos, and the front end's result beside ONNX Runtime's on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bnn_compiler.frontend import ImportedModel, import_onnx

from .onnx_text import Array, operators, run_onnx, run_relax


def small_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    outputs: Mapping[str, int],
    constants: Mapping[str, Any],
    *,
    opset: int,
) -> onnx.ModelProto:
    """A model whose inputs have the shapes and types of ``inputs``; ``outputs`` maps names to element types.

    Constants are arrays, NumPy scalars or protos.
    """
    tensors = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    borders = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    graph = helper.make_graph(list(nodes), "g", borders, results, tensors)
    domains = {"": opset} | ({"com.microsoft": 1} if any(node.domain for node in nodes) else {})
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=13 if opset > 21 else 10)


def check_import(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> ImportedModel:
    """Import; the normalised model in ONNX Runtime and the module in TVM give exactly what the file gives."""
    imported = import_onnx(model)
    assert {node.domain for node in imported.onnx_model.graph.node} <= {""}
    expected = run_onnx(model, feeds)
    normalised = run_onnx(imported.onnx_model, feeds)
    compiled = run_relax(imported.module, [feeds[spec.name] for spec in imported.inputs])
    for want, left, right in zip(expected, normalised, compiled, strict=True):
        for found in (left, right):
            assert found.dtype == want.dtype
            np.testing.assert_array_equal(found, want)
    return imported


class ModelBuilder:
    """Nodes, inputs, constants and outputs of one model: compiling takes most of a test's time."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[NodeProto] = []
        self.feeds: dict[str, Array] = {}
        self.constants: dict[str, Any] = {}
        self.outputs: dict[str, int] = {}

    def codes(self, dtype: type[np.integer[Any]], shape: tuple[int, ...], *, few: bool = False) -> Array:
        """Random integers over the type's range, or of seven bits."""
        limits = np.iinfo(dtype)
        low, high = (-64, 63) if few else (limits.min, limits.max)
        return self.rng.integers(low, high, shape, dtype, endpoint=True)

    def constant(self, value: Any, dtype: Any) -> str:
        """The name of a new constant."""
        name = f"k{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def feed(self, value: Array) -> str:
        """The name of a new input that is fed ``value``."""
        name = f"x{len(self.feeds)}"
        self.feeds[name] = value
        return name

    def node(self, operator: str, inputs: list[str], kind: int, **attributes: Any) -> None:
        """A node with one output of the graph, of this element type."""
        output = f"y{len(self.outputs)}"
        self.outputs[output] = kind
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))

    def check(self, opset: int = 13) -> list[str]:
        """Import and compare, as :func:`check_import`; the operators that are left."""
        model = small_model(self.nodes, self.feeds, self.outputs, self.constants, opset=opset)
        return operators(check_import(model, self.feeds).onnx_model)
