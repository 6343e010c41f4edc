"""Static shapes of all tensors, by ONNX's own shape inference in strict mode with data propagation."""

from __future__ import annotations

import re

import onnx

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import describe_node, static_shape, tensor_types

_NOISE = re.compile(r"\[(Shape|Type)InferenceError\] |Inference error\(s\): ")
_NODE = re.compile(r"\(op_type: ?(\w+)(?:, node name: ([^)]*))?\)")


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types of all tensors that can be inferred from inputs and constants.

    What the file says of intermediate and output shapes is dropped first: exporters leave symbols there that the input
    shapes have made numbers of. The declared element types and static dimensions of outputs stay, and must agree.

    Raises:
        ModelError: operators disagree about shapes or types (a convolution's channels, for example).
    """
    model.graph.ClearField("value_info")
    for output in model.graph.output:
        tensor_type = output.type.tensor_type
        if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor_type.shape.dim):
            tensor_type.ClearField("shape")
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:  # the C++ side raises InferenceError, RuntimeError, ValueError, ...
        raise ModelError(f"shapes or types contradict each other: {inference_cause(error)}") from error


def require_static_shapes(model: onnx.ModelProto) -> None:
    """Every result of a node has a type, and a shape of numbers.

    Raises:
        UnsupportedOperatorError: a result is no dense tensor, has no elements, or its shape depends on the data.
    """
    types = tensor_types(model.graph)
    for node in model.graph.node:
        for tensor in node.output:
            if not tensor:
                continue
            found = types.get(tensor)
            if found is None or not found.HasField("tensor_type") or static_shape(found) is None:
                raise UnsupportedOperatorError(
                    f"{describe_node(node)}: the shape of its output {tensor!r} is not known before run time, "
                    "which cannot be compiled"
                )
            if 0 in (static_shape(found) or ()):
                raise UnsupportedOperatorError(f"{describe_node(node)}: its output {tensor!r} has no elements")


def inference_cause(error: Exception) -> str:
    """The telling part of ONNX's multi-line message, as one line that names the node as all messages do."""
    text = _NOISE.sub("", " ".join(str(error).split()))
    return _NODE.sub(lambda match: f"{match[1]} node {match[2]!r}" if match[2] else match[1], text).strip()[:400]
