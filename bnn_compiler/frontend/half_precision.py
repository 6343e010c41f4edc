"""Networks in half precision, computed in single precision.

Every float16 tensor of the graph becomes float32: constants exactly, and behind a ``Cast`` to float16 stands one back
to float32, so that it rounds; so does ``DequantizeLinear`` with a float16 scale. Inputs and outputs of the graph keep
their type, with a ``Cast`` behind or before them. What is left out is the rounding to float16 of other operators'
results. ONNX Runtime leaves it out, too, on CPUs, where few operators have half-precision kernels: it casts around all
others and drops some of the casts between them. Sums of signs are integers, and the same in either precision up to
2048.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from .onnx_graph import subgraphs

_HALF, _SINGLE = TensorProto.FLOAT16, TensorProto.FLOAT
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
"""Integer attributes that hold an element type (``Cast``, ``EyeLike``, ``DequantizeLinear``)."""


def widen_half_precision(model: onnx.ModelProto) -> list[str]:
    """Make the model one of float32 but for its border, in place; a note where any tensor was computed in float16.

    The nodes must be sorted, and functions inlined.
    """
    graph = model.graph
    names = {tensor.name for tensor in graph.initializer}
    narrow_inputs = [info for info in graph.input if _is_half(info) and info.name not in names]
    narrow_outputs = [info for info in graph.output if _is_half(info)]
    casts = _widen_graph(graph)
    if not (narrow_inputs or narrow_outputs or casts):
        return []
    inputs = {info.name: f"{info.name}/float32" for info in narrow_inputs}
    # An output that is an input stays one.
    outputs = {info.name: f"{info.name}/float32" for info in narrow_outputs if info.name not in inputs}
    before = [onnx.helper.make_node("Cast", [name], [wide], name=wide, to=_SINGLE) for name, wide in inputs.items()]
    after = [
        onnx.helper.make_node("Cast", [wide], [name], name=f"{name}/float16", to=_HALF)
        for name, wide in outputs.items()
    ]
    _rename_reads(graph, inputs | outputs)
    for tensor in graph.initializer:
        tensor.name = outputs.get(tensor.name, tensor.name)
    for node in graph.node:
        node.output[:] = [outputs.get(name, name) for name in node.output]
    for info in narrow_outputs:
        info.type.tensor_type.elem_type = _HALF
    for info in narrow_inputs:
        info.type.tensor_type.elem_type = _HALF
    nodes = [*before, *(NodeProto.FromString(node.SerializeToString()) for node in graph.node), *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return ["half precision is computed in single precision, as ONNX Runtime does on CPUs"]


def uses_half_precision(model: onnx.ModelProto) -> bool:
    """Whether inputs, outputs, constants or casts of the main graph are float16."""
    graph = model.graph
    if any(map(_is_half, (*graph.input, *graph.output))) or any(t.data_type == _HALF for t in graph.initializer):
        return True
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    return any(
        attribute.t.data_type == _HALF
        if attribute.type == AttributeProto.TENSOR
        else attribute.name in _TYPE_ATTRIBUTES and attribute.i == _HALF
        for attribute in attributes
    )


def _is_half(info: onnx.ValueInfoProto) -> bool:
    return bool(info.type.tensor_type.elem_type == _HALF)


def _widen_graph(graph: GraphProto) -> bool:
    """Widen constants, declared types and attributes; whether a node computed a float16 tensor from another type."""
    computed = False
    graph.ClearField("value_info")
    narrow = {tensor.name for tensor in graph.initializer if tensor.data_type == _HALF}
    narrow |= {info.name for info in graph.input if _is_half(info)}
    narrow |= {name for node in graph.node for name in node.output if _half_constant(node)}
    for info in (*graph.input, *graph.output):
        if _is_half(info):
            info.type.tensor_type.elem_type = _SINGLE
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for sparse in graph.sparse_initializer:
        _widen_tensor(sparse.values)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "DequantizeLinear" and node.input[1] in narrow:
            nodes.extend(_rounded(node))
            computed = True
        for inner in subgraphs(node):
            computed = _widen_graph(inner) or computed
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _HALF:
                nodes.append(_back_to_single(node))
                computed = True
                continue
            if attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif attribute.type == AttributeProto.SPARSE_TENSOR:
                _widen_tensor(attribute.sparse_tensor.values)
            elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == _HALF:
                attribute.i = _SINGLE
                computed = True
    if len(nodes) > len(graph.node):
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return computed


def _back_to_single(cast: NodeProto) -> NodeProto:
    """A node that widens what ``cast`` gives, under the name that it had."""
    result, rounded = cast.output[0], f"{cast.output[0]}/rounded"
    cast.output[0] = rounded
    return onnx.helper.make_node("Cast", [rounded], [result], name=rounded, to=_SINGLE)


def _rounded(node: NodeProto) -> list[NodeProto]:
    """Nodes that round what ``node`` gives to half precision, under the name that it had.

    ONNX Runtime dequantises in single precision and rounds once.
    """
    result, exact = node.output[0], f"{node.output[0]}/exact"
    node.output[0] = exact
    cast = onnx.helper.make_node("Cast", [exact], [result], name=f"{exact}/rounded", to=_HALF)
    return [cast, _back_to_single(cast)]


def _half_constant(node: NodeProto) -> bool:
    return node.op_type == "Constant" and any(attribute.t.data_type == _HALF for attribute in node.attribute)


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type == _HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _rename_reads(graph: GraphProto, renamed: Mapping[str, str]) -> None:
    """Let every node, those of subgraphs too, read tensors by their new names."""
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        for inner in subgraphs(node):
            _rename_reads(inner, renamed)
            for output in inner.output:
                output.name = renamed.get(output.name, output.name)
