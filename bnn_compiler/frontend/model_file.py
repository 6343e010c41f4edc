"""From a path, bytes or a proto to a ``ModelProto`` that holds all its data.

Nothing is trusted: sizes are compared with the data that is really there before anything is allocated, and no
exception of protobuf or of the operating system leaves this module.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped]
from onnx import GraphProto, TensorProto

from bnn_compiler.errors import ModelError
from bnn_compiler.limits import DEFAULT_LIMITS, Limits
from bnn_compiler.plain_text import plain
from bnn_compiler.regular_file import shown

from .external_data import read_external_data
from .onnx_graph import FEW_BIT_TYPES, MAX_RANK, TENSOR_DTYPES, describe_node, dtype_name, item_size, subgraphs

PROTOBUF_LIMIT = 2**31 - 1
"""Largest serialised message; ONNX's checker and shape inference pass the model through one."""

MAX_SUBGRAPH_DEPTH = 16
"""Real models nest one or two levels; unbounded nesting overflows the stack of recursive C++ passes."""

_TYPED_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}

_FREE_TEXTS = frozenset(
    f"onnx.{kind}"
    for kind in (
        "AttributeProto.doc_string",
        "FunctionProto.doc_string",
        "GraphProto.doc_string",
        "ModelProto.doc_string",
        "NodeProto.doc_string",
        "StringStringEntryProto.value",
        "TensorProto.doc_string",
        "ValueInfoProto.doc_string",
    )
)
"""Texts that are no names, and that nothing behind this module reads."""

Source = str | os.PathLike[str] | bytes | onnx.ModelProto


def source_name(source: Source) -> str:
    """What messages call the model: the file's name, or the graph's, or ``model``."""
    if isinstance(source, str | os.PathLike):
        return shown(Path(source).name or str(source))
    if isinstance(source, onnx.ModelProto) and source.graph.name:
        return plain(source.graph.name)
    return "model"


def load_model(source: Source, limits: Limits = DEFAULT_LIMITS) -> onnx.ModelProto:
    """A private copy of the model, with external data read in and every tensor's size proved.

    Raises:
        ModelError: unreadable, not an ONNX model, larger than 2 GiB or than ``limits``, or a tensor's data does not fit
            its shape.
    """
    directory: Path | None = None
    if isinstance(source, onnx.ModelProto):
        model = _copy(source)
    elif isinstance(source, bytes):
        model = _parse(source)
    else:
        path = Path(source)
        directory = path.parent
        model = _parse(_read(path))
    _check_texts(model, limits)
    if not model.HasField("graph"):
        raise ModelError("not an ONNX model: it holds no graph")
    _check_counts(model, limits)
    for tensor in _tensors(model):
        _complete_tensor(tensor, directory)
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise ModelError("the model with its weights is larger than 2 GiB, which is not supported")
    return model


def external_files(path: Path) -> list[Path]:
    """The files beside the model at ``path`` that hold its tensors' data; none where it is no readable model."""
    try:
        model = _parse(_read(path))
    except ModelError:
        return []
    locations = {entry.value for tensor in _tensors(model) for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / location for location in locations]


