"""Nodes of other domains, replaced by standard ones (:mod:`bnn_compiler.frontend.custom_operators` says how)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .custom_operators import CUSTOM_LOWERINGS
from .node_emitter import NodeEmitter
from .onnx_graph import ONNX_DOMAINS, all_nodes, describe_node, subgraphs, tensor_types

OLDEST_OPSET = 9
"""``Where`` and ``Sign`` came with it."""


def has_lowering(node: NodeProto) -> bool:
    """Whether the node is of another domain, and is replaced by standard nodes."""
    return node.op_type in CUSTOM_LOWERINGS.get(node.domain, ())


def import_custom_domains(model: onnx.ModelProto) -> None:
    """Let the model import the domains of all its nodes, in place. FINN's exporter forgets that; ONNX insists."""
    known = {entry.domain for entry in model.opset_import}
    for domain in sorted({node.domain for node in all_nodes(model.graph) if has_lowering(node)} - known):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))


def lower_custom_nodes(model: onnx.ModelProto, opset: int) -> int:
    """Replace the custom nodes for which all is known that it takes, in place; the number replaced.

    Raises:
        ModelError: a node contradicts its operator's definition.
    """
    replaced = _lower_graph(model.graph, opset, {})
    if replaced and not any(has_lowering(node) for node in all_nodes(model.graph)):
        standard = [entry for entry in model.opset_import if entry.domain in ONNX_DOMAINS]
        del model.opset_import[:]
        model.opset_import.extend(standard)
    return replaced


def require_standard_nodes(model: onnx.ModelProto, opset: int) -> None:
    """No custom node is left.

    Raises:
        UnsupportedOperatorError: one is; the message says what was missing.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if has_lowering(node):
            lowering = CUSTOM_LOWERINGS[node.domain][node.op_type]
            reason = lowering(node, NodeEmitter(node, opset, constants, tensor_types(model.graph)))
            raise UnsupportedOperatorError(f"{describe_node(node)} cannot be compiled: {reason}")


def _lower_graph(graph: GraphProto, opset: int, outer: MutableMapping[str, TensorProto]) -> int:
    """The same for one graph that sees the constants of an outer one."""
    constants = ChainMap({tensor.name: tensor for tensor in graph.initializer}, outer)
    types = tensor_types(graph)
    nodes: list[NodeProto] = []
    replaced = 0
    for node in graph.node:
        for inner in subgraphs(node):
            replaced += _lower_graph(inner, opset, constants)
        lowered = _lower_node(node, opset, NodeEmitter(node, opset, constants, types)) if has_lowering(node) else None
        if lowered is None:
            nodes.append(node)
            continue
        nodes.extend(lowered.nodes)
        graph.initializer.extend(lowered.initializers)
        replaced += 1
    if replaced:
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return replaced


def _lower_node(node: NodeProto, opset: int, emit: NodeEmitter) -> NodeEmitter | None:
    if opset < OLDEST_OPSET:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} needs the ONNX operator set {OLDEST_OPSET} or newer, the model uses {opset}"
        )
    if len(node.output) != 1 or not node.output[0] or not all(node.input):
        raise ModelError(f"{describe_node(node)} lacks an input, or has not exactly one output")
    return emit if CUSTOM_LOWERINGS[node.domain][node.op_type](node, emit) is None else None
