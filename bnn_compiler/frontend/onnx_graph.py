"""Small questions asked of ONNX protos by several stages."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
"""Both spell the standard operator set."""

TENSOR_DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT8: "int8",
    TensorProto.INT16: "int16",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.UINT8: "uint8",
    TensorProto.UINT16: "uint16",
    TensorProto.UINT32: "uint32",
    TensorProto.UINT64: "uint64",
    TensorProto.BOOL: "bool",
}
"""ONNX element types that are compiled, with their NumPy names."""

FEW_BIT_TYPES: dict[int, int] = {
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT8E4M3FN: 8,
    TensorProto.FLOAT8E4M3FNUZ: 8,
    TensorProto.FLOAT8E5M2: 8,
    TensorProto.FLOAT8E5M2FNUZ: 8,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    **{kind: 2 for name, kind in TensorProto.DataType.items() if name in ("INT2", "UINT2")},  # since onnx 1.20
}
"""ONNX element types that constants may have, with their bits; they are widened before anything else looks."""


MAX_RANK = 8
"""No operator that is compiled needs more; a hostile file can declare millions of dimensions."""


def dtype_name(element_type: int) -> str:
    """The element type as text, also where it is not compiled: ``bfloat16``, ``string``, ``type 77``."""
    if element_type in TENSOR_DTYPES:
        return TENSOR_DTYPES[element_type]
    try:
        return str(TensorProto.DataType.Name(element_type)).lower()
    except ValueError:
        return f"type {element_type}"


def describe_node(node: NodeProto) -> str:
    """``Conv node 'conv1'``, with the domain where it is not the standard one."""
    operator = node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}.{node.op_type}"
    if node.name:
        return f"{operator} node {node.name!r}"
    return f"unnamed {operator} node with output {node.output[0]!r}" if node.output else f"unnamed {operator} node"


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds as attributes (the branches of an ``If``, the body of a ``Loop``)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH or attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(graph: GraphProto) -> list[NodeProto]:
    """The nodes of a graph and of its subgraphs, outer ones first."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for inner in subgraphs(node):
            nodes.extend(all_nodes(inner))
    return nodes


def names_read(node: NodeProto) -> set[str]:
    """Tensors of the enclosing graph that a node reads: its inputs, and what its subgraphs take from outside."""
    names = {name for name in node.input if name}
    for graph in subgraphs(node):
        inner = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
        inner |= {sparse.values.name for sparse in graph.sparse_initializer}
        inner |= {name for child in graph.node for name in child.output}
        read = {output.name for output in graph.output}
        for child in graph.node:
            read |= names_read(child)
        names |= read - inner
    return names


def attribute_value(node: NodeProto, name: str, default: object = None) -> object:
    """The value of an attribute as ``onnx.helper`` decodes it (text as ``bytes``), or ``default``."""
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def integer_attribute(node: NodeProto, name: str, default: int) -> int:
    """An integer attribute."""
    value = attribute_value(node, name, default)
    assert isinstance(value, int)
    return value


def integers_attribute(node: NodeProto, name: str, default: list[int]) -> list[int]:
    """A list-of-integers attribute."""
    value = attribute_value(node, name, default)
    assert isinstance(value, list)
    return [int(item) for item in value]


def text_attribute(node: NodeProto, name: str, default: str) -> str:
    """A text attribute."""
    value = attribute_value(node, name, default.encode())
    assert isinstance(value, bytes)
    return value.decode(errors="replace")


def static_shape(type_proto: TypeProto) -> tuple[int, ...] | None:
    """The shape of a tensor type when every dimension is a number, else ``None``."""
    tensor_type = type_proto.tensor_type
    if not tensor_type.HasField("shape"):
        return None
    if any(not dim.HasField("dim_value") or dim.dim_value < 0 for dim in tensor_type.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor_type.shape.dim)


def tensor_types(graph: GraphProto) -> dict[str, TypeProto]:
    """Types of the graph's inputs, intermediate values and outputs by name (initialisers are not among them)."""
    return {info.name: info.type for info in (*graph.value_info, *graph.input, *graph.output)}


def item_size(element_type: int) -> int:
    """Bytes of one element; 8 for what is not compiled (only used to estimate)."""
    return np.dtype(TENSOR_DTYPES[element_type]).itemsize if element_type in TENSOR_DTYPES else 8


def tensor_bytes(type_proto: TypeProto) -> int | None:
    """Size of a dense tensor of this type, or ``None`` where a dimension is not a number."""
    shape = static_shape(type_proto)
    return None if shape is None else math.prod(shape) * item_size(type_proto.tensor_type.elem_type)
