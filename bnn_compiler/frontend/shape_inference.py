"""Static shapes of all tensors, by ONNX's own shape inference in strict mode.

Its data propagation, which follows the *values* of shape computations, stays off: it allocates an element per dimension
of whatever one-dimensional tensor is added to another, so that a file of 100 bytes takes all memory. Folding constants
between two passes of inference does the same work, exactly (:mod:`bnn_compiler.frontend.normalisation`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import onnx

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import ONNX_DOMAINS, TENSOR_DTYPES, describe_node, dtype_name, names_read, static_shape, tensor_types
from .resize_shapes import resizes, stand_in_resizes

_NOISE = re.compile(r"\[(Shape|Type)InferenceError\] |Inference error\(s\): ")
_NODE = re.compile(r"\(op_type: ?(\w+)(?:, node name: ([^)]*))?\)")

SMALL_CONSTANT = 256
"""Elements; a constant whose values can decide about a shape has one per dimension, or per output of a ``Split``."""


def infer_shapes(model: onnx.ModelProto) -> None:
    """Give types to all tensors for which they follow from inputs and constants, in place.

    What the file says of intermediate and output shapes is dropped first: exporters leave symbols there that the input
    shapes have made numbers of. The declared element types and static dimensions of outputs stay, and must agree.

    Raises:
        ModelError: operators disagree about shapes or types (a convolution's channels, for example).
    """
    graph = model.graph
    graph.ClearField("value_info")
    passed_on = _types_given(graph)
    for output in graph.output:
        tensor_type = output.type.tensor_type
        if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor_type.shape.dim):
            tensor_type.ClearField("shape")
        source = passed_on.get(output.name)
        if source is not None and not tensor_type.HasField("shape") and static_shape(source) is not None:
            tensor_type.shape.CopyFrom(source.tensor_type.shape)
    inferred = _inferred(_skeleton(model))
    graph.value_info.extend(inferred.graph.value_info)
    _check_passed_on(graph, passed_on)
    for output, typed in zip(graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(typed)


class TypesBefore:
    """The types of tensors as far as they follow from the nodes before one, asked for nodes in order.

    Each node is inferred once, so that asking for all of them takes as long as asking for the last.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Nothing is inferred yet. Nodes that were not asked about may change, and others be inserted."""
        self._model = model
        self._known = {info.name: info.type for info in model.graph.input}
        self._constants: dict[str, onnx.TensorProto] = {}
        self._values: dict[str, onnx.NodeProto] = {}
        self._inferred = 0

    def of(self, index: int, name: str) -> onnx.TypeProto | None:
        """The type of a tensor that a node before ``index`` gives.

        Raises:
            ModelError: those nodes disagree about shapes or types.
        """
        graph = self._model.graph
        for tensor in graph.initializer[len(self._constants) :]:
            self._constants[tensor.name] = tensor
        nodes = graph.node[self._inferred : index]
        self._inferred = index
        if nodes:
            inferred = _inferred(self._part(nodes))
            self._known.update((info.name, info.type) for info in inferred.graph.value_info)
            self._values.update((node.output[0], node) for node in nodes if node.op_type == "Constant")
        if name in self._constants:
            return _type_of(self._constants[name])
        return self._known.get(name)

    def _part(self, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        """A model of ``nodes`` alone, which reads what is known in front of them."""
        read = sorted({name for node in nodes for name in names_read(node)})
        values = [self._values[name] for name in read if name in self._values]
        graph = onnx.GraphProto(name="part", node=[*values, *nodes])
        for name in read:
            if name in self._constants:
                _add_constant(graph, self._constants[name])
            elif name in self._known and name not in self._values:
                graph.input.append(onnx.ValueInfoProto(name=name, type=self._known[name]))
        return onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph)


def _inferred(skeleton: onnx.ModelProto) -> onnx.ModelProto:
    """Inference of a model that may be changed, until resized axes have the lengths that ONNX Runtime gives them."""
    opset = next((entry.version for entry in skeleton.opset_import if entry.domain in ONNX_DOMAINS), 0)
    for _ in range(resizes(skeleton.graph) + 1):
        failure = None
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True)
        except Exception as error:  # the C++ side raises InferenceError, RuntimeError, ValueError, ...
            failure = ModelError(f"shapes or types contradict each other: {inference_cause(error)}")
            failure.__cause__ = error
            if not resizes(skeleton.graph):
                break
            # What does not fit may be a length, of an output for one.
            inferred = onnx.shape_inference.infer_shapes(_without_output_shapes(skeleton))
        if not stand_in_resizes(skeleton, inferred, opset):
            break
    if failure is not None:
        raise failure
    return inferred


def _without_output_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for output in copy.graph.output:
        output.type.tensor_type.ClearField("shape")
    return copy


def _types_given(graph: onnx.GraphProto) -> dict[str, onnx.TypeProto]:
    """The types of inputs and constants: of an output among them, inference finds no shape."""
    known = {info.name: info.type for info in graph.input}
    return known | {tensor.name: _type_of(tensor) for tensor in graph.initializer}


def _type_of(tensor: onnx.TensorProto) -> onnx.TypeProto:
    return onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)


def _check_passed_on(graph: onnx.GraphProto, known: Mapping[str, onnx.TypeProto]) -> None:
    """An output that is an input or a constant is no node's, so that inference does not compare its declared type."""
    for output in graph.output:
        source = known.get(output.name)
        if source is None:
            continue
        declared, actual = static_shape(output.type), static_shape(source)
        same_type = output.type.tensor_type.elem_type == source.tensor_type.elem_type
        if not same_type or (declared is not None and actual is not None and declared != actual):
            raise ModelError(
                f"the output {output.name!r} is declared as {_describe_type(output.type)}, but it is an input or a "
                f"constant of {_describe_type(source)}"
            )
        output.type.CopyFrom(source)


def _describe_type(kind: onnx.TypeProto) -> str:
    return f"{dtype_name(kind.tensor_type.elem_type)} {list(static_shape(kind) or ())}"


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights as inputs: inference asks for the values of small constants only (shapes, axes).

    It runs on a serialised copy, several times; without the weights that takes milliseconds.
    """
    graph = onnx.GraphProto(
        name=model.graph.name, node=model.graph.node, input=model.graph.input, output=model.graph.output
    )
    for tensor in model.graph.initializer:
        _add_constant(graph, tensor)
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)


def _add_constant(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    """A constant with its value where that can decide about a shape, else as an input."""
    if math.prod(tensor.dims) <= SMALL_CONSTANT:
        graph.initializer.append(tensor)
    else:
        graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def require_compiled_types(model: onnx.ModelProto) -> None:
    """Every result of a node is a dense tensor of a compiled element type, with a shape of numbers.

    Raises:
        UnsupportedOperatorError: a result is no dense tensor or of another element type, has no elements, or its shape
            depends on the data.
    """
    types = tensor_types(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_type not in TENSOR_DTYPES:
            raise UnsupportedOperatorError(
                f"the constant {tensor.name!r} is used as {dtype_name(tensor.data_type)}, which is not supported"
            )
    for node in model.graph.node:
        for name in node.output:
            if not name:
                continue
            found = types.get(name)
            if found is None or not found.HasField("tensor_type") or static_shape(found) is None:
                raise UnsupportedOperatorError(f"{describe_node(node)}: {_missing_shape(node, name, types)}")
            if found.tensor_type.elem_type not in TENSOR_DTYPES:
                element_type = dtype_name(found.tensor_type.elem_type)
                raise UnsupportedOperatorError(
                    f"{describe_node(node)}: its output {name!r} is {element_type}, which is not supported"
                )
            if 0 in (static_shape(found) or ()):
                raise UnsupportedOperatorError(f"{describe_node(node)}: its output {name!r} has no elements")


def _missing_shape(node: onnx.NodeProto, name: str, types: Mapping[str, onnx.TypeProto]) -> str:
    """Why an output has no shape where the inputs have: it depends on data, or ONNX knows no rule for the operator."""
    computed = [types[given].tensor_type.elem_type for given in node.input[1:] if given in types]
    if node.op_type in _DATA_DEPENDENT or any(kind in _INTEGERS for kind in computed):
        return f"the shape of its output {name!r} depends on data, which is not supported: shapes must be constant"
    return f"ONNX's shape inference gives its output {name!r} no shape: this form of the operator is not supported"


_DATA_DEPENDENT = frozenset(
    {"Compress", "ConstantOfShape", "NonMaxSuppression", "NonZero", "Range", "StringSplit", "Unique"}
)
"""Operators whose results' shapes depend on the values of their first inputs."""

_INTEGERS = frozenset({onnx.TensorProto.INT32, onnx.TensorProto.INT64})


def inference_cause(error: Exception) -> str:
    """The telling part of ONNX's multi-line message, as one line that names the node as all messages do."""
    text = _NOISE.sub("", " ".join(str(error).split()))
    return _NODE.sub(lambda match: f"{match[1]} node {match[2]!r}" if match[2] else match[1], text).strip()[:400]
