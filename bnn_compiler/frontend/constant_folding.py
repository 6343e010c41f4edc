"""Evaluate what depends on constants alone, once, with ONNX Runtime.

A node is folded when

1. it holds no subgraph (operators with random numbers are refused earlier);
2. all its inputs are initialisers or folded already (or it asks only for the shape of a tensor, which is static);
3. shape inference knows its results' sizes beforehand, or the operator cannot give more than its inputs hold, and
   neither the results' sizes nor the time it takes can explode.

ONNX Runtime evaluates, because the network is later verified against it: a folded weight is then bit for bit the one
that the reference would compute at run time. Where it has no kernel for the node, the node stays as it is. Nodes are
evaluated many at a time: a session takes longer to make than most of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper

from bnn_compiler.errors import ModelError
from bnn_compiler.limits import Limits

from .node_work import node_work
from .onnx_graph import (
    TENSOR_DTYPES,
    all_nodes,
    attribute_value,
    describe_node,
    item_size,
    names_read,
    static_shape,
    subgraphs,
    tensor_bytes,
    tensor_types,
)

FOLDED_PER_STORED = 16
"""Bytes of results of one pass for each byte that the file stores: weights of 8 bits become float32, in a few steps."""

FREE_SHARE = 16
"""This part of the limit of memory may be folded beside that: larger constants belong into the file."""

MAX_CONTRACTED_BYTES = 32 * 1024 * 1024
"""Of the operands and results of a node in ``_NOT_LINEAR``."""

MAX_CONTRACTED_WORK = 2 * 10**10
"""Multiplications of such a node: some seconds."""

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


_BATCH = 512
"""Nodes that are evaluated together."""


def folding_budget(model: onnx.ModelProto, limits: Limits) -> int:
    """Bytes that one pass may compute for a model as its file has it."""
    attributes = [attribute.t for node in all_nodes(model.graph) for attribute in node.attribute if attribute.t.dims]
    tensors = [*model.graph.initializer, *attributes]
    stored: int = sum(math.prod(tensor.dims) * item_size(tensor.data_type) for tensor in tensors)
    return FOLDED_PER_STORED * stored + limits.memory // FREE_SHARE


class ConstantFolder:
    """Folds a model, again and again; what could not be evaluated once is not tried again.

    ``budget`` bounds the bytes of all results of one pass together.
    """

    def __init__(self, budget: int) -> None:
        """Nothing is folded yet."""
        self._budget = budget
        self._failed: set[str] = set()

    def fold(self, model: onnx.ModelProto) -> int:
        """Replace foldable nodes by initialisers, in place; the number of nodes replaced.

        The model must have inferred shapes and topologically sorted nodes. Constants that nothing uses go.

        Raises:
            ModelError: a ``Constant`` node holds no value, or one that is no dense numeric tensor.
        """
        folding = _Pass(model, self._budget, self._failed)
        kept = folding.run()
        folded = len(model.graph.node) - len(kept)
        del model.graph.node[:]
        model.graph.node.extend(kept)
        _replace_initializers(model.graph, folding.constants)
        return folded


class _Pass:
    """One pass: ``constants`` by name, known ones and those of ``_waiting`` nodes, which are ``None`` so far."""

    def __init__(self, model: onnx.ModelProto, budget: int, failed: set[str]) -> None:
        self._model = model
        self._types = tensor_types(model.graph)
        self._budget = budget
        self._failed = failed
        self.constants: dict[str, TensorProto] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._waiting: dict[int, NodeProto] = {}
        self._promised: set[str] = set()
        self._kept: dict[int, NodeProto] = {}

    def run(self) -> list[NodeProto]:
        """The nodes that are left."""
        for index, node in enumerate(self._model.graph.node):
            results = _immediate_value(node, self._types, self._budget)
            if results is not None:
                self._budget -= sum(array.nbytes for array in results)
                self._store(node, results)
            elif self._is_foldable(node):
                self._waiting[index] = node
                self._promised.update(name for name in node.output if name)
                if len(self._waiting) >= _BATCH or node.op_type in _NEVER_GROWS:
                    self._evaluate_waiting()
            else:
                self._kept[index] = node
        self._evaluate_waiting()
        return [self._kept[index] for index in sorted(self._kept)]

    def _is_foldable(self, node: NodeProto) -> bool:
        """Conditions 1 to 3; takes the results' bytes from the budget."""
        if any(True for _ in subgraphs(node)):  # 1
            return False
        if not all(name in self.constants or name in self._promised for name in node.input if name):  # 2
            return False
        if not self._failed.isdisjoint(node.output):
            return False
        written = _bytes_written(node, self.constants, self._types, self._budget)  # 3
        self._budget -= written or 0
        return written is not None

    def _evaluate_waiting(self) -> None:
        """Evaluate; halves where it fails, so that the nodes are found that ONNX Runtime cannot run."""
        todo = [list(self._waiting.items())]
        self._waiting = {}
        self._promised = set()
        while todo:
            part = todo.pop()
            nodes = [node for _, node in part]
            produced = {name for node in nodes for name in node.output}
            # Those that read what failed stay, too.
            lost = not all(name in self.constants or name in produced for node in nodes for name in node.input if name)
            results = None if lost or not part else evaluate_nodes(self._model, nodes, self.constants)
            if results is not None:
                for node, values in zip(nodes, results, strict=True):
                    self._store(node, values)
            elif len(part) > 1:
                todo += [part[len(part) // 2 :], part[: len(part) // 2]]
            elif part:
                self._kept.update(part)
                if not lost:
                    self._failed.update(name for name in part[0][1].output if name)

    def _store(self, node: NodeProto, results: list[_Array]) -> None:
        for name, array in zip(node.output, results, strict=True):
            if name:
                self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)


def dense_initializers(model: onnx.ModelProto, budget: int) -> None:
    """Make the graph's sparse initialisers dense ones of ``budget`` bytes at most each, in place.

    Raises:
        ModelError: one is too large.
    """
    for sparse in model.graph.sparse_initializer:
        array = _dense(f"the sparse initializer {sparse.values.name!r}", sparse, budget)
        model.graph.initializer.append(numpy_helper.from_array(array, sparse.values.name))
    model.graph.ClearField("sparse_initializer")


def _immediate_value(node: NodeProto, types: dict[str, TypeProto], budget: int) -> list[_Array] | None:
    """The values of a node's outputs where nothing needs to be run."""
    if node.op_type == "Constant":
        return _constant_value(node, budget)
    if node.op_type in {"Shape", "Size"} and node.input[0] in types:
        return _static_shape_result(node, types[node.input[0]])
    return None


def _constant_value(node: NodeProto, budget: int) -> list[_Array]:
    """The value of a ``Constant`` node in any of its spellings."""
    for name in ("value", "sparse_value", "value_float", "value_int", "value_floats", "value_ints"):
        value = attribute_value(node, name)
        if value is None:
            continue
        if isinstance(value, TensorProto):
            return [numpy_helper.to_array(value)]
        if isinstance(value, onnx.SparseTensorProto):
            return [_dense(describe_node(node), value, budget)]
        return [np.asarray(value, np.float32 if "float" in name else np.int64)]
    raise ModelError(f"{describe_node(node)} holds no numeric value")


def _dense(what: str, sparse: onnx.SparseTensorProto, budget: int) -> _Array:
    """A sparse tensor as a dense one; its indices are linear, or one list of coordinates per value.

    ONNX's checker has proved that the indices fit the shape.
    """
    shape = tuple(sparse.dims)
    elements = math.prod(shape)
    if min(shape, default=1) < 0 or elements * item_size(sparse.values.data_type) > budget:
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


def _bytes_written(
    node: NodeProto, constants: Mapping[str, TensorProto], types: Mapping[str, TypeProto], budget: int
) -> int | None:
    """Condition 3: the bytes of a node's results, or ``None`` where they, or the time it takes, may be too much."""
    read = sum(_operand_bytes(name, constants, types) for name in node.input if name)
    if node.op_type in _NEVER_GROWS:
        return read if read <= budget else None
    sizes = [tensor_bytes(types[name]) if name in types else None for name in node.output if name]
    written = sum(size or 0 for size in sizes)
    if None in sizes or written > budget:
        return None
    if node.op_type in _NOT_LINEAR:
        shapes = {name: static_shape(types[name]) for name in (*node.input, *node.output) if name in types}
        shapes |= {name: tuple(constants[name].dims) for name in node.input if name in constants}
        if read + written > MAX_CONTRACTED_BYTES or node_work(node, shapes) > MAX_CONTRACTED_WORK:
            return None
    return written


def _operand_bytes(name: str, constants: Mapping[str, TensorProto], types: Mapping[str, TypeProto]) -> int:
    if name in constants:
        return int(math.prod(constants[name].dims)) * item_size(constants[name].data_type)
    return tensor_bytes(types[name]) or 0


def evaluate_node(model: onnx.ModelProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> list[_Array] | None:
    """Run one node in ONNX Runtime; ``None`` where it cannot. Of ``model`` only the versions are read."""
    results = evaluate_nodes(model, [node], constants)
    return None if results is None else results[0]


def evaluate_nodes(
    model: onnx.ModelProto, nodes: Sequence[NodeProto], constants: Mapping[str, TensorProto]
) -> list[list[_Array]] | None:
    """Run sorted nodes in ONNX Runtime: each one's results, or ``None`` where it cannot run one of them.

    Of ``model`` only the versions are read.
    """
    outputs = [name for node in nodes for name in node.output if name]
    made = set(outputs)
    read = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    feeds = {name: numpy_helper.to_array(constants[name]) for name in read}
    graph = GraphProto(name="constant", node=nodes)
    for name, value in feeds.items():
        graph.input.append(onnx.helper.make_tensor_value_info(name, constants[name].data_type, value.shape))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, graph=graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # only fatal: what it cannot run is not an error here
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(outputs, feeds)
    except Exception:  # ONNX Runtime's error types are private; any of them means that a node is not folded
        return None
    if not all(isinstance(value, np.ndarray) and value.dtype.name in TENSOR_DTYPES.values() for value in values):
        return None
    results = dict(zip(outputs, values, strict=True))
    return [[results[name] if name else np.empty(0) for name in node.output] for node in nodes]


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
