"""Tensors without elements, which functions of ONNX leave behind (an embedding that rotates all of a head, keeps 0).

1. ``Split`` loses the results that have no elements, and ``Concat`` such operands; to scatter none changes nothing.
2. A node of which no result has elements computes nothing: its results are constants, results of the graph, too.
3. Inputs of the graph without elements are constants to its nodes; they stay inputs.
4. But windows that are larger than the image are a mistake, which is refused later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TypeProto, numpy_helper

from .onnx_graph import TENSOR_DTYPES, all_nodes, static_shape, tensor_types

_WINDOWED = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})


_SHAPED_BY_VALUES = {"ConstantOfShape": 0, "Expand": 1, "Pad": 1, "Range": 0, "Reshape": 1, "Slice": 1, "Tile": 1}
"""The first operand whose values decide about the shape of the result."""


def _declared_alone(node: NodeProto, constants: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a result's shape depends on data: that it has no elements is then only what the file declares."""
    first = _SHAPED_BY_VALUES.get(node.op_type)
    return first is not None and any(name and name not in constants for name in node.input[first:])


def replace_empty_inputs(model: onnx.ModelProto) -> int:
    """Rule 3, in place; the number of inputs. All shapes of inputs must be known."""
    constants: dict[str, str] = {}
    for info in model.graph.input:
        if _is_empty(info.type):
            constants[info.name] = f"{info.name}/empty"
            array = np.zeros(static_shape(info.type) or (0,), TENSOR_DTYPES[info.type.tensor_type.elem_type])
            model.graph.initializer.append(numpy_helper.from_array(array, constants[info.name]))
    for node in all_nodes(model.graph) if constants else ():
        node.input[:] = [constants.get(given, given) for given in node.input]
    return len(constants)


def remove_empty_tensors(model: onnx.ModelProto) -> int:
    """Remove what has no elements, in place; the number of nodes that changed. Shapes must be inferred."""
    graph = model.graph
    types = tensor_types(graph)
    empty = {name for name, kind in types.items() if _is_empty(kind)}
    empty |= {tensor.name for tensor in graph.initializer if math.prod(tensor.dims) == 0}
    if not empty:
        return 0
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept: list[NodeProto] = []
    changed = 0
    for node in graph.node:
        outputs = [name for name in node.output if name]
        gone = [name for name in outputs if name in empty]
        mistaken = node.op_type in _WINDOWED and not any(name in empty for name in node.input)
        mistaken = mistaken or _declared_alone(node, constants)
        if outputs and len(gone) == len(outputs) and not mistaken:  # 2, 4
            changed += 1
        elif node.op_type == "Split" and gone and _shorten_split(node, set(gone), types, constants, model):
            changed += 1
            kept.append(node)
        else:
            changed += _shorten_concat(node, empty) or _skip_scatter(node, empty)
            kept.append(node)
            continue
        for name in gone:
            kind = types[name].tensor_type
            array = np.zeros(static_shape(types[name]) or (0,), TENSOR_DTYPES[kind.elem_type])
            graph.initializer.append(numpy_helper.from_array(array, name))
    if changed:
        copies = [NodeProto.FromString(node.SerializeToString()) for node in kept]
        del graph.node[:]
        graph.node.extend(copies)
    return changed


def _is_empty(kind: TypeProto) -> bool:
    return 0 in (static_shape(kind) or ()) and kind.tensor_type.elem_type in TENSOR_DTYPES


def _shorten_concat(node: NodeProto, empty: set[str]) -> bool:
    """Rule 1. An operand without elements may be so in another axis only if all are: then the result is, too."""
    if node.op_type != "Concat" or not any(name in empty for name in node.input):
        return False
    inputs = [name for name in node.input if name not in empty]
    if not inputs:
        return False
    node.input[:] = inputs
    if len(inputs) == 1:
        node.op_type = "Identity"
        node.ClearField("attribute")
    return True


def _skip_scatter(node: NodeProto, empty: set[str]) -> bool:
    """Rule 1."""
    if node.op_type not in {"Scatter", "ScatterElements", "ScatterND"} or node.input[1] not in empty:
        return False
    node.op_type = "Identity"
    del node.input[1:]
    node.ClearField("attribute")
    return True


def _shorten_split(
    node: NodeProto,
    gone: set[str],
    types: dict[str, TypeProto],
    constants: dict[str, onnx.TensorProto],
    model: onnx.ModelProto,
) -> bool:
    """Rule 1, where the sizes of the parts are constants."""
    sizes = [attribute for attribute in node.attribute if attribute.name == "split"]
    left = [index for index, name in enumerate(node.output) if name not in gone]
    if sizes:
        sizes[0].ints[:] = [sizes[0].ints[index] for index in left]
    elif len(node.input) > 1 and node.input[1] in constants:
        values = numpy_helper.to_array(constants[node.input[1]])
        name = f"{node.output[left[0]]}/split"
        model.graph.initializer.append(numpy_helper.from_array(values[left], name))
        node.input[1] = name
    else:
        return False
    node.output[:] = [node.output[index] for index in left]
    return True
