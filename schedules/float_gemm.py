"""Float matrix product ``y[M, N] = x[M, K] @ w[K, N]``.

Vectors run over N, x is broadcast. w is re-packed to ``[N / width, K, width]``, at compile time where it is a constant,
else by the kernel itself, so that a register tile streams it front to back: at batch 1 the product is bound by the
memory that w comes from, and one sequential stream is what the prefetcher follows best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import (
    DTYPE,
    EPILOGUE_ATTR,
    TileShape,
    axis,
    index,
    parameter,
    ramp,
    register_tile,
    scratch,
    serial,
    shared,
    tile_shapes,
    whole,
)
from .float_vector import FloatVector


@dataclass(frozen=True)
class GemmPlan:
    """Sizes and register tile of one product; ``weight_is_packed`` says who packs w."""

    m: int
    n: int
    k: int
    lanes: int
    tile: TileShape
    weight_is_packed: bool

    @property
    def width(self) -> int:
        """Columns of y per register tile."""
        return self.tile.vectors * self.lanes

    @property
    def column_tiles(self) -> int:
        """Register tiles over N."""
        return -(-self.n // self.width)

    @property
    def packed_weight_shape(self) -> tuple[int, int, int]:
        """Shape [column tiles, K, width] of the packed weight."""
        return (self.column_tiles, self.k, self.width)

    def cycles(self) -> float:
        """Estimated cycles, to compare tiles for one product."""
        full, rest = divmod(self.m, self.tile.rows)
        step = full * self.tile.cycles_per_step()
        if rest:
            step += TileShape(rest, self.tile.vectors).cycles_per_step()
        # About two cycles per vector of w from the outer caches, whatever M is.
        stream = self.tile.vectors * 2
        return self.column_tiles * self.k * (step + stream)


def plan_gemm(m: int, n: int, k: int, vector: FloatVector, weight_is_packed: bool) -> GemmPlan:
    """Choose the register tile by the cycle model."""
    plans = (GemmPlan(m, n, k, vector.lanes, tile, weight_is_packed) for tile in tile_shapes(vector, m))
    return min(plans, key=lambda plan: plan.cycles())


def pack_gemm_weight(plan: GemmPlan, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reorder weight [K, N] to ``plan.packed_weight_shape``, zero past column N."""
    padded = np.zeros((plan.k, plan.column_tiles * plan.width), np.float32)
    padded[:, : plan.n] = weight
    return np.ascontiguousarray(padded.reshape(plan.k, plan.column_tiles, plan.width).transpose(1, 0, 2))


def gemm_kernel(plan: GemmPlan) -> tirx.PrimFunc:
    """Build the kernel (x, w, y); w is packed or [K, N] as ``plan.weight_is_packed`` says. Fusable with consumers."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            x = parameter("x", (plan.m, plan.k))
            w = parameter("w", plan.packed_weight_shape if plan.weight_is_packed else (plan.k, plan.n))
            y = parameter("y", (plan.m, plan.n))
            with T.sblock("root"):
                T.reads()
                T.writes()
                panel = None if plan.weight_is_packed else scratch("panel", (plan.k, plan.width))
                acc = scratch("acc", (plan.m, plan.width))
                with shared(plan.column_tiles, plan.cycles()) as column:
                    if panel is not None:
                        _pack_panel(plan, w, panel, column)
                    _multiply(plan, x, w, panel, acc, column)
                    _store(plan, acc, y, column)
        return builder.get()


def _pack_panel(plan: GemmPlan, w: Any, panel: Any, column: Any) -> None:
    with T.sblock("panel"):
        vn = axis(plan.column_tiles, column)
        T.reads(w[whole(w)])
        T.writes(panel[whole(panel)])
        with serial(plan.k) as k, serial(plan.width) as i:
            n = vn * plan.width + i
            value = tirx.if_then_else(n < plan.n, w[k, n], tirx.const(0, DTYPE))
            T.buffer_store(panel, value, [k, i])


def _multiply(plan: GemmPlan, x: Any, w: Any, panel: Any, acc: Any, column: Any) -> None:
    lanes = plan.lanes
    source = w if panel is None else panel

    def load_w(k: Any, vector: int, tile: Any) -> Any:
        lane = index(vector * lanes)
        position = [tile, k, lane] if panel is None else [k, lane]
        return source.vload(position, f"{DTYPE}x{lanes}")

    with T.sblock("multiply"):
        vn = axis(plan.column_tiles, column)
        T.reads(x[whole(x)], source[whole(source)])
        T.writes(acc[whole(acc)])

        def row_tile(first: Any, rows: int) -> None:
            register_tile(
                TileShape(rows, plan.tile.vectors),
                lanes,
                plan.k,
                lambda k, row: x[first + row, k],
                lambda k, vector: load_w(k, vector, vn),
                lambda row, v, value: T.buffer_store(acc, value, [first + row, ramp(index(v * lanes), lanes)]),
            )

        full, rest = divmod(plan.m, plan.tile.rows)
        with serial(full) as tile:
            row_tile(tile * plan.tile.rows, plan.tile.rows)
        if rest:
            row_tile(index(full * plan.tile.rows), rest)


def _store(plan: GemmPlan, acc: Any, y: Any, column: Any) -> None:
    with serial(plan.m) as m, serial(plan.width) as i, T.sblock("out"):
        vm = axis(plan.m, m)
        vn = axis(plan.n, column * plan.width + i)
        if plan.n % plan.width:
            T.where(column * plan.width + i < plan.n)
        source = acc[vm, tirx.floormod(vn, plan.width)]
        T.reads(source)
        T.writes(y[vm, vn])
        T.sblock_attr({EPILOGUE_ATTR: 1})
        T.buffer_store(y, source, [vm, vn])
