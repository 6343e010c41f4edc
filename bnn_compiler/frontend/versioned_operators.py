"""Operators whose spelling depends on the operator set: operands that were attributes before."""

from __future__ import annotations

from collections.abc import Sequence

from .node_emitter import NodeEmitter


def emit_squeeze(emit: NodeEmitter, data: str, axes: Sequence[int]) -> str:
    """``data`` without these axes of size 1."""
    if emit.opset < 13:
        return emit("Squeeze", data, axes=list(axes))
    return emit("Squeeze", data, emit.integers(axes))


def emit_unsqueeze(emit: NodeEmitter, data: str, axes: Sequence[int]) -> str:
    """``data`` with axes of size 1 at these positions of the result."""
    if emit.opset < 13:
        return emit("Unsqueeze", data, axes=list(axes))
    return emit("Unsqueeze", data, emit.integers(axes))


def emit_slice(emit: NodeEmitter, data: str, axis: int, start: int, end: int) -> str:
    """``data[start:end]`` along one axis."""
    if emit.opset < 10:
        return emit("Slice", data, axes=[axis], starts=[start], ends=[end])
    return emit("Slice", data, *(emit.integers([value]) for value in (start, end, axis)))


def emit_split(emit: NodeEmitter, data: str, axis: int, sizes: Sequence[int]) -> list[str]:
    """Parts of ``data`` of these sizes along one axis."""
    if len(sizes) == 1:
        return [data]
    if emit.opset < 13:
        return emit.several("Split", len(sizes), data, axis=axis, split=list(sizes))
    return emit.several("Split", len(sizes), data, emit.integers(sizes), axis=axis)


def emit_reshape(emit: NodeEmitter, data: str, shape: Sequence[int]) -> str:
    """``data`` in another shape."""
    return emit("Reshape", data, emit.integers(shape))


def emit_reduce(emit: NodeEmitter, operator: str, data: str, axes: Sequence[int]) -> str:
    """A reduction over these axes, which stay with size 1."""
    if emit.opset < (13 if operator == "ReduceSum" else 18):
        return emit(operator, data, axes=list(axes), keepdims=1)
    return emit(operator, data, emit.integers(axes), keepdims=1)


def emit_pad_end(emit: NodeEmitter, data: str, amounts: Sequence[int]) -> str:
    """``data`` with zeros behind its last element along each axis."""
    pads = [*([0] * len(amounts)), *amounts]
    if emit.opset < 11:
        return emit("Pad", data, pads=pads)
    return emit("Pad", data, emit.integers(pads))
