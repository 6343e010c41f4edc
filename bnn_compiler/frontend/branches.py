"""``If`` without control flow.

A branch whose condition is a constant takes the place of the node. Where the condition is computed, both branches are
computed and ``Where(condition, then, else)`` selects: ONNX's branches are pure, so only time is lost, and the graph
stays one flat dataflow. This needs branches with the same static result shapes.
"""

from __future__ import annotations

import onnx
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import attribute_value, describe_node, static_shape, subgraphs, tensor_types


def inline_known_branches(model: onnx.ModelProto) -> int:
    """Replace each ``If`` with a constant condition by the branch it takes, in place; the number replaced."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept: list[NodeProto] = []
    replaced = 0
    for node in model.graph.node:
        if node.op_type != "If" or node.input[0] not in constants:
            kept.append(node)
            continue
        condition = numpy_helper.to_array(constants[node.input[0]])
        if condition.size != 1:
            raise ModelError(f"{describe_node(node)} has a condition of {condition.size} elements; there must be one")
        taken = "then_branch" if condition.reshape(-1)[0] else "else_branch"
        results = _inline(model.graph, node, taken, kept)
        kept.extend(
            NodeProto(op_type="Identity", name=f"{node.name}/{taken}/result_{index}", input=[result], output=[output])
            for index, (result, output) in enumerate(zip(results, node.output, strict=True))
            if output
        )
        replaced += 1
    _replace_nodes(model.graph, kept)
    return replaced


def select_branches(model: onnx.ModelProto) -> int:
    """Replace each remaining ``If`` by both branches and a ``Where`` per result, in place; the number replaced.

    The model must have inferred shapes: they are those of the branches' results.

    Raises:
        UnsupportedOperatorError: the branches' results differ in shape.
    """
    types = tensor_types(model.graph)
    kept: list[NodeProto] = []
    replaced = 0
    for node in model.graph.node:
        if node.op_type != "If":
            kept.append(node)
            continue
        for output in node.output:
            if output and (output not in types or static_shape(types[output]) is None):
                raise UnsupportedOperatorError(
                    f"{describe_node(node)}: the shape of its output {output!r} depends on the branch taken, "
                    "which is only known at run time"
                )
        then_results = _inline(model.graph, node, "then_branch", kept)
        else_results = _inline(model.graph, node, "else_branch", kept)
        kept.extend(
            NodeProto(
                op_type="Where",
                name=node.name if len(node.output) == 1 else f"{node.name}/result_{index}",
                input=[node.input[0], then_result, else_result],
                output=[output],
            )
            for index, (output, then_result, else_result) in enumerate(
                zip(node.output, then_results, else_results, strict=True)
            )
            if output
        )
        replaced += 1
    _replace_nodes(model.graph, kept)
    return replaced


def _inline(graph: GraphProto, node: NodeProto, branch_name: str, nodes: list[NodeProto]) -> list[str]:
    """Append a branch's nodes to ``nodes`` and its constants to the graph, renamed; the names of its results."""
    branch = attribute_value(node, branch_name)
    if not isinstance(branch, GraphProto) or len(branch.output) != len(node.output):
        raise ModelError(f"{describe_node(node)} has no {branch_name} with {len(node.output)} results")
    prefix = f"{node.name}/{branch_name}/"
    local = [tensor.name for tensor in branch.initializer] + [name for inner in branch.node for name in inner.output]
    renaming = {name: prefix + name for name in local if name}
    for tensor in branch.initializer:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = renaming[tensor.name]
        graph.initializer.append(copy)
    for index, inner in enumerate(branch.node):
        copied = NodeProto()
        copied.CopyFrom(inner)
        copied.name = prefix + (inner.name or f"{inner.op_type}_{index}")
        rename_tensors(copied, renaming)
        nodes.append(copied)
    return [renaming.get(output.name, output.name) for output in branch.output]


def rename_tensors(node: NodeProto, renaming: dict[str, str]) -> None:
    """Rename what a node reads and writes, and what its subgraphs read from outside.

    Names that a subgraph defines itself hide outer ones; ONNX forbids that, so that no scopes are needed here.
    """
    for names in (node.input, node.output):
        for index, name in enumerate(names):
            names[index] = renaming.get(name, name)
    for graph in subgraphs(node):
        for inner in graph.node:
            rename_tensors(inner, renaming)
        for output in graph.output:
            output.name = renaming.get(output.name, output.name)


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    del graph.node[:]
    graph.node.extend(nodes)
