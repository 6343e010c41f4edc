"""One ONNX node, run by ONNX Runtime on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import NodeProto, helper

Array = npt.NDArray[Any]

NEWEST_IR = 10


class RejectedNodeError(Exception):
    """ONNX Runtime does not run the node."""


def make_model(graph: onnx.GraphProto, opset: int, domains: Sequence[str] = ()) -> onnx.ModelProto:
    """A model of ``graph`` in the standard operator set ``opset``, and version 1 of other ``domains``."""
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=NEWEST_IR)


def make_session(model: bytes, *, optimise: bool, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on the CPU; without ``optimise`` no graph optimisation at all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OneNode:
    """A node as a network: its operands are inputs of any shape, or constants where ``constants`` has them."""

    def __init__(self, node: NodeProto, opset: int, operands: Mapping[str, Array], constants: Mapping[str, Array]):
        """Make the session; ``operands`` gives the element types of all tensors that the node reads.

        Raises:
            RejectedNodeError: ONNX Runtime does not take the node.
        """
        names = [name for name in reads(node) if name not in constants]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(operands[name].dtype), None)
            for name in names
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
        tensors = [onnx.numpy_helper.from_array(np.ascontiguousarray(constants[name]), name) for name in constants]
        graph = helper.make_graph([node], "one_node", inputs, outputs, tensors)
        try:
            self._session = make_session(make_model(graph, opset).SerializeToString(), optimise=False)
        except Exception as error:
            raise RejectedNodeError(str(error)) from error
        self._inputs = names

    def __call__(self, operands: Mapping[str, Array]) -> list[Array]:
        """The outputs that have names, in order.

        Raises:
            RejectedNodeError: the node fails on these arrays.
        """
        try:
            return [np.asarray(y) for y in self._session.run(None, {name: operands[name] for name in self._inputs})]
        except Exception as error:
            raise RejectedNodeError(str(error)) from error


def reads(node: NodeProto) -> list[str]:
    """Names of the tensors that a node needs, those that its subgraphs capture included, each once."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = {name for body in attribute.g.node for name in body.output}
            inner |= {tensor.name for tensor in attribute.g.initializer}
            captured = [name for body in attribute.g.node for name in reads(body)]
            captured += [output.name for output in attribute.g.output]
            names += [name for name in captured if name not in inner]
    return list(dict.fromkeys(names))


@cache
def float_types() -> tuple[np.dtype[Any], ...]:
    """The floating-point types of NumPy that ONNX has."""
    return np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16)
