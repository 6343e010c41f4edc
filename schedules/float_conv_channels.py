"""Float convolution on NCHW with output channels in the lanes, for maps that do not fill vectors of pixels.

A register tile holds neighbouring pixels of one output row times vectors of output channels. Each step loads one tap's
weights and broadcasts the tap's input of every pixel, straight from the (padded) image: no columns are copied, strides
and odd widths cost nothing. Results have their channels innermost; a transposition of lanes x lanes squares in cache
gives NCHW. A max-pool behind the convolution runs before it, on a few rows at a time, as maxima of whole vectors.

The result leaves through one sblock ``out[n, c, y, x] = ...``: elementwise consumers fuse into it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_conv_channels_plan import ChannelConvPlan
from .float_planes import nchw
from .float_tile import (
    DTYPE,
    EPILOGUE_ATTR,
    TileShape,
    axis,
    index,
    parameter,
    prefetch,
    ramp,
    register_tile,
    scratch,
    serial,
    shared,
    whole,
)
from .float_transpose import flat, transposed


def channel_conv_kernel(plan: ChannelConvPlan, spatial_rank: int = 2) -> tirx.PrimFunc:
    """Build the kernel (data, packed weight, out), float32 NCHW (NCW for ``spatial_rank`` 1), fusable."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 4 = kOutEWiseFusable: FuseOps may append elementwise operators.
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            g = plan.geometry
            shape = plan.pool or g
            data = parameter("data", nchw(spatial_rank, g.batch, g.in_channels, g.height, g.width))
            weight = parameter("weight", plan.packed_weight_shape)
            out = parameter("out", nchw(spatial_rank, g.batch, g.out_channels, shape.out_height, shape.out_width))
            with T.sblock("root"):
                T.reads()
                T.writes()
                padded = None
                if any(g.pads):
                    padded = scratch("padded", (g.in_channels, g.padded_height * g.padded_width))
                # Whole squares are transposed: beyond the last pixel there is something to read and to write.
                squares = -(-plan.block_pixels // plan.lanes) * plan.lanes
                pixels = plan.block_rows * plan.walk.out_width
                rows = scratch("rows", (1, max(pixels, squares), plan.width))
                pooled = None if plan.pool is None else scratch("pooled", (1, squares, plan.width))
                # An odd number of cache lines from channel to channel spreads a square over the cache's sets.
                turned = scratch("turned", (plan.width, (-(-squares // 16) | 1) * 16))
                cycles = plan.cycles()
                with shared(g.batch, g.batch * cycles) as n:
                    if padded is not None:
                        _pad(plan, data, padded, n)

                    def tile(block: Any, channels: Any, n: Any = n) -> None:
                        _multiply(plan, data if padded is None else padded, weight, rows, (n, block, channels))
                        if pooled is not None:
                            _pool(plan, rows, pooled, block, channels)
                        _transpose(plan, rows if pooled is None else pooled, turned)
                        _store(plan, turned, out, (n, block, channels))

                    # Threads share the images of a batch, or else what an image's outer loop goes over.
                    rest = 0 if g.batch > 1 else cycles
                    if plan.blocks_outside:
                        with shared(plan.blocks, rest) as block, serial(plan.channel_tiles) as channels:
                            tile(block, channels)
                    else:
                        with shared(plan.channel_tiles, rest) as channels:
                            if plan.kept_rows:
                                _keep_between_blocks(plan, rows, n, channels)
                            with serial(plan.blocks) as block:
                                tile(block, channels)
        return builder.get()


def _pad(plan: ChannelConvPlan, data: Any, padded: Any, n: Any) -> None:
    """Emit the copy of image ``n`` into a frame of zeros."""
    g = plan.geometry
    top, left, bottom, right = g.pads
    pitch = g.padded_width
    with T.sblock("pad"):
        vn = axis(g.batch, n)
        T.reads(data[whole(data)])
        T.writes(padded[whole(padded)])
        with serial(g.in_channels) as c:

            def zeros(start: Any, count: int) -> None:
                with serial(count) as i:
                    T.buffer_store(padded, tirx.const(0, DTYPE), [c, start + i])

            zeros(index(0), top * pitch)
            with serial(g.height) as y:
                row = (y + top) * pitch
                zeros(row, left)
                with serial(g.width) as x:
                    position = ((vn * g.in_channels + c) * g.height + y) * g.width + x
                    T.buffer_store(padded, data[tuple(flat(data, position))], [c, row + left + x])
                zeros(row + (left + g.width), right)
            zeros(index((g.height + top) * pitch), bottom * pitch)


def _keep_between_blocks(plan: ChannelConvPlan, rows: Any, n: Any, channels: Any) -> None:
    """Emit a sblock that touches ``rows`` outside of the loop over blocks.

    TVM allocates a buffer in the innermost loop that has all uses of it, and lets others share its memory there.
    """
    with T.sblock("rows"):
        axis(plan.geometry.batch, n)
        axis(plan.channel_tiles, channels)
        T.reads()
        T.writes(rows[whole(rows)])
        zeros = tirx.Broadcast(tirx.const(0, DTYPE), plan.lanes)
        T.buffer_store(rows, zeros, [index(0), index(0), ramp(index(0), plan.lanes)])


def _first_row(plan: ChannelConvPlan, block: Any) -> Any:
    """The row of the convolution that comes first in ``block``'s rows; negative where a pool's padding does."""
    if plan.pool is None:
        return block * plan.rows_per_block
    return block * (plan.rows_per_block * plan.pool.strides[0]) - plan.pool.pads[0]


def _multiply(plan: ChannelConvPlan, source: Any, weight: Any, rows: Any, at: tuple[Any, Any, Any]) -> None:
    """Emit the sblock that computes rows[pixel, channel] of a tile of channels.

    ``at`` is (image, block, channel tile); the rows are those that the block needs and none before did.
    """
    w, lanes = plan.walk, plan.lanes
    n, block, channels = at
    with T.sblock("multiply"):
        vn, vb, vc = axis(w.batch, n), axis(plan.blocks, block), axis(plan.channel_tiles, channels)
        T.reads(source[whole(source)], weight[whole(weight)])
        T.writes(rows[whole(rows)])
        origin = T.Bind(_first_row(plan, vb))
        # The block before left the rows that both read.
        first = T.Bind(tirx.max(origin + tirx.Select(vb > 0, index(plan.kept_rows), index(0)), 0))
        count = T.Bind(tirx.max(tirx.min(origin + plan.block_rows, w.out_height) - first, 0))
        full, rest = divmod(w.out_width, plan.tile.rows)
        channel_stride = w.padded_height * w.padded_width
        image = vn * w.in_channels if not any(w.pads) else index(0)

        with T.serial(index(0), count) as row:
            y = first + row
            slot = (y - origin) * w.out_width

            def tile_at(x: Any, shape: TileShape) -> None:
                def load_scalar(k: Any, pixel: int) -> Any:
                    tap, channel = tirx.floordiv(k, w.in_channels), tirx.floormod(k, w.in_channels)
                    ky, kx = tirx.floordiv(tap, w.kernel[1]), tirx.floormod(tap, w.kernel[1])
                    in_y = y * w.strides[0] + ky * w.dilations[0]
                    in_x = (x + pixel) * w.strides[1] + kx * w.dilations[1]
                    position = (image + channel) * channel_stride + in_y * w.padded_width + in_x
                    return source[tuple(flat(source, position))]

                def load_vector(k: Any, vector: int) -> Any:
                    if plan.channel_tiles > 1:
                        # In a network, other layers have driven the weights out of L2: 5 to 10 % slower without.
                        following = tirx.min(vc + 1, plan.channel_tiles - 1)
                        prefetch(weight, [following, k, index(vector * lanes)])
                    return weight.vload([vc, k, index(vector * lanes)], f"{DTYPE}x{lanes}")

                def store(pixel: int, vector: int, value: Any) -> None:
                    lane = index(vector * lanes)
                    T.buffer_store(rows, value, [index(0), slot + x + pixel, ramp(lane, lanes)])

                # Channels innermost: LLVM unrolls short loops, and taps along a row share inputs, which it would keep
                # in registers that the accumulators need.
                depth = (*w.kernel, w.in_channels)
                register_tile(shape, lanes, depth, load_scalar, load_vector, store)

            with serial(full) as tile:
                tile_at(tile * plan.tile.rows, plan.tile)
            if rest:
                tile_at(index(full * plan.tile.rows), TileShape(rest, plan.tile.vectors))


def _pool(plan: ChannelConvPlan, rows: Any, pooled: Any, block: Any, channels: Any) -> None:
    """Emit the sblock of maxima pooled[pixel, channel].

    A window that hangs over the edge takes the nearest row and column of the image instead: it has those anyway.
    """
    p, lanes = plan.pool, plan.lanes
    assert p is not None
    with T.sblock("pool"):
        vb = axis(plan.blocks, block)
        axis(plan.channel_tiles, channels)
        T.reads(rows[whole(rows)])
        T.writes(pooled[whole(pooled)], rows[whole(rows)])
        origin = _first_row(plan, vb)
        count = tirx.min(index(plan.rows_per_block), p.out_height - vb * plan.rows_per_block)
        with T.serial(index(0), count) as row, serial(p.out_width) as x:
            left = x * p.strides[1] - p.pads[1]
            lines = [
                tirx.max(tirx.min(row * p.strides[0] + ky, p.height - 1 - origin), -origin) for ky in range(p.kernel[0])
            ]
            columns = [T.Bind(tirx.max(tirx.min(left + kx, p.width - 1), 0)) for kx in range(p.kernel[1])]
            pixels = [T.Bind(line * p.width + column) for line in lines for column in columns]
            for lane in (index(vector * lanes) for vector in range(plan.tile.vectors)):
                best: Any = None
                for pixel in pixels:
                    value = rows.vload([index(0), pixel, lane], f"{DTYPE}x{lanes}")
                    best = value if best is None else T.Bind(tirx.max(best, value))
                T.buffer_store(pooled, best, [index(0), row * p.out_width + x, ramp(lane, lanes)])
        with serial(plan.kept_rows * p.width) as pixel:
            for lane in (index(vector * lanes) for vector in range(plan.tile.vectors)):
                last = (plan.rows_per_block * p.strides[0]) * p.width + pixel
                T.buffer_store(
                    rows, rows.vload([index(0), last, lane], f"{DTYPE}x{lanes}"), [index(0), pixel, ramp(lane, lanes)]
                )


def _transpose(plan: ChannelConvPlan, source: Any, turned: Any) -> None:
    """Emit the sblock turned[channel, pixel] = source[pixel, channel]."""
    lanes = plan.lanes
    with T.sblock("transpose"):
        T.reads(source[whole(source)])
        T.writes(turned[whole(turned)])
        with serial(-(-plan.block_pixels // lanes)) as pixels, serial(plan.tile.vectors) as channels:
            vectors = [
                T.Bind(source.vload([index(0), pixels * lanes + i, channels * lanes], f"{DTYPE}x{lanes}"))
                for i in range(lanes)
            ]
            for i, value in enumerate(transposed(vectors, lanes)):
                T.buffer_store(turned, value, [channels * lanes + i, ramp(pixels * lanes, lanes)])


def _store(plan: ChannelConvPlan, turned: Any, out: Any, at: tuple[Any, Any, Any]) -> None:
    """Emit the epilogue sblock out[n, c, y, x] = turned[channel of the tile, pixel of the block]."""
    g, (height, width) = plan.geometry, plan.result
    n, block, channels = at
    shape = plan.pool or g
    spatial_rank = len(out.ty.shape) - 2
    whole_blocks = height % plan.rows_per_block == 0
    channels_of_tile = min(plan.width, g.out_channels)
    loops = [channels_of_tile, plan.block_pixels] if whole_blocks else [channels_of_tile, plan.rows_per_block, width]
    with T.grid(*(index(extent) for extent in loops)) as (c, *pixels), T.sblock("out"):
        vn = axis(g.batch, n)
        vc = axis(g.out_channels, channels * channels_of_tile + c)
        guards = []
        if g.out_channels % channels_of_tile:
            guards.append(channels * channels_of_tile + c < g.out_channels)
        if whole_blocks:
            pixel = block * plan.block_pixels + pixels[0]
            vy = axis(shape.out_height, tirx.floordiv(pixel, shape.out_width))
            vx = axis(shape.out_width, tirx.floormod(pixel, shape.out_width))
        else:
            vy = axis(shape.out_height, block * plan.rows_per_block + pixels[0])
            vx = axis(shape.out_width, pixels[1])
            guards.append(block * plan.rows_per_block + pixels[0] < height)
        if guards:
            T.where(tirx.all(*guards))
        place = tirx.floormod(vy * shape.out_width + vx, plan.block_pixels)
        source = turned[tirx.floormod(vc, channels_of_tile), place]
        T.reads(source)
        T.writes(out[tuple(nchw(spatial_rank, vn, vc, vy, vx))])
        T.sblock_attr({EPILOGUE_ATTR: 1})
        T.buffer_store(out, source, nchw(spatial_rank, vn, vc, vy, vx))
