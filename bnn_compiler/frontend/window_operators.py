"""Operators on windows of an image whose positions are known, as gathers with constant indices.

``Col2Im(x)``
    Each pixel is the sum of those columns' elements that lie on it: as many gathers as the pixel with most of them has,
    of x with a zero behind it for pixels that have fewer.
``MaxPool`` of which the positions are used
    Gather all windows, with the lowest number behind the image for what lies outside; ``ArgMax`` says which element it
    was, and a table where that stands.
``MaxUnpool`` with a given shape
    Positions are those in that shape, as in ONNX Runtime; ONNX's text leaves open whether they are in the default one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import integer_attribute, integers_attribute, text_attribute
from .versioned_operators import emit_pad_end, emit_reshape

_Array = npt.NDArray[Any]

MAX_WINDOW = 256
"""Elements of a window."""


def _lower_col2im(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape = emit.shape(node.input[0])
    image, block = (emit.constant_value(name) for name in node.input[1:3])
    if shape is None or image is None or block is None:
        return "its image and block shapes are not constants"
    extents, kernel = image.tolist(), block.tolist()
    if math.prod(kernel) > MAX_WINDOW:
        return f"its block has {math.prod(kernel)} elements; at most {MAX_WINDOW} are supported"
    rank = len(kernel)
    strides, dilations = (integers_attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads = integers_attribute(node, "pads", [0] * (2 * rank))
    spans = [
        (extents[d] + pads[d] + pads[rank + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d] + 1
        for d in range(rank)
    ]
    pixels = window_positions(extents, kernel, strides, dilations, pads, spans).T.reshape(-1)
    # pixels[k * windows + l]: on which pixel element k of window l lies; -1 is outside.
    sources: list[list[int]] = [[] for _ in range(math.prod(extents))]
    for source, pixel in enumerate(pixels.tolist()):
        if pixel >= 0:
            sources[pixel].append(source)
    batch, channels = shape[0], shape[1] // math.prod(kernel)
    elements = len(pixels)
    data = emit_pad_end(emit, emit_reshape(emit, node.input[0], [batch, channels, elements]), [0, 0, 1])
    total = ""
    for depth in range(max(1, *map(len, sources))):
        index = [found[depth] if depth < len(found) else elements for found in sources]
        part = emit("Gather", data, emit.integers(index), axis=2)
        total = emit("Add", total, part) if total else part
    emit.result("Reshape", total, emit.integers([batch, channels, *extents]))
    return None


def _lower_max_pool(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape, out = emit.shape(node.input[0]), emit.shape(node.output[0] or node.output[1])
    if shape is None or out is None:
        return "the shapes of its input and output are not known"
    if text_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "its positions are used, and its pads are not explicit"
    kernel = integers_attribute(node, "kernel_shape", [])
    rank, size = len(kernel), math.prod(kernel)
    if size > MAX_WINDOW:
        return f"its positions are used, and its window has {size} elements; at most {MAX_WINDOW} are supported"
    strides, dilations = (integers_attribute(node, name, [1] * rank) for name in ("strides", "dilations"))
    pads = integers_attribute(node, "pads", [0] * (2 * rank))
    extents, rows, pixels = shape[2:], shape[0] * shape[1], math.prod(shape[2:])
    positions = window_positions(extents, kernel, strides, dilations, pads, out[2:])
    windows = len(positions)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(emit.element_type_of(node.input[0]))
    lowest = -np.inf if dtype.kind == "f" else np.iinfo(dtype).min
    data = emit_reshape(emit, node.input[0], [rows, pixels])
    data = emit("Concat", data, emit.constant(np.full((rows, 1), lowest), dtype), axis=1)
    seen = emit("Gather", data, emit.constant(np.where(positions < 0, pixels, positions), np.int64), axis=1)
    which = emit("ArgMax", seen, axis=2, keepdims=1)
    emit.result("Reshape", emit("GatherElements", seen, which, axis=2), emit.integers(out))
    places = np.arange(pixels).reshape(extents)
    if integer_attribute(node, "storage_order", 0):  # columns first
        places = np.arange(pixels).reshape(extents[::-1]).T
    table = places.reshape(-1)[positions]
    first = emit.constant((np.arange(windows) * size).reshape(1, windows, 1), np.int64)
    place = emit("Gather", emit.integers(table.reshape(-1).tolist()), emit("Add", which, first), axis=0)
    offset = emit.constant((np.arange(rows) * pixels).reshape(rows, 1, 1), np.int64)
    emit.result("Reshape", emit("Add", place, offset), emit.integers(out), index=1)
    return None


def _lower_max_unpool(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape, wanted = emit.shape(node.input[0]), emit.constant_value(node.input[2])
    if shape is None or wanted is None:
        return "its output shape is not a constant"
    extents = wanted.reshape(-1).tolist()
    empty = emit.constant(np.zeros(math.prod(extents)))
    flat = [emit_reshape(emit, name, [math.prod(shape)]) for name in node.input[:2]]
    placed = emit("ScatterElements", empty, flat[1], flat[0], axis=0)
    emit.result("Reshape", placed, emit.integers(extents))
    return None


def window_positions(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
    spans: Sequence[int],
) -> _Array:
    """int64[windows, elements of the kernel]: where each element of each window lies in the image; -1 outside."""
    position = np.zeros((*spans, *kernel), np.int64)
    inside = np.ones((*spans, *kernel), bool)
    rank = len(kernel)
    for axis, extent in enumerate(extents):
        along = np.arange(spans[axis])[:, None] * strides[axis] + np.arange(kernel[axis]) * dilations[axis] - pads[axis]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = along.shape
        position = position * extent + along.reshape(shape)
        inside &= ((along >= 0) & (along < extent)).reshape(shape)
    return np.where(inside, position, -1).reshape(math.prod(spans), math.prod(kernel))


def uses_positions(node: NodeProto) -> bool:
    """Whether a ``MaxPool`` is asked for the positions of its results."""
    return any(node.output[1:])


def has_output_shape(node: NodeProto) -> bool:
    """Whether a ``MaxUnpool`` is given its output's shape."""
    return len(node.input) > 2 and bool(node.input[2])


WINDOW_LOWERINGS: Mapping[str, Lowering] = {
    "Col2Im": _lower_col2im,
    "MaxPool": _lower_max_pool,
    "MaxUnpool": _lower_max_unpool,
}
"""By operator."""
