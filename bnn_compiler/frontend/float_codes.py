"""Codes that are cast to integers and back stay floats: a quantised activation is then one chain of float operators.

A tensor holds small integers where it is ``Round`` of a clipped tensor, ``Clip`` of integers, or a sum of such with a
constant integer; :func:`fold_code_casts` proves that with its bounds. Cast to an integer type whose range holds the
bounds, moved or clipped there (``Clip``, ``MaxPool``, ``Reshape``, …), and cast to float32, it has the same numbers as
when all of that is done to the floats; a zero may have another sign.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from .onnx_graph import TENSOR_DTYPES, integer_attribute

_LARGEST = 2.0**24
"""Below it float32 holds all integers."""

_MOVES = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators whose results are elements of their first input, or the largest of some."""

_MAX_DEPTH = 32

_Bounds = tuple[float, float]


def fold_code_casts(model: onnx.ModelProto) -> int:
    """Replace each ``Cast`` of such integers to float32, in place; the number replaced. Nodes must be sorted."""
    rewriting = _Rewriting(model)
    for node in model.graph.node:
        rewriting.visit(node)
    if rewriting.replaced:
        nodes = _live([NodeProto.FromString(node.SerializeToString()) for node in rewriting.nodes], model)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return rewriting.replaced


def _live(nodes: list[NodeProto], model: onnx.ModelProto) -> list[NodeProto]:
    """The nodes without casts and moves of integers that nothing reads any more (subgraphs are gone by now)."""
    read = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        needed = any(name in read for name in node.output)
        if needed or node.op_type not in _MOVES | {"Cast", "Clip"}:
            kept.append(node)
            read.update(node.input)
    return kept[::-1]


class _Rewriting:
    """The nodes of one graph, old ones and new ones."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[NodeProto] = []
        self.replaced = 0
        self._graph = model.graph
        self._writer = {name: node for node in model.graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._twins: dict[str, str] = {}

    def visit(self, node: NodeProto) -> None:
        """Copy the node, or replace it."""
        twin = None
        if node.op_type == "Cast" and integer_attribute(node, "to", 0) == TensorProto.FLOAT:
            twin = self._float_twin(node.input[0], 0)
        if twin is None:
            self.nodes.append(node)
            return
        self.nodes.append(onnx.helper.make_node("Identity", [twin], list(node.output), name=node.name))
        self.replaced += 1

    def _float_twin(self, name: str, depth: int) -> str | None:
        """The float32 tensor with the numbers of an integer one, if there is or can be one."""
        node = self._writer.get(name)
        if name in self._twins or node is None or depth > _MAX_DEPTH:
            return self._twins.get(name)
        if node.op_type == "Cast":
            return self._cast_source(node)
        if node.op_type not in _MOVES | {"Clip"} or len(node.output) != 1:
            return None
        bounds = self._clip_bounds(node) if node.op_type == "Clip" else None
        source = self._float_twin(node.input[0], depth + 1)
        if source is None or (node.op_type == "Clip" and bounds is None):
            return None
        operands = [source, *node.input[1:]] if bounds is None else [source, *map(self._scalar, bounds)]
        copy = onnx.helper.make_node(node.op_type, operands, [f"{name}/float"], name=f"{node.name}/float")
        copy.attribute.extend(node.attribute)
        self.nodes.append(copy)
        self._twins[name] = copy.output[0]
        return self._twins[name]

    def _cast_source(self, node: NodeProto) -> str | None:
        dtype = np.dtype(TENSOR_DTYPES.get(integer_attribute(node, "to", 0), "bool"))
        bounds = self._integer_bounds(node.input[0], 0)
        if dtype.kind not in "iu" or bounds is None:
            return None
        limits = np.iinfo(dtype)
        return node.input[0] if limits.min <= bounds[0] and bounds[1] <= limits.max else None

    def _integer_bounds(self, name: str, depth: int) -> _Bounds | None:
        """The bounds of a float32 tensor of integers; ``None`` where it is not known to be one."""
        node = self._writer.get(name)
        if node is None or depth > _MAX_DEPTH:
            return None
        if node.op_type == "Round":
            source = self._writer.get(node.input[0])
            bounds = self._clip_bounds(source) if source is not None and source.op_type == "Clip" else None
            return None if bounds is None else (float(np.rint(bounds[0])), float(np.rint(bounds[1])))
        if node.op_type == "Clip":
            bounds = self._clip_bounds(node)
            whole = bounds is not None and bounds[0].is_integer() and bounds[1].is_integer()
            return bounds if whole and self._integer_bounds(node.input[0], depth + 1) is not None else None
        if node.op_type == "Add":
            bounds, shift = self._integer_bounds(node.input[0], depth + 1), self._number(node.input[1])
            if bounds is None or shift is None or not shift.is_integer():
                return None
            moved = bounds[0] + shift, bounds[1] + shift
            return moved if max(map(abs, moved)) < _LARGEST else None
        return None

    def _clip_bounds(self, node: NodeProto) -> _Bounds | None:
        """Both bounds of a ``Clip``, in order and of moderate size, as constants."""
        if len(node.input) == 3:
            low, high = self._number(node.input[1]), self._number(node.input[2])
        else:  # before operator set 11
            given = {attribute.name: float(attribute.f) for attribute in node.attribute}
            low, high = given.get("min"), given.get("max")
        if low is None or high is None or not -_LARGEST < low <= high < _LARGEST:
            return None
        return low, high

    def _number(self, name: str) -> float | None:
        tensor = self._constants.get(name)
        if tensor is None or any(extent != 1 for extent in tensor.dims):
            return None
        return float(numpy_helper.to_array(tensor).reshape(-1)[0])

    def _scalar(self, value: float) -> str:
        name = f"code_bound_{value:g}"
        while name in self._writer or (name in self._constants and self._number(name) != value):
            name += "_"
        if name not in self._constants:
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
            self._constants[name] = self._graph.initializer[-1]
        return name
