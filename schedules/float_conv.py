"""Float convolution on NCHW: padded phase planes, an im2col tile in cache, a register tile.

Within a block of output rows (``float_planes``) the im2col columns of ``tile.vectors`` vectors are copied to a
contiguous ``[K, vectors]`` scratch that stays in cache while all output channels pass over it. Where few output
channels share the input (depthwise), the copy does not pay: planes are read directly.

The result leaves through one sblock ``out[n, c, oy, ox] = acc[...]``: elementwise consumers fuse into it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_planes import Planes, nchw, vector_store
from .float_tile import (
    DTYPE,
    TileShape,
    axis,
    index,
    parameter,
    register_tile,
    scratch,
    serial,
    shared,
    tile_shapes,
    whole,
)
from .float_vector import FloatVector
from .geometry import ConvGeometry

# Fewer output channels than this per input plane: reading planes in place beats copying columns.
_MIN_CHANNELS_TO_COPY_COLUMNS = 4
# A block's accumulators are written once and read once: keep them in L2.
_MAX_BLOCK_BYTES = 256 * 1024
# Above this, columns stream from L2, about two cycles a vector.
_COLUMNS_IN_L1_BYTES = 24 * 1024
# Groups are shared in at most so many parts, each of which begins with an empty border.
_GROUP_PARTS = 8
# Short loops that start and end once per block.
_BLOCK_CYCLES = 1000


@dataclass(frozen=True)
class ConvPlan:
    """Tile sizes of one convolution kernel; lengths in elements."""

    geometry: ConvGeometry
    lanes: int
    tile: TileShape
    rows_per_block: int

    @property
    def planes(self) -> Planes:
        """Layout of one group's input."""
        return Planes(self.geometry, self.geometry.group_in_channels, self.lanes, self.rows_per_block)

    @property
    def taps(self) -> int:
        """Reduction length K."""
        g = self.geometry
        return g.group_in_channels * g.kernel[0] * g.kernel[1]

    @property
    def channel_tiles(self) -> int:
        """Register tiles over one group's output channels."""
        return -(-self.geometry.group_out_channels // self.tile.rows)

    @property
    def copies_columns(self) -> bool:
        """Whether im2col columns are copied, or planes read in place."""
        return self.geometry.group_out_channels >= _MIN_CHANNELS_TO_COPY_COLUMNS

    @property
    def packed_weight_shape(self) -> tuple[int, int, int, int]:
        """Shape [groups, channel tiles, K, tile rows] of the packed weight."""
        return (self.geometry.groups, self.channel_tiles, self.taps, self.tile.rows)

    def cycles(self) -> float:
        """Estimated cycles of one image and group, to compare plans of one geometry.

        Fitted on a Zen 5 core, where it is within 15 % for the better half of the plans.
        """
        g = self.geometry
        full, rest = divmod(self.planes.block_vectors, self.tile.vectors)
        tiles = [self.tile] * full + [TileShape(self.tile.rows, rest)] * bool(rest)
        multiply = sum(self._tile_cycles(tile) for tile in tiles) * self.channel_tiles
        copy = self.taps * self.planes.block_vectors * 1.5 if self.copies_columns else 0
        store = g.group_out_channels * self.rows_per_block * (g.out_width / self.lanes + 6)
        return self.planes.blocks * (multiply + copy + store + _BLOCK_CYCLES)

    def _tile_cycles(self, tile: TileShape) -> float:
        step = tile.cycles_per_step() + 0.25
        if self.taps * tile.vectors * self.lanes * 4 > _COLUMNS_IN_L1_BYTES:
            step = max(step, 2.0 * tile.vectors + 1)
        # Accumulators to and from the block buffer, and the start of the loop.
        return step * self.taps + tile.rows * tile.vectors * 2 + 30


def plan_conv(geometry: ConvGeometry, vector: FloatVector) -> ConvPlan:
    """Choose register tile and block height by the cycle model."""
    best: tuple[float, ConvPlan] | None = None
    for rows_per_block in range(1, min(geometry.out_height, 64) + 1):
        for tile in tile_shapes(vector, geometry.group_out_channels):
            plan = ConvPlan(geometry, vector.lanes, tile, rows_per_block)
            block_bytes = plan.channel_tiles * tile.rows * plan.planes.block_vectors * vector.lanes * 4
            if rows_per_block > 1 and block_bytes > _MAX_BLOCK_BYTES:
                continue
            cycles = plan.cycles()
            if best is None or cycles < best[0]:
                best = (cycles, plan)
    assert best is not None
    return best[1]


def pack_conv_weight(plan: ConvPlan, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reorder weight [Cout, Cin/groups, kh, kw] to ``plan.packed_weight_shape``, zero past the last channel."""
    g = plan.geometry
    rows = plan.channel_tiles * plan.tile.rows
    padded = np.zeros((g.groups, rows, plan.taps), np.float32)
    padded[:, : g.group_out_channels] = weight.reshape(g.groups, g.group_out_channels, plan.taps)
    tiled = padded.reshape(g.groups, plan.channel_tiles, plan.tile.rows, plan.taps)
    return np.ascontiguousarray(tiled.transpose(0, 1, 3, 2))


@dataclass(frozen=True)
class _Buffers:
    """What a register tile reads and writes; ``columns`` where the plan copies them."""

    planes: Any
    weight: Any
    acc: Any
    columns: Any = None


def _multiply(plan: ConvPlan, buffers: _Buffers, group: Any, block: Any) -> None:
    """Emit the sblock that computes acc[channel, q] of one group and block."""
    g, layout = plan.geometry, plan.planes
    with T.sblock("multiply"):
        vg, vb = axis(g.groups, group), axis(layout.blocks, block)
        T.reads(buffers.planes[whole(buffers.planes)], buffers.weight[whole(buffers.weight)])
        T.writes(buffers.acc[whole(buffers.acc)])
        full, rest = divmod(layout.block_vectors, plan.tile.vectors)
        width = plan.tile.vectors * plan.lanes
        if plan.copies_columns:
            buffers = replace(buffers, columns=scratch("columns", (plan.taps, width)))
        with serial(full) as tile:
            _column_tile(plan, buffers, vg, vb, tile * width, plan.tile)
        if rest:
            narrow = TileShape(plan.tile.rows, rest)
            _column_tile(plan, buffers, vg, vb, index(full * width), narrow)


def _column_tile(plan: ConvPlan, buffers: _Buffers, group: Any, block: Any, first: Any, tile: TileShape) -> None:
    """Emit all output channels of the ``tile.vectors`` vectors from q = ``first`` of a block."""
    g, layout, lanes, columns = plan.geometry, plan.planes, plan.lanes, buffers.columns
    origin = block * (plan.rows_per_block * layout.pitch) + first
    if columns is not None:
        with serial(g.group_in_channels) as c, serial(g.kernel[0]) as ky, serial(g.kernel[1]) as kx:
            k = (c * g.kernel[0] + ky) * g.kernel[1] + kx
            for v in range(tile.vectors):
                value = layout.tap(buffers.planes, c, ky, kx, origin + v * lanes)
                vector_store(columns, value, k, index(v * lanes), lanes)

    def load_vector(k: Any, vector: int) -> Any:
        if columns is not None:
            return columns.vload([k, index(vector * lanes)], f"{DTYPE}x{lanes}")
        kernel_taps = g.kernel[0] * g.kernel[1]
        tap = tirx.floormod(k, kernel_taps)
        ky, kx = tirx.floordiv(tap, g.kernel[1]), tirx.floormod(tap, g.kernel[1])
        return layout.tap(buffers.planes, tirx.floordiv(k, kernel_taps), ky, kx, origin + vector * lanes)

    with serial(plan.channel_tiles) as channel_tile:
        first_row = channel_tile * plan.tile.rows
        register_tile(
            tile,
            lanes,
            plan.taps,
            lambda k, row: buffers.weight[group, channel_tile, k, index(row)],
            load_vector,
            lambda row, v, value: vector_store(buffers.acc, value, first_row + row, first + v * lanes, lanes),
        )


def conv_kernel(plan: ConvPlan, spatial_rank: int = 2) -> tirx.PrimFunc:
    """Build the kernel (data, packed weight, out), float32 NCHW (NCW for ``spatial_rank`` 1), fusable."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 4 = kOutEWiseFusable: FuseOps may append elementwise operators.
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            g, layout = plan.geometry, plan.planes
            data = parameter("data", nchw(spatial_rank, g.batch, g.in_channels, g.height, g.width))
            weight = parameter("weight", plan.packed_weight_shape)
            out = parameter("out", nchw(spatial_rank, g.batch, g.out_channels, g.out_height, g.out_width))
            with T.sblock("root"):
                T.reads()
                T.writes()
                planes = layout.allocate()
                acc = scratch("acc", (plan.channel_tiles * plan.tile.rows, layout.block_vectors * plan.lanes))
                # Threads share the images of a batch, or an image's groups, or the blocks of a group.
                cycles = plan.cycles() * g.groups
                parts = next(parts for parts in range(_GROUP_PARTS, 0, -1) if g.groups % parts == 0)
                with shared(g.batch, g.batch * cycles) as n, shared(parts, 0 if g.batch > 1 else cycles) as part:
                    layout.fill_border(planes, 0.0)
                    with serial(g.groups // parts) as own:
                        group = part * (g.groups // parts) + own
                        layout.copy_interior(data, planes, n, group * g.group_in_channels, spatial_rank)
                        with shared(layout.blocks, 0 if g.batch * parts > 1 else cycles) as block:
                            _multiply(plan, _Buffers(planes, weight, acc), group, block)
                            channels = g.group_out_channels
                            layout.store(acc, out, n, group * channels, channels, block, lambda value, _y, _x: value)
        return builder.get()
