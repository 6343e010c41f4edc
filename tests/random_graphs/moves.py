"""Random operators that only move, repeat, select or pad elements, as exporters leave them between sign and product."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .graph_writer import Exactness, GraphWriter, Tensor, exact

Move = Callable[[GraphWriter, Tensor], Tensor]


def _identity(writer: GraphWriter, data: Tensor) -> Tensor:
    return replace(data, name=writer.node(writer.random.choice(["Identity", "Dropout"]), data.name))


def _there_and_back(writer: GraphWriter, data: Tensor) -> Tensor:
    """A layout island: Transpose, perhaps something in between, and the inverse Transpose."""
    order = list(range(len(data.shape)))
    writer.random.shuffle(order)
    there = writer.node("Transpose", data.name, perm=order)
    if writer.random.randrange(2):
        there = writer.node("Identity", there)
    return replace(data, name=writer.node("Transpose", there, perm=[order.index(axis) for axis in range(len(order))]))


def _reshape_back(writer: GraphWriter, data: Tensor) -> Tensor:
    batch = data.shape[0]
    flat = writer.node("Reshape", data.name, writer.constant([batch, -1], np.int64))
    if writer.random.randrange(3) == 0:
        shape = writer.node("Shape", data.name)
    else:
        shape = writer.constant(list(data.shape), np.int64)
    return replace(data, name=writer.node("Reshape", flat, shape))


def _unsqueeze_squeeze(writer: GraphWriter, data: Tensor) -> Tensor:
    axis = writer.random.randrange(len(data.shape) + 1)
    there = writer.axes_node("Unsqueeze", data.name, [axis], since=13)
    return replace(data, name=writer.axes_node("Squeeze", there, [axis], since=13))


def _duplicate_channels(writer: GraphWriter, data: Tensor) -> Tensor:
    shape = (data.shape[0], 2 * data.shape[1], *data.shape[2:])
    other = data.name if writer.random.randrange(2) else writer.node("Neg", data.name)
    signs = data.signs if other == data.name else _changeable_signs(data)
    return replace(data, name=writer.node("Concat", data.name, other, axis=1), shape=shape, signs=signs)


def _split_concat(writer: GraphWriter, data: Tensor) -> Tensor:
    channels = data.shape[1]
    if channels < 2:
        return data
    cut = writer.random.randrange(1, channels)
    if writer.opset < 13:
        first = writer.node("Split", data.name, outputs=2, axis=1, split=[cut, channels - cut])
    else:
        first = writer.node("Split", data.name, writer.constant([cut, channels - cut], np.int64), outputs=2, axis=1)
    second = writer.nodes[-1].output[1]
    return replace(data, name=writer.node("Concat", second, first, axis=1))


def _slice(writer: GraphWriter, data: Tensor) -> Tensor:
    axis = writer.random.randrange(1, len(data.shape))
    extent = data.shape[axis]
    start = writer.random.randrange(extent)
    step = writer.random.choice([1, 1, 2]) if writer.opset >= 10 else 1
    shape = (*data.shape[:axis], -(-(extent - start) // step), *data.shape[axis + 1 :])
    if writer.opset < 10:
        name = writer.node("Slice", data.name, axes=[axis], starts=[start], ends=[extent])
    else:
        numbers = [writer.constant([number], np.int64) for number in (start, 2**31 - 1, axis, step)]
        name = writer.node("Slice", data.name, *numbers)
    return replace(data, name=name, shape=shape)


def _gather(writer: GraphWriter, data: Tensor) -> Tensor:
    channels = data.shape[1]
    order = [writer.random.randrange(-channels, channels) for _ in range(writer.random.randrange(1, channels + 3))]
    name = writer.node("Gather", data.name, writer.constant(order, np.int64), axis=1)
    return replace(data, name=name, shape=(data.shape[0], len(order), *data.shape[2:]))


def _shuffle(writer: GraphWriter, data: Tensor) -> Tensor:
    batch, channels, *space = data.shape
    if channels % 2:
        return data
    split = writer.node("Reshape", data.name, writer.constant([batch, 2, channels // 2, *space], np.int64))
    moved = writer.node("Transpose", split, perm=[0, 2, 1, *range(3, len(data.shape) + 1)])
    return replace(data, name=writer.node("Reshape", moved, writer.constant(list(data.shape), np.int64)))


def _depth_to_space(writer: GraphWriter, data: Tensor) -> Tensor:
    if len(data.shape) != 4 or data.shape[2] % 2 or data.shape[3] % 2:
        return data
    batch, channels, height, width = data.shape
    name = writer.node("SpaceToDepth", data.name, blocksize=2)
    return replace(data, name=name, shape=(batch, 4 * channels, height // 2, width // 2))


def _pad(writer: GraphWriter, data: Tensor) -> Tensor:
    """Pads of many values, reflections and edges; ±s keeps a sign a sign, and zero may (at the product's border)."""
    random, rank = writer.random, len(data.shape)
    if rank < 3:
        return data
    begins = [0, 0, *(random.randrange(3) for _ in range(rank - 2))]
    ends = [0, 0, *(random.randrange(3) for _ in range(rank - 2))]
    mode = random.choice(["constant", "constant", "constant", "edge", "reflect"])
    reach = max(*begins, *ends)
    if mode == "reflect" and min(data.shape[2:]) <= reach:
        mode = "edge"
    value = random.choice([0.0, data.signs or 1.0, -(data.signs or 1.0), 0.5, 2.0])
    name = writer.pad(data.name, begins + ends, value, mode)
    shape = tuple(extent + begins[i] + ends[i] for i, extent in enumerate(data.shape))
    if mode != "constant":
        return replace(data, name=name, shape=shape)
    same = data.signs is not None and abs(value) == data.signs
    step = data.step if same else min(data.step, 0.5)
    padded = exact(data, name, writer, bound=max(data.bound, abs(value)), step=step, shape=shape)
    return replace(
        padded,
        exactness=max(data.exactness, padded.exactness if data.step else data.exactness),
        signs=data.signs if same else None,
        may_be_zero=data.may_be_zero or value == 0,
    )


def _max_pool(writer: GraphWriter, data: Tensor) -> Tensor:
    random, rank = writer.random, len(data.shape) - 2
    if rank < 1 or min(data.shape[2:]) < 2:
        return data
    pads = [random.randrange(2) for _ in range(2 * rank)]
    strides = [random.choice([1, 2]) for _ in range(rank)]
    name = writer.node("MaxPool", data.name, kernel_shape=[2] * rank, strides=strides, pads=pads)
    space = [(data.shape[2 + i] + pads[i] + pads[rank + i] - 2) // strides[i] + 1 for i in range(rank)]
    return replace(data, name=name, shape=(*data.shape[:2], *space))


def _changeable_signs(data: Tensor) -> float | None:
    """±s after arithmetic; what is ±s only up to rounding is not proven to stay so."""
    return None if data.exactness == Exactness.APPROXIMATE else data.signs


def _negate(writer: GraphWriter, data: Tensor) -> Tensor:
    return replace(data, name=writer.node("Neg", data.name), signs=_changeable_signs(data))


def _scale(writer: GraphWriter, data: Tensor) -> Tensor:
    factor = writer.random.choice([0.5, -2.0, 4.0])
    name = writer.node("Mul", data.name, writer.constant(factor))
    signs = _changeable_signs(data)
    signs = None if signs is None else signs * abs(factor)
    return replace(data, name=name, bound=data.bound * abs(factor), step=data.step * min(1.0, abs(factor)), signs=signs)


def _upsample(writer: GraphWriter, data: Tensor) -> Tensor:
    if len(data.shape) != 4 or math.prod(data.shape) > 600 or writer.opset < 13 or writer.is_double:
        return data
    scales = writer.constant([1, 1, 2, 2], np.float32)
    name = writer.node(
        "Resize", data.name, "", scales, mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    return replace(data, name=name, shape=(*data.shape[:2], 2 * data.shape[2], 2 * data.shape[3]))


MOVES: list[Move] = [
    _identity, _there_and_back, _reshape_back, _unsqueeze_squeeze, _duplicate_channels, _split_concat, _slice, _gather,
    _shuffle, _depth_to_space, _pad, _pad, _pad, _max_pool, _max_pool, _negate, _scale, _upsample,
]  # fmt: skip


def move(writer: GraphWriter, data: Tensor) -> Tensor:
    """A random move of ``data``'s elements; ``data`` itself where it does not apply."""
    return writer.random.choice(MOVES)(writer, data)