def _read(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise ModelError("is a directory, not an ONNX file")
        if not path.is_file():
            raise ModelError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > PROTOBUF_LIMIT:
            raise ModelError(
                "the file is larger than 2 GiB, the limit of the ONNX format (keep weights as external data)"
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ModelError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not data:
        raise ModelError("the file is empty")
    return data


def _parse(data: bytes) -> onnx.ModelProto:
    if not data:
        raise ModelError("the model is empty (0 bytes)")
    if len(data) > PROTOBUF_LIMIT:
        raise ModelError("the model is larger than 2 GiB, the limit of the ONNX format")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RuntimeError) as error:
        raise ModelError("not an ONNX model, or damaged: its protobuf message cannot be decoded") from error
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy through bytes: protobuf's own limits on size and nesting then hold for models in memory too."""
    try:
        return _parse(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise ModelError(f"the model in memory cannot be serialised: {error}") from error


def _check_texts(message: Message, limits: Limits) -> None:
    """Every text is UTF-8, and no name is longer than any name in use.

    Protobuf gives other texts as ``bytes``, which no code behind this one expects. Names are compared, joined and
    copied, so that a long one takes its size many times.
    """
    for field, value in message.ListFields():
        repeated = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        for item in value if repeated else (value,):
            if isinstance(item, Message):
                _check_texts(item, limits)
            elif field.type != field.TYPE_STRING:
                break
            elif isinstance(item, bytes):
                raise ModelError(f"damaged: the field {field.full_name} holds {item[:20]!r}, which is not UTF-8")
            elif len(item) > limits.name and field.full_name not in _FREE_TEXTS:
                what = f"the field {field.full_name} holds a name of {len(item)} characters, {item[:20]!r} …"
                limits.require("name", len(item), what)


def _check_counts(model: onnx.ModelProto, limits: Limits) -> None:
    """Before anything looks at each of them, and before anything is called in itself for graphs in graphs."""
    graph = model.graph
    limits.require("constants", len(graph.initializer), f"the graph has {len(graph.initializer)} initializers")
    constants = {tensor.name for tensor in graph.initializer}
    inputs = sum(info.name not in constants for info in graph.input)
    limits.require("inputs", inputs, f"the graph has {inputs} inputs")
    limits.require("outputs", len(graph.output), f"the graph has {len(graph.output)} outputs")
    nodes = 0
    level: list[GraphProto] = [graph]
    level.extend(GraphProto(node=function.node) for function in model.functions)
    for _ in range(MAX_SUBGRAPH_DEPTH + 1):
        for node in (node for inner in level for node in inner.node):
            operands = max(len(node.input), len(node.output))
            if operands > limits.operands:
                limits.require("operands", operands, f"{describe_node(node)} has {operands} inputs or outputs")
        nodes += sum(len(inner.node) for inner in level)
        level = [inner for outer in level for node in outer.node for inner in subgraphs(node)]
        if not level:
            break
    else:
        raise ModelError(f"graphs are nested deeper than {MAX_SUBGRAPH_DEPTH} levels")
    limits.require("nodes", nodes, f"the file holds {nodes} nodes", limits.file_nodes)


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All dense tensors of the model: initialisers, attributes, halves of sparse ones; subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
        while nodes:
            node = nodes.pop()
            graphs.extend(subgraphs(node))
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                    if sparse.HasField("values"):
                        yield from (sparse.values, sparse.indices)


def _complete_tensor(tensor: TensorProto, directory: Path | None) -> None:
    """Read external data in, and prove that the data has exactly the size that shape and type ask for."""
    name = repr(tensor.name) if tensor.name else "without a name"
    if len(tensor.dims) > MAX_RANK:
        raise ModelError(f"tensor {name} has {len(tensor.dims)} dimensions; at most {MAX_RANK} are supported")
    if any(dim < 0 for dim in tensor.dims):
        raise ModelError(f"tensor {name} has the negative dimension {min(tensor.dims)}")
    if tensor.data_type not in TENSOR_DTYPES and tensor.data_type not in FEW_BIT_TYPES:
        raise ModelError(
            f"tensor {name} has the element type {dtype_name(tensor.data_type)}, which is not supported "
            f"(supported: {', '.join(map(dtype_name, (*TENSOR_DTYPES, *FEW_BIT_TYPES)))})"
        )
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {name} is stored in segments, which is not supported")
    elements = math.prod(tensor.dims)
    bits = FEW_BIT_TYPES.get(tensor.data_type, 8 * item_size(tensor.data_type))
    expected = -(-elements * bits // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        if expected > PROTOBUF_LIMIT:
            raise ModelError(f"tensor {name} of shape {list(tensor.dims)} is larger than 2 GiB, which is not supported")
        data = read_external_data(tensor, directory, expected)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data
    if tensor.HasField("raw_data"):
        found, wanted, unit = len(tensor.raw_data), expected, "bytes"
    else:
        found = len(getattr(tensor, _TYPED_FIELDS.get(tensor.data_type, "int32_data")))
        wanted = elements if bits >= 8 else expected  # smaller ones are packed into bytes
        unit = "elements"
    if found != wanted:
        raise ModelError(
            f"tensor {name} of shape {list(tensor.dims)} and type {dtype_name(tensor.data_type)} needs {wanted} "
            f"{unit}, but the model holds {found}"
        )
