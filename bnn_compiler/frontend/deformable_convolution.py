"""``DeformConv`` as gathers, weighted sums and a matrix product.

Element (i, j) of the kernel at output pixel (y, x) reads the image at

    (y * stride - pad + i * dilation + offset_y, x * stride - pad + j * dilation + offset_x)

by bilinear interpolation: the four pixels around it, each with the product of its distances to the opposite corner,
and nothing for those outside. What is read, times the mask, is the column of a convolution: one product with the
weight. Shapes, with G ``offset_group``: X [N, C, H, W], weight [M, C / group, kH, kW], offset
[N, G * kH * kW * 2, oH, oW], mask [N, G * kH * kW, oH, oW].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import integer_attribute, integers_attribute
from .versioned_operators import emit_reshape


def _lower_deform_conv(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, weight, offset, bias, mask = (*node.input, "", "")[:5]
    shapes = [emit.shape(name) for name in (data, weight, offset)]
    image, filters, moved = ((0,) * 4 if shape is None else shape for shape in shapes)
    if None in shapes or any(len(shape) != 4 for shape in (image, filters, moved)):
        return "its operands are not of rank 4 and known shapes"
    batch, channels = image[:2]
    kernel, spans = filters[2:], moved[2:]
    group, offsets = integer_attribute(node, "group", 1), integer_attribute(node, "offset_group", 1)
    size, pixels = math.prod(kernel), math.prod(spans)
    places = []
    parts = emit_reshape(emit, offset, [batch, offsets, size, 2, pixels])
    for axis in range(2):
        step = emit("Gather", parts, emit.scalar(axis, np.int64), axis=3)
        places.append(emit("Add", step, emit.constant(_positions(node, axis, kernel[axis], spans, kernel))))
    sampled = _sample(emit, data, places, image, offsets)  # [N, G, C / G, kH * kW * oH * oW]
    columns = emit_reshape(emit, sampled, [batch, offsets, channels // offsets, size, pixels])
    if mask:
        columns = emit("Mul", columns, emit_reshape(emit, mask, [batch, offsets, 1, size, pixels]))
    columns = emit_reshape(emit, columns, [batch, group, channels // group * size, pixels])
    rows = emit_reshape(emit, weight, [group, filters[0] // group, channels // group * size])
    result = emit_reshape(emit, emit("MatMul", rows, columns), [batch, filters[0], *spans])
    if bias:
        emit.result("Add", result, emit_reshape(emit, bias, [filters[0], 1, 1]))
    else:
        emit.result("Identity", result)
    return None


def _positions(
    node: NodeProto, axis: int, extent: int, spans: tuple[int, ...], kernel: tuple[int, ...]
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """[kH * kW, oH * oW]: where elements of the kernel lie along an axis without offsets."""
    stride, dilation = (integers_attribute(node, name, [1, 1])[axis] for name in ("strides", "dilations"))
    pad = integers_attribute(node, "pads", [0] * 4)[axis]
    along = np.arange(extent)[:, None] * dilation + np.arange(spans[axis]) * stride - pad
    shape = (extent, 1, spans[0], 1) if axis == 0 else (1, extent, 1, spans[1])
    full = np.broadcast_to(along.reshape(shape), (*kernel, *spans))
    return full.reshape(math.prod(kernel), math.prod(spans)).astype(np.float64)


def _sample(emit: NodeEmitter, data: str, places: list[str], image: tuple[int, ...], offsets: int) -> str:
    """The image at fractional places [N, G, kH * kW, oH * oW]."""
    batch, channels, *extents = image
    lines = emit_reshape(emit, data, [batch, offsets, channels // offsets, math.prod(extents)])
    floors = [emit("Floor", place) for place in places]
    above = [emit("Sub", place, floor) for place, floor in zip(places, floors, strict=True)]
    below = [emit("Sub", emit.scalar(1.0), part) for part in above]
    total = ""
    for corner in itertools.product((0, 1), repeat=2):
        weight, index = "", ""
        for axis, (upper, extent) in enumerate(zip(corner, extents, strict=True)):
            place = emit("Add", floors[axis], emit.scalar(1.0)) if upper else floors[axis]
            inside = emit("Clip", place, emit.scalar(0.0), emit.scalar(extent - 1.0))
            within = emit("Cast", emit("Equal", inside, place), to=emit.element_type)
            factor = emit("Mul", above[axis] if upper else below[axis], within)
            weight = emit("Mul", weight, factor) if weight else factor
            row = emit("Cast", inside, to=onnx.TensorProto.INT64)
            index = emit("Add", emit("Mul", index, emit.scalar(extent, np.int64)), row) if index else row
        # One index for all channels of a group.
        flat = [emit_reshape(emit, name, [batch, offsets, 1, -1]) for name in (index, weight)]
        wide = emit("Expand", flat[0], emit.integers([1, 1, channels // offsets, 1]))
        part = emit("Mul", emit("GatherElements", lines, wide, axis=3), flat[1])
        total = emit("Add", total, part) if total else part
    return total


DEFORMABLE_LOWERINGS: Mapping[str, Lowering] = {"DeformConv": _lower_deform_conv}
"""By operator."""
