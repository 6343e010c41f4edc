"""Operators that select or place elements, as gathers and ``Where``.

``OneHot(i, depth, [off, on])``
    on where i, or i plus depth, is the position along the new axis, else off.
``EyeLike(x)``
    Rows compared with columns, a constant: only the shape of x counts.
``Compress(x, c)``
    ``Gather`` with the positions where c holds, which must be constants: they decide about the shape.
``TensorScatter(past, update, w)``
    Position s of the cache reads position s - w of the update (modulo the cache's length in circular mode) where the
    update has such a position, and keeps its value elsewhere.
``SpaceToDepth`` in mode CRD
    A transpose between two reshapes, with the block behind the channels and not before them.
``NonZero``, ``Unique``, ``NonMaxSuppression``
    Nothing: constants of them are folded before.
``Dropout`` of which the mask is used
    Nothing is dropped: x, and a mask that is true.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import attribute_value, integer_attribute, text_attribute
from .versioned_operators import emit_reshape, emit_slice, emit_unsqueeze


def _lower_one_hot(node: NodeProto, emit: NodeEmitter) -> str | None:
    indices, depth_name, values = node.input
    depth, rank = emit.constant_value(depth_name), emit.rank(indices)
    if depth is None or depth.size != 1:
        return "its depth is not a constant, and the shape of its output depends on it"
    if rank is None:
        return "the rank of its indices is not known"
    size = int(depth.reshape(-1)[0])
    axis = integer_attribute(node, "axis", -1) % (rank + 1)
    index = emit("Cast", indices, to=onnx.TensorProto.INT64)
    column = emit_unsqueeze(emit, index, [axis])
    positions = np.arange(size).reshape((size,) + (1,) * (rank - axis))
    found = [emit("Equal", column, emit.constant(positions - wrap, np.int64)) for wrap in (0, size)]
    hit = emit("Or", *found)
    emit.result("Where", hit, emit_slice(emit, values, 0, 1, 2), emit_slice(emit, values, 0, 0, 1))
    return None


def _lower_eye_like(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape = emit.shape(node.input[0])
    if shape is None or len(shape) != 2:
        return "its input is no matrix of known shape"
    element_type = integer_attribute(node, "dtype", emit.element_type_of(node.input[0]))
    rows, columns = shape
    shift = min(max(integer_attribute(node, "k", 0), -rows), columns)
    # Compared, and not a constant: whether one of this size is made is for the folding of constants to decide.
    diagonal = emit.constant(np.arange(shift, rows + shift).reshape(-1, 1), np.int64)
    hit = emit("Equal", diagonal, emit.constant(np.arange(columns).reshape(1, -1), np.int64))
    emit.result("Cast", hit, to=element_type)
    return None


def _lower_compress(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, condition = node.input[0], emit.constant_value(node.input[1])
    if condition is None:
        return "its condition is not a constant, and the shape of its output depends on it: Where keeps the shape"
    axis = attribute_value(node, "axis")
    if axis is None:
        data, axis = emit_reshape(emit, data, [-1]), 0
    emit.result("Gather", data, emit.integers(np.flatnonzero(condition).tolist()), axis=axis)
    return None


def _lower_tensor_scatter(node: NodeProto, emit: NodeEmitter) -> str | None:
    past, update = node.input[:2]
    shape, new = emit.shape(past), emit.shape(update)
    if shape is None or new is None:
        return "the shapes of its inputs are not known"
    axis = integer_attribute(node, "axis", -2) % len(shape)
    if axis == 0:
        return "its axis is that of the batch"
    length = shape[axis]
    positions = emit.constant(np.arange(length).reshape(1, length), np.int64)
    written = len(node.input) > 2 and node.input[2]
    first = emit_unsqueeze(emit, node.input[2], [1]) if written else emit.constant(np.zeros((1, 1)), np.int64)
    source = emit("Sub", positions, first)
    if text_attribute(node, "mode", "linear") == "circular":
        source = emit("Mod", source, emit.scalar(length, np.int64))
    zero, last = emit.scalar(0, np.int64), emit.scalar(new[axis] - 1, np.int64)
    inside = emit("And", emit("GreaterOrEqual", source, zero), emit("LessOrEqual", source, last))
    column = [-1 if at == 0 else length if at == axis else 1 for at in range(len(shape))]
    index = emit_reshape(emit, emit("Min", emit("Max", source, zero), last), column)
    moved = emit("GatherElements", update, emit("Expand", index, emit.integers(shape)), axis=axis)
    emit.result("Where", emit_reshape(emit, inside, column), moved, past)
    return None


def _lower_space_to_depth(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape, block = emit.shape(node.input[0]), integer_attribute(node, "blocksize", 0)
    if shape is None or block < 1:
        return "the shape of its input is not known, or its blocksize is not positive"
    batch, channels, height, width = shape
    parts = emit_reshape(emit, node.input[0], [batch, channels, height // block, block, width // block, block])
    moved = emit("Transpose", parts, perm=[0, 1, 3, 5, 2, 4])
    emit.result("Reshape", moved, emit.integers([batch, channels * block**2, height // block, width // block]))
    return None


def puts_channels_first(node: NodeProto) -> bool:
    """Whether a ``SpaceToDepth`` is in mode CRD."""
    return text_attribute(node, "mode", "DCR") == "CRD"


def _lower_dropout(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape = emit.shape(node.input[0])
    if shape is None:
        return "the shape of its input is not known"
    trains = emit.constant_value(node.input[2]) if len(node.input) > 2 and node.input[2] else np.asarray(False)
    ratio = emit.constant_value(node.input[1]) if len(node.input) > 1 and node.input[1] else np.asarray(0.5)
    if trains is None:
        return "whether it trains is not a constant"
    if trains.item() and (ratio is None or ratio.item() != 0):
        return "it is in training mode, and its results are random"
    emit.result("Identity", node.input[0])
    emit.result("Identity", emit.constant(np.ones(shape), bool if emit.opset >= 10 else None), index=1)
    return None


def uses_mask(node: NodeProto) -> bool:
    """Whether a ``Dropout`` gives more than its input, or may be in training mode."""
    return any(node.output[1:]) or (len(node.input) > 2 and bool(node.input[2]))


def _refuse_dynamic(_: NodeProto, __: NodeEmitter) -> str | None:
    return "the shape of its output depends on data, which is not supported: shapes must be constant"


SELECTION_LOWERINGS: Mapping[str, Lowering] = {
    "Compress": _lower_compress,
    "Dropout": _lower_dropout,
    "EyeLike": _lower_eye_like,
    "NonMaxSuppression": _refuse_dynamic,
    "NonZero": _refuse_dynamic,
    "OneHot": _lower_one_hot,
    "SpaceToDepth": _lower_space_to_depth,
    "TensorScatter": _lower_tensor_scatter,
    "Unique": _refuse_dynamic,
}
"""By operator."""
