"""The body of a loop, written into the graph around it once per step."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import GraphProto, NodeProto, TensorProto

from .branches import rename_tensors
from .onnx_graph import names_read


class BodyInliner:
    """Writes copies of ``body`` to ``nodes``, all names with ``prefix`` in front.

    What does not depend on the body's inputs, constants first of all, is the same in each step and is written once.
    """

    def __init__(self, graph: GraphProto, body: GraphProto, prefix: str, nodes: list[NodeProto]) -> None:
        """Write what is shared."""
        self._body, self._prefix, self._nodes = body, prefix, nodes
        self._shared: dict[str, str] = {}
        for tensor in body.initializer:
            copy = TensorProto()
            copy.CopyFrom(tensor)
            copy.name = self._shared[tensor.name] = f"{prefix}/{tensor.name}"
            graph.initializer.append(copy)
        self._steps: list[NodeProto] = []
        varying = {info.name for info in body.input}
        for node in body.node:
            if varying.isdisjoint(names_read(node)):
                self._shared.update({name: f"{prefix}/{name}" for name in node.output if name})
                self._copy(node, prefix, self._shared)
            else:
                self._steps.append(node)
                varying.update(node.output)

    def inline(self, step: int, values: Sequence[str]) -> list[str]:
        """Write one step that reads ``values`` as the body's inputs; the names of its results."""
        prefix = f"{self._prefix}/{step}"
        renaming = self._shared | {info.name: value for info, value in zip(self._body.input, values, strict=True)}
        renaming |= {name: f"{prefix}/{name}" for node in self._steps for name in node.output if name}
        for node in self._steps:
            self._copy(node, prefix, renaming)
        return [renaming.get(output.name, output.name) for output in self._body.output]

    def _copy(self, node: NodeProto, prefix: str, renaming: dict[str, str]) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}/{node.name or node.op_type}"
        rename_tensors(copy, renaming)
        self._nodes.append(copy)
