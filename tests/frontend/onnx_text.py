"""Helpers of the front end's tests: models as ONNX text, and two ways to run them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import tvm
from tvm import relax

Array = npt.NDArray[Any]


def parse(text: str, *, opset: int = 17) -> onnx.ModelProto:
    """A model from the text of its graph."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def random_feeds(inputs: Sequence[tuple[str, tuple[int, ...]]], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs}


def run_onnx(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, dict(feeds))]


def run_relax(module: tvm.IRModule, feeds: Sequence[Array]) -> list[Array]:
    """Run ``main`` with TVM's default lowering."""
    machine = relax.VirtualMachine(relax.build(module, "llvm"), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(np.asarray(feed, order="C")) for feed in feeds))
    results = [result] if hasattr(result, "numpy") else list(result)
    return [item.numpy() for item in results]
