"""Transposition of float matrices in vectors: lanes x lanes tiles through shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import DTYPE, axis, index, parameter, ramp, serial, whole


@dataclass(frozen=True)
class TransposePlan:
    """A permutation of axes that is ``batch`` transpositions of [rows, columns] matrices in memory."""

    shape: tuple[int, ...]
    permutation: tuple[int, ...]
    batch: int
    rows: int
    columns: int
    lanes: int


def plan_transpose(shape: Sequence[int], permutation: Sequence[int], lanes: int) -> TransposePlan | None:
    """Describe a permutation as transpositions, or return None where it is none or too small for tiles of ``lanes``.

    Axes of extent 1 move freely; the others must be: some in place, then the rest rotated, as in NCHW to NHWC.
    """
    wide = [axis for axis in permutation if shape[axis] > 1]
    kept = 0
    while kept < len(wide) and wide[kept] == sorted(wide)[kept]:
        kept += 1
    ordered, moved = sorted(wide)[kept:], wide[kept:]
    if not moved:
        return None
    split = ordered.index(moved[0])
    if moved != ordered[split:] + ordered[:split]:
        return None
    batch = math.prod(shape[axis] for axis in wide[:kept])
    rows, columns = (math.prod(shape[axis] for axis in axes) for axes in (ordered[:split], ordered[split:]))
    if min(rows, columns) < lanes:
        return None
    return TransposePlan(tuple(shape), tuple(permutation), batch, rows, columns, lanes)


def transpose_kernel(plan: TransposePlan) -> tirx.PrimFunc:
    """Build the kernel (x, y); not fusable."""
    lanes = plan.lanes
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            x = parameter("x", plan.shape)
            y = parameter("y", [plan.shape[axis] for axis in plan.permutation])
            with T.sblock("root"):
                T.reads()
                T.writes()
                with (
                    serial(plan.batch) as b,
                    serial(-(-plan.rows // lanes)) as row_tile,
                    serial(-(-plan.columns // lanes)) as column_tile,
                    T.sblock("tile"),
                ):
                    vb = axis(plan.batch, b)
                    # The last tile overlaps the one before.
                    row = axis(plan.rows, tirx.min(row_tile * lanes, index(plan.rows - lanes)))
                    column = axis(plan.columns, tirx.min(column_tile * lanes, index(plan.columns - lanes)))
                    T.reads(x[whole(x)])
                    T.writes(y[whole(y)])
                    base = vb * (plan.rows * plan.columns)
                    vectors = [
                        T.Bind(x.vload(flat(x, base + (row + i) * plan.columns + column), f"{DTYPE}x{lanes}"))
                        for i in range(lanes)
                    ]
                    for j, value in enumerate(transposed(vectors, lanes)):
                        position = base + (column + j) * plan.rows + row
                        T.buffer_store(y, value, [*flat(y, position)[:-1], ramp(position, lanes)])
        return builder.get()


def flat(buffer: Any, position: Any) -> list[Any]:
    """Indices of a position in memory (elements from the start): the last index runs past its axis."""
    return [*(index(0) for _ in buffer.ty.shape[1:]), position]


def transposed(vectors: list[Any], lanes: int) -> list[Any]:
    """Emit the transposition of ``lanes`` vectors of ``lanes``.

    Exchange off-diagonal blocks of size 1, 2, 4, ... (Eklundh): log2(lanes) shuffles per vector.
    """
    size = 1
    while size < lanes:
        exchanged = list(vectors)
        for i in range(lanes):
            if i & size:
                continue
            pair = [vectors[i], vectors[i + size]]
            upper = [lane + lanes - size if lane & size else lane for lane in range(lanes)]
            lower = [lane + lanes if lane & size else lane + size for lane in range(lanes)]
            exchanged[i] = T.Bind(tirx.Shuffle(pair, upper))
            exchanged[i + size] = T.Bind(tirx.Shuffle(pair, lower))
        vectors = exchanged
        size *= 2
    return vectors
