"""Nodes that are replaced by simpler standard ones: operators of other domains, and standard ones without a converter.

:mod:`bnn_compiler.frontend.lowerings` lists them; the file of each says how.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import MutableMapping

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from bnn_compiler.errors import UnsupportedOperatorError

from .lowerings import LOWERED_FORMS, LOWERINGS
from .node_emitter import NodeEmitter
from .onnx_graph import ONNX_DOMAINS, all_nodes, describe_node, subgraphs, tensor_types

OLDEST_OPSET = 9
"""For operators of other domains: ``Where`` and ``Sign`` came with it."""


def has_lowering(node: NodeProto) -> bool:
    """Whether the node is replaced by standard nodes."""
    if node.op_type not in LOWERINGS.get(node.domain, ()):
        return False
    form = None if node.domain else LOWERED_FORMS.get(node.op_type)
    return form is None or form(node)


def import_custom_domains(model: onnx.ModelProto) -> None:
    """Let the model import the domains of all its nodes, in place. FINN's exporter forgets that; ONNX insists."""
    known = {entry.domain for entry in model.opset_import}
    for domain in sorted({node.domain for node in all_nodes(model.graph) if has_lowering(node)} - known):
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))


def lower_nodes(model: onnx.ModelProto, opset: int) -> int:
    """Replace the nodes with a lowering for which all is known that it takes, in place; the number replaced.

    Raises:
        ModelError: a node contradicts its operator's definition.
        UnsupportedOperatorError: a node has a form that is not supported.
    """
    replaced = _lower_graph(model.graph, opset, {})
    if replaced and not any(node.domain not in ONNX_DOMAINS for node in all_nodes(model.graph)):
        standard = [entry for entry in model.opset_import if entry.domain in ONNX_DOMAINS]
        del model.opset_import[:]
        model.opset_import.extend(standard)
    return replaced


def require_lowered_nodes(model: onnx.ModelProto, opset: int) -> None:
    """No node with a lowering is left.

    Raises:
        UnsupportedOperatorError: one is; the message says what was missing.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = tensor_types(model.graph)
    for node in model.graph.node:
        if has_lowering(node):
            reason = LOWERINGS[node.domain][node.op_type](node, NodeEmitter(node, opset, constants, types))
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
    if node.domain and opset < OLDEST_OPSET:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} needs the ONNX operator set {OLDEST_OPSET} or newer, the model uses {opset}"
        )
    return emit if LOWERINGS[node.domain][node.op_type](node, emit) is None else None
