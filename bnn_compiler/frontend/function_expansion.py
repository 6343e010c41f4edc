"""Operators that ONNX defines as functions, replaced by their bodies.

Beside the text, ONNX gives for many operators a function of simpler operators that computes the same. The operators
named here are compiled by that body, so that everything behind sees operators that it knows. ONNX Runtime does the same
with those for which it has no kernel.

Some bodies depend on the types and the rank of the operands (what ``Attention`` does, on the sizes of its heads), so a
node is expanded once these are known. Sizes that a body computes from shapes, and branches on them, become constants
as all others do (:mod:`bnn_compiler.frontend.constant_folding`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, NodeProto, TypeProto

from bnn_compiler.errors import UnsupportedOperatorError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import describe_node, subgraphs

EXPANDED_OPERATORS = (
    "Attention",
    "CastLike",
    "CausalConvWithState",
    "CenterCropPad",
    "GroupNormalization",
    "LinearAttention",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RotaryEmbedding",
    "SoftmaxCrossEntropyLoss",
    "SwiGLU",
    "Swish",
)
"""Of the standard domain."""


def expand_function(node: NodeProto, emit: NodeEmitter) -> str | None:
    """Emit the body of a node's operator; its own tensors are named after the node's first result.

    Raises:
        UnsupportedOperatorError: the operator set has no body for this form of the operator.
    """
    call = _with_defaults(node, emit.opset)
    types = []
    for name in node.input:
        shape = emit.shape(name) if name else ()
        if shape is None:
            return f"the shape of its input {name!r} is not known before run time"
        types.append(onnx.helper.make_tensor_type_proto(emit.element_type_of(name), shape) if name else TypeProto())
    function = _function(call, emit.opset, types)
    if function is None:
        raise UnsupportedOperatorError(
            f"{describe_node(node)}: the operator set {emit.opset} has no definition for this form of it"
        )
    outputs = [name for name in node.output if name]
    names = {name for name in (*node.input, *node.output) if name}
    for index, inner in enumerate(_inlined(call, function, emit.opset)):
        _rename(inner, names, f"{outputs[0]}/")
        inner.name = node.name if outputs[0] in inner.output else f"{node.name or outputs[0]}/{inner.op_type}_{index}"
        emit.nodes.append(inner)
    return None


def _rename(node: NodeProto, border: set[str], prefix: str) -> None:
    """Put a prefix before all names that are not of the border, those in subgraphs too."""
    for names in (node.input, node.output):
        names[:] = [name if not name or name in border else f"{prefix}{name}" for name in names]
    for graph in subgraphs(node):
        for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            entry.name = entry.name if entry.name in border else f"{prefix}{entry.name}"
        for inner in graph.node:
            _rename(inner, border, prefix)


def _function(call: NodeProto, opset: int, types: list[TypeProto]) -> FunctionProto | None:
    """The body that holds for the operator set, as a function of a domain of its own."""
    schema: Any = onnx.defs.get_schema(call.op_type, opset, "")  # its type stubs lack the functions
    dependent = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
    plain = [v for v in schema.function_opset_versions if v <= opset]
    if dependent and dependent[-1] >= max(plain, default=0):
        data = schema.get_context_dependent_function_with_opset_version(
            max(dependent), call.SerializeToString(), [kind.SerializeToString() for kind in types]
        )
    elif plain:
        data = schema.get_function_with_opset_version(max(plain))
    else:
        data = b""
    if not data:
        return None
    function = FunctionProto()
    function.ParseFromString(data)
    function.domain, function.overload = _DOMAIN, ""
    del function.opset_import[:]
    function.opset_import.append(onnx.helper.make_opsetid("", opset))
    return function


def _inlined(call: NodeProto, function: FunctionProto, opset: int) -> list[NodeProto]:
    """The function's nodes with the call's operands, results and attributes."""
    graph = GraphProto(name="call", node=[call])
    graph.node[0].domain = _DOMAIN
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(call.input) if name)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in call.output if name)
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(_DOMAIN, 1)]
    model = onnx.ModelProto(ir_version=onnx.IR_VERSION, opset_import=opsets, graph=graph, functions=[function])
    return list(onnx.inliner.inline_local_functions(model).graph.node)


_DOMAIN = "bnnc.functions"


def _with_defaults(node: NodeProto, opset: int) -> NodeProto:
    """The node with its operator's default attributes written out: bodies refer to them by name."""
    call = NodeProto()
    call.CopyFrom(node)
    call.domain = ""
    present = {attribute.name for attribute in node.attribute}
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if name not in present and attribute.default_value.name:
            call.attribute.append(attribute.default_value)
    return call


FUNCTION_LOWERINGS: Mapping[str, Lowering] = dict.fromkeys(EXPANDED_OPERATORS, expand_function)
"""By operator."""
