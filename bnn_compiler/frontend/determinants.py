"""``Det`` of matrices of up to four rows, by expansion along the first row."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import NodeProto

from .node_emitter import Lowering, NodeEmitter
from .versioned_operators import emit_reshape, emit_slice

MAX_ROWS = 4
"""The expansion has n! products, and it cancels: an elimination with pivots would be better beyond."""


def _lower_det(node: NodeProto, emit: NodeEmitter) -> str | None:
    shape = emit.shape(node.input[0])
    if shape is None:
        return "the shape of its input is not known"
    size, rank = shape[-1], len(shape)
    if size > MAX_ROWS:
        return f"it is of matrices of {size} rows; at most {MAX_ROWS} are supported"
    rows = [emit_slice(emit, node.input[0], rank - 2, row, row + 1) for row in range(size)]
    elements = [
        [emit_reshape(emit, emit_slice(emit, row, rank - 1, column, column + 1), shape[:-2]) for column in range(size)]
        for row in rows
    ]
    emit.result("Identity", _expand(emit, elements))
    return None


def _expand(emit: NodeEmitter, rows: list[list[str]]) -> str:
    if len(rows) == 1:
        return rows[0][0]
    total = ""
    for column, element in enumerate(rows[0]):
        minor = [row[:column] + row[column + 1 :] for row in rows[1:]]
        product = emit("Mul", element, _expand(emit, minor))
        total = emit("Sub" if column % 2 else "Add", total, product) if total else product
    return total


DETERMINANT_LOWERINGS: Mapping[str, Lowering] = {"Det": _lower_det}
"""By operator."""
