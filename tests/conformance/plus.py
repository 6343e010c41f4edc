"""References in which Sign(0) is +1 at the Signs that the report notes.

With ``sign_zero="plus"`` each set of these counts as the reference. By default +1 is right only where 0 is an accident.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .one_node import reads

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_MOST = 3
"""Signs of which all sets are tried."""


def sets_of_plus(model: onnx.ModelProto, noted: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Names of ``Sign`` nodes, largest set first, that layers or Signs named in ``noted`` may have as +1."""
    makers = {name: node for node in model.graph.node for name in node.output}
    signs: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in noted:
            signs.update(dict.fromkeys([node.name] if node.op_type == "Sign" else _signs_in_front(node, makers)))
    names = list(signs)
    sizes = range(len(names), 0, -1) if len(names) <= _MOST else (len(names),)
    for size in sizes:
        yield from itertools.combinations(names, size)


def _signs_in_front(layer: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> list[str]:
    """Signs that reach the layer with no other layer in between."""
    found, pending, seen = [], reads(layer), set[str]()
    while pending:
        node = makers.get(pending.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type == "Sign":
            found.append(node.name)
        if node.op_type not in _LAYERS:
            pending += reads(node)
    return found


def with_plus(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """The model with Sign(0) = +1 at the nodes of these names; NaN keeps its sign of NaN."""
    changed = onnx.load_from_string(model.SerializeToString())
    kinds = {
        info.name: info.type.tensor_type.elem_type for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    kinds.update({info.name: info.type.tensor_type.elem_type for info in model.graph.input})
    kinds.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    nodes = []
    for node in changed.graph.node:
        if node.op_type != "Sign" or node.name not in names:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        dtype = helper.tensor_dtype_to_np_dtype(kinds.get(source, onnx.TensorProto.FLOAT))
        changed.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, dtype), f"{result}_{value}") for value in (0, 1)
        )
        nodes += [
            helper.make_node("Equal", [source, f"{result}_0"], [f"{result}_is_0"], f"{node.name}_equal"),
            helper.make_node("Sign", [source], [f"{result}_sign"], f"{node.name}_sign"),
            helper.make_node("Where", [f"{result}_is_0", f"{result}_1", f"{result}_sign"], [result], node.name),
        ]
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    return changed
