"""Float convolution on NCHW: padded phase planes, an im2col tile in cache, a register tile.

*Planes.* A strided convolution reads, for tap (ky, kx), rows ``oy*sy + ky*dy`` and columns ``ox*sx + kx*dx``. The padded
input is split into its sy x sx phases, ``plane[(py, px)][y, x] = padded[y*sy + py, x*sx + px]``; then every tap is a
window of one plane, shifted by (ky*dy // sy, kx*dx // sx), and rows of a window are contiguous.

*Pitch.* Planes are stored with a fixed ``pitch`` and output pixels are numbered ``q = oy*pitch + ox``. A tap's operand
for consecutive q is then consecutive in memory across row ends too, so vectors need no edge cases; the columns between
the output width and the pitch are computed and dropped. For a 3x3 kernel that is 2 columns per row.

*Blocks.* A block is ``rows_per_block`` output rows, rounded up to whole vectors of q. Within it the im2col columns of
``tile.vectors`` vectors are copied to a contiguous ``[K, vectors]`` scratch that stays in cache while all output
channels pass over it. Where few output channels share the input (depthwise), the copy does not pay: planes are
read directly.

The result leaves through one sblock ``out[n, c, oy, ox] = acc[...]``: elementwise consumers fuse into it.
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
    region,
    register_tile,
    scratch,
    serial,
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
    def phases(self) -> tuple[int, int]:
        """Planes per axis that some tap reads."""
        g = self.geometry
        return tuple(  # type: ignore[return-value]
            max(k * g.dilations[a] % g.strides[a] for k in range(g.kernel[a])) + 1 for a in (0, 1)
        )

    @property
    def reach(self) -> tuple[int, int]:
        """Largest shift of a tap's window in its plane, rows and columns."""
        g = self.geometry
        return tuple((g.kernel[a] - 1) * g.dilations[a] // g.strides[a] for a in (0, 1))  # type: ignore[return-value]

    @property
    def pitch(self) -> int:
        """Elements from one plane row to the next."""
        return self.geometry.out_width + self.reach[1]

    @property
    def blocks(self) -> int:
        """Row blocks of one image."""
        return -(-self.geometry.out_height // self.rows_per_block)

    @property
    def block_vectors(self) -> int:
        """Vectors of q in a block, dropped columns included."""
        pixels = (self.rows_per_block - 1) * self.pitch + self.geometry.out_width
        return -(-pixels // self.lanes)

    @property
    def plane_rows(self) -> int:
        """Rows of a plane, enough that no tile reads past its end."""
        last_block = (self.blocks - 1) * self.rows_per_block * self.pitch
        elements = last_block + self.block_vectors * self.lanes + self.reach[0] * self.pitch + self.reach[1]
        return -(-elements // self.pitch)

    @property
    def plane_elements(self) -> int:
        """Elements from one plane to the next: an odd number of cache lines, so planes spread over the cache's sets."""
        lines = -(-self.plane_rows * self.pitch // 16)
        return (lines | 1) * 16

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
        full, rest = divmod(self.block_vectors, self.tile.vectors)
        tiles = [self.tile] * full + [TileShape(self.tile.rows, rest)] * bool(rest)
        multiply = sum(self._tile_cycles(tile) for tile in tiles) * self.channel_tiles
        copy = self.taps * self.block_vectors * 1.5 if self.copies_columns else 0
        store = g.group_out_channels * self.rows_per_block * (g.out_width / self.lanes + 6)
        return self.blocks * (multiply + copy + store + _BLOCK_CYCLES)

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
            block_bytes = plan.channel_tiles * tile.rows * plan.block_vectors * vector.lanes * 4
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


class _ConvEmitter:
    """Emits one kernel; the buffers are attributes so that the stages read alike."""

    def __init__(self, plan: ConvPlan, spatial_rank: int) -> None:
        self.plan = plan
        self.spatial_rank = spatial_rank

    def nchw(self, n: Any, c: Any, y: Any, x: Any) -> list[Any]:
        """Indices of an activation; a 1-D convolution has no y."""
        return [n, c, y, x] if self.spatial_rank == 2 else [n, c, x]

    def emit(self) -> None:
        plan, g = self.plan, self.plan.geometry
        data = parameter("data", self.nchw(g.batch, g.in_channels, g.height, g.width))
        weight = parameter("weight", plan.packed_weight_shape)
        out = parameter("out", self.nchw(g.batch, g.out_channels, g.out_height, g.out_width))
        with T.sblock("root"):
            T.reads()
            T.writes()
            phases = plan.phases[0] * plan.phases[1]
            planes = scratch("planes", (g.group_in_channels * phases, plan.plane_elements))
            acc_rows = plan.channel_tiles * plan.tile.rows
            acc = scratch("acc", (acc_rows, plan.block_vectors * plan.lanes))
            with serial(g.batch) as n, serial(g.groups) as group:
                self.fill_planes(data, planes, n, group)
                with serial(plan.blocks) as block:
                    with T.sblock("multiply"):
                        vg, vb = axis(g.groups, group), axis(plan.blocks, block)
                        T.reads(planes[whole(planes)], weight[whole(weight)])
                        T.writes(acc[whole(acc)])
                        self.multiply(planes, weight, acc, vg, vb)
                    self.store(acc, out, n, group, block)

    def fill_planes(self, data: Any, planes: Any, n: Any, group: Any) -> None:
        plan, g = self.plan, self.plan.geometry
        channels = g.group_in_channels
        with T.sblock("planes"):
            vn, vg = axis(g.batch, n), axis(g.groups, group)
            first = vg * index(channels)
            T.reads(data[region(*self.nchw((vn, 1), (first, channels), (index(0), g.height), (index(0), g.width)))])
            T.writes(planes[whole(planes)])
            with (
                serial(channels) as c,
                serial(plan.phases[0]) as py,
                serial(plan.phases[1]) as px,
                serial(plan.plane_rows) as y,
            ):
                in_y = y * g.strides[0] + py - g.pads[0]
                plane = (c * plan.phases[0] + py) * plan.phases[1] + px
                with serial(plan.pitch) as x:
                    in_x = x * g.strides[1] + px - g.pads[1]
                    inside = tirx.all(in_y >= 0, in_y < g.height, in_x >= 0, in_x < g.width)
                    value = data[tuple(self.nchw(vn, first + c, in_y, in_x))]
                    zero = tirx.const(0, DTYPE)
                    T.buffer_store(planes, tirx.if_then_else(inside, value, zero), [plane, y * plan.pitch + x])

    def multiply(self, planes: Any, weight: Any, acc: Any, group: Any, block: Any) -> None:
        plan = self.plan
        full, rest = divmod(plan.block_vectors, plan.tile.vectors)
        width = plan.tile.vectors * plan.lanes
        columns = scratch("columns", (plan.taps, width)) if plan.copies_columns else None
        with serial(full) as tile:
            self.column_tile(planes, weight, acc, columns, group, block, tile * width, plan.tile)
        if rest:
            narrow = TileShape(plan.tile.rows, rest)
            self.column_tile(planes, weight, acc, columns, group, block, index(full * width), narrow)

    def column_tile(
        self,
        planes: Any,
        weight: Any,
        acc: Any,
        columns: Any,
        group: Any,
        block: Any,
        first: Any,
        tile: TileShape,
    ) -> None:
        plan, g, lanes = self.plan, self.plan.geometry, self.plan.lanes
        vector_dtype = f"{DTYPE}x{lanes}"
        origin = block * (plan.rows_per_block * plan.pitch) + first

        def from_plane(c: Any, ky: Any, kx: Any, vector: int) -> Any:
            row, column = ky * g.dilations[0], kx * g.dilations[1]
            phase = tirx.floormod(row, g.strides[0]) * plan.phases[1] + tirx.floormod(column, g.strides[1])
            shift = tirx.floordiv(row, g.strides[0]) * plan.pitch + tirx.floordiv(column, g.strides[1])
            plane = c * (plan.phases[0] * plan.phases[1]) + phase
            return planes.vload([plane, origin + shift + vector * lanes], vector_dtype)

        if columns is not None:
            with serial(g.group_in_channels) as c, serial(g.kernel[0]) as ky, serial(g.kernel[1]) as kx:
                k = (c * g.kernel[0] + ky) * g.kernel[1] + kx
                for v in range(tile.vectors):
                    T.buffer_store(columns, from_plane(c, ky, kx, v), [k, ramp(index(v * lanes), lanes)])

        def load_vector(k: Any, vector: int) -> Any:
            if columns is not None:
                return columns.vload([k, index(vector * lanes)], vector_dtype)
            kernel_taps = g.kernel[0] * g.kernel[1]
            tap = tirx.floormod(k, kernel_taps)
            ky, kx = tirx.floordiv(tap, g.kernel[1]), tirx.floormod(tap, g.kernel[1])
            return from_plane(tirx.floordiv(k, kernel_taps), ky, kx, vector)

        with serial(plan.channel_tiles) as channel_tile:
            register_tile(
                tile,
                lanes,
                plan.taps,
                lambda k, row: weight[group, channel_tile, k, index(row)],
                load_vector,
                lambda row, v, value: T.buffer_store(
                    acc, value, [channel_tile * plan.tile.rows + row, ramp(first + v * lanes, lanes)]
                ),
            )

    def store(self, acc: Any, out: Any, n: Any, group: Any, block: Any) -> None:
        plan, g = self.plan, self.plan.geometry
        channels, rows = g.group_out_channels, plan.rows_per_block
        with serial(channels) as c, serial(rows) as row, serial(g.out_width) as x, T.sblock("out"):
            vn = axis(g.batch, n)
            vc = axis(g.out_channels, group * channels + c)
            vy = axis(g.out_height, block * rows + row)
            vx = axis(g.out_width, x)
            if g.out_height % rows:
                T.where(block * rows + row < g.out_height)
            source = acc[tirx.floormod(vc, channels), tirx.floormod(vy, rows) * plan.pitch + vx]
            T.reads(source)
            T.writes(out[tuple(self.nchw(vn, vc, vy, vx))])
            T.sblock_attr({EPILOGUE_ATTR: 1})
            T.buffer_store(out, source, self.nchw(vn, vc, vy, vx))


def conv_kernel(plan: ConvPlan, spatial_rank: int = 2) -> tirx.PrimFunc:
    """Build the kernel (data, packed weight, out): float32 NCHW (NCW for ``spatial_rank`` 1), fusable with consumers."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 4 = kOutEWiseFusable: FuseOps may append elementwise operators.
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            _ConvEmitter(plan, spatial_rank).emit()
        return builder.get()
