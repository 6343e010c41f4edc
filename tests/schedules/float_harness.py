"""Runs small float ONNX models through the float pipeline and through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import tvm
from onnx import NodeProto, TensorProto, helper, numpy_helper, shape_inference
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from bnn_compiler.passes import float_pipeline
from tests.schedules.kernel_harness import cpu_target

Array = npt.NDArray[np.float32]

#: One CPU per vector width: 16, 8 and 4 floats.
FLOAT_CPUS = ["skylake-avx512", "haswell", "x86-64"]
#: Of other architectures, to compile for only.
FOREIGN_TARGETS = [
    "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72",
    "llvm -mtriple=armv7-linux-gnueabihf -mcpu=cortex-a9",
]
EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Layer:
    """Nodes from input ``x`` to output ``y`` with constant ``weights``."""

    nodes: tuple[NodeProto, ...]
    x: Array
    weights: Mapping[str, npt.NDArray[Any]]

    def model(self, x: Array | None = None) -> onnx.ModelProto:
        shape = (self.x if x is None else x).shape
        graph = helper.make_graph(
            self.nodes,
            "layer",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return shape_inference.infer_shapes(model)

    def reference(self) -> Array:
        """ONNX Runtime's result."""
        session = onnxruntime.InferenceSession(self.model().SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run(None, {"x": self.x})[0])

    def magnitude(self) -> Array:
        """The same layer over absolute values: bounds every partial sum, so rounding errors scale with it."""
        weights = {name: np.abs(value) for name, value in self.weights.items()}
        return Layer(self.nodes, np.abs(self.x), weights).reference()

    def lowered(self, target: tvm.target.Target) -> tvm.IRModule:
        """The module after the float pipeline."""
        with target:
            return tvm.transform.Sequential(float_pipeline(target))(from_onnx(self.model()))

    def run(self, cpu: str) -> Array:
        """Our result; skips the test where this machine cannot run code for ``cpu``."""
        target = cpu_target(cpu)
        if not target.is_host:
            pytest.skip(f"this machine cannot run code for {cpu}")
        executable = relax.build(self.lowered(target.tvm_target), target.tvm_target)
        machine = relax.VirtualMachine(executable, tvm.cpu())
        return np.asarray(machine["main"](tvm.runtime.tensor(self.x)).numpy())


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    """An ONNX node; ``inputs`` separated by blanks."""
    return helper.make_node(op, inputs.split(), [output], **attributes)


def normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    """Seeded standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_sums_close(layer: Layer, cpu: str, terms: int) -> None:
    """Compare sums of ``terms`` products: two orders of summation differ by at most terms * eps * sum of magnitudes.

    In practice errors grow with the square root of ``terms``; the bound is still far below one missing term.
    """
    bound = (terms + 2) * EPSILON * layer.magnitude()
    error = np.abs(layer.run(cpu) - layer.reference())
    assert (error <= bound).all(), f"error {error.max()} where {bound.flat[error.argmax()]} is allowed"
