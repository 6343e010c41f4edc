"""Evaluate what depends on constants alone, once, with ONNX Runtime.

A node is folded when

1. it holds no subgraph (operators with random numbers are refused earlier);
2. all its inputs are initialisers or folded already (or it asks only for the shape of a tensor, which is static);
3. shape inference knows its results' sizes beforehand, or the operator cannot give more than its inputs hold, and
   neither the results' sizes nor the time it takes can explode.

ONNX Runtime evaluates, because the network is later verified against it: a folded weight is then bit for bit the one
that the reference would compute at run time. Where it has no kernel for the node, the node stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

from bnn_compiler.errors import ModelError

from .onnx_graph import (
    TENSOR_DTYPES,
    attribute_value,
    describe_node,
    item_size,
    names_read,
    static_shape,
    subgraphs,
    tensor_bytes,
    tensor_types,
)

MAX_FOLDED_BYTES = 512 * 1024 * 1024
"""Of all results of one pass together; larger constants belong into the file, not into the compiler's memory."""

MAX_CONTRACTED_BYTES = 32 * 1024 * 1024
"""Of the operands and results of a node in ``_NOT_LINEAR``: about 10^10 multiplications at most."""

_NOT_LINEAR = frozenset(
    {
        "Attention",
        "AveragePool",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Gemm",
        "LRN",
        "LpPool",
        "MatMul",
        "MatMulInteger",
        "MaxPool",
        "NonMaxSuppression",
    }
)
"""Operators whose time is not linear in the size of their operands and results."""

_NEVER_GROWS = frozenset({"NonZero", "Compress", "Unique"})
"""Data-dependent shapes, bounded by the input (``NonZero``: rank times its elements)."""

_Array = npt.NDArray[np.generic]


def fold_constants(model: onnx.ModelProto) -> int:
    """Replace foldable nodes by initialisers, in place; the number of nodes replaced.

    The model must have inferred shapes and topologically sorted nodes. Constants that nothing uses go.

    Raises:
        ModelError: a ``Constant`` node holds no value, or one that is no dense numeric tensor.
    """
    graph = model.graph
    types = tensor_types(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    kept: list[NodeProto] = []
    budget = MAX_FOLDED_BYTES
    for node in graph.node:
        results = _fold_node(model, node, constants, types, budget)
        if results is None:
            kept.append(node)
            continue
        budget -= sum(array.nbytes for array in results)
        for name, array in zip(node.output, results, strict=True):
            if name:
                constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
    folded = len(graph.node) - len(kept)
    del graph.node[:]
    graph.node.extend(kept)
    _replace_initializers(graph, constants)
    return folded


def dense_initializers(model: onnx.ModelProto) -> None:
    """Make the graph's sparse initialisers dense ones, in place.

    Raises:
        ModelError: one is too large.
    """
    for sparse in model.graph.sparse_initializer:
        array = _dense(f"the sparse initializer {sparse.values.name!r}", sparse)
        model.graph.initializer.append(numpy_helper.from_array(array, sparse.values.name))
    model.graph.ClearField("sparse_initializer")


def _fold_node(
    model: onnx.ModelProto,
    node: NodeProto,
    constants: dict[str, TensorProto],
    types: dict[str, TypeProto],
    budget: int,
) -> list[_Array] | None:
    """The values of the node's outputs, or ``None`` where it is not to be folded."""
    if node.op_type == "Constant":
        return _constant_value(node)
    if node.op_type in {"Shape", "Size"} and node.input[0] in types:
        return _static_shape_result(node, types[node.input[0]])
    if any(True for _ in subgraphs(node)):  # condition 1
        return None
    if not all(name in constants for name in node.input if name):  # condition 2
        return None
    if not _is_bounded(node, constants, types, budget):  # condition 3
        return None
    return evaluate_node(model, node, constants)


def _constant_value(node: NodeProto) -> list[_Array]:
    """The value of a ``Constant`` node in any of its spellings."""
    for name in ("value", "sparse_value", "value_float", "value_int", "value_floats", "value_ints"):
        value = attribute_value(node, name)
        if value is None:
            continue
        if isinstance(value, TensorProto):
            return [numpy_helper.to_array(value)]
        if isinstance(value, onnx.SparseTensorProto):
            return [_dense(describe_node(node), value)]
        return [np.asarray(value, np.float32 if "float" in name else np.int64)]
    raise ModelError(f"{describe_node(node)} holds no numeric value")


def _dense(what: str, sparse: onnx.SparseTensorProto) -> _Array:
    """A sparse tensor as a dense one; its indices are linear, or one list of coordinates per value.

    ONNX's checker has proved that the indices fit the shape.
    """
    shape = tuple(sparse.dims)
    elements = math.prod(shape)
    if min(shape, default=1) < 0 or elements * item_size(sparse.values.data_type) > MAX_FOLDED_BYTES:
        raise ModelError(f"{what} has the shape {list(shape)}, which is too large or negative")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(elements, values.dtype)
    dense[np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices] = values
    return dense.reshape(shape)


def _static_shape_result(node: NodeProto, type_proto: TypeProto) -> list[_Array] | None:
    shape = static_shape(type_proto)
    if shape is None:
        return None
    if node.op_type == "Size":
        return [np.asarray(int(np.prod(shape, dtype=np.int64)), np.int64)]
    start, end = attribute_value(node, "start", 0), attribute_value(node, "end")
    assert isinstance(start, int)
    assert end is None or isinstance(end, int)
    return [np.asarray(shape[slice(start, end)], np.int64)]


def _is_bounded(node: NodeProto, constants: dict[str, TensorProto], types: dict[str, TypeProto], budget: int) -> bool:
    """Condition 3."""
    operands = [constants[name] for name in node.input if name]
    read: int = sum(math.prod(tensor.dims) * item_size(tensor.data_type) for tensor in operands)
    if node.op_type in _NEVER_GROWS:
        return read <= budget
    sizes = [tensor_bytes(types[name]) if name in types else None for name in node.output if name]
    written = sum(size or 0 for size in sizes)
    if None in sizes or written > budget:
        return False
    return node.op_type not in _NOT_LINEAR or read + written <= MAX_CONTRACTED_BYTES


def evaluate_node(model: onnx.ModelProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> list[_Array] | None:
    """Run one node in ONNX Runtime; ``None`` where it cannot. Of ``model`` only the versions are read."""
    feeds = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
    outputs = [name for name in node.output if name]
    graph = GraphProto(name="constant", node=[node])
    for name, value in feeds.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, constants[name].data_type, value.shape))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    single = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only fatal: what it cannot run is not an error here
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(single.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(outputs, feeds)
    except Exception:  # ONNX Runtime's error types are private; any of them means that the node is not folded
        return None
    if not all(isinstance(value, np.ndarray) and value.dtype.name in TENSOR_DTYPES.values() for value in values):
        return None
    results = dict(zip(outputs, values, strict=True))
    return [results[name] if name else np.empty(0) for name in node.output]


def _replace_initializers(graph: GraphProto, constants: dict[str, TensorProto]) -> None:
    """The initialisers become those constants that a node or the graph still uses."""
    used = {name for node in graph.node for name in names_read(node)} | {output.name for output in graph.output}
    live = [tensor for name, tensor in constants.items() if name in used]
    del graph.initializer[:]
    graph.initializer.extend(live)
    nodes_or_inputs = {name for node in graph.node for name in node.output} | {info.name for info in graph.input}
    remaining = [info for info in graph.value_info if info.name in nodes_or_inputs]
    del graph.value_info[:]
    graph.value_info.extend(remaining)
