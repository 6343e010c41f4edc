"""Sizes of float convolutions with output channels in the lanes (``float_conv_channels``), and their packed weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .float_tile import TileShape, tile_shapes
from .float_vector import FloatVector
from .geometry import ConvGeometry

# Results of a block and channel tile are written, pooled, transposed and read once each: keep them in L2.
_MAX_BLOCK_BYTES = 256 * 1024
# Cycles per vector of that, by size of the block: in L1, partly, in L2.
_PASS_CYCLES = ((40 * 1024, 5), (128 * 1024, 8), (_MAX_BLOCK_BYTES, 15))
# A tile's weights that fit beside its input in L1 come from there again for the next pixels.
_WEIGHTS_IN_L1_BYTES = 32 * 1024
# Short loops that start and end once per block and channel tile.
_BLOCK_CYCLES = 100


@dataclass(frozen=True)
class ChannelConvPlan:
    """Tile sizes of one kernel.

    ``tile``: pixels of a row times vectors of channels. ``pool``: windows of the max-pool behind the convolution, as a
    depthwise convolution's. ``rows_per_block`` counts rows of the result. ``columns``: where a convolution reads pixel
    by pixel, its image is walked as rows of so many pixels; 0 for the image's own.
    """

    geometry: ConvGeometry
    lanes: int
    tile: TileShape
    rows_per_block: int
    pool: ConvGeometry | None = None
    columns: int = 0

    @cached_property
    def walk(self) -> ConvGeometry:
        """The convolution as it is computed."""
        g = self.geometry
        return replace(g, height=g.height * g.width // self.columns, width=self.columns) if self.columns else g

    @property
    def taps(self) -> int:
        """Reduction length K."""
        g = self.geometry
        return g.in_channels * g.kernel[0] * g.kernel[1]

    @property
    def channel_tiles(self) -> int:
        """Register tiles over the output channels."""
        return -(-self.geometry.out_channels // self.width)

    @property
    def width(self) -> int:
        """Output channels of a tile."""
        return self.tile.vectors * self.lanes

    @property
    def packed_weight_shape(self) -> tuple[int, int, int]:
        """Shape [channel tiles, K, channels of a tile] of the packed weight."""
        return (self.channel_tiles, self.taps, self.width)

    @property
    def blocks_outside(self) -> bool:
        """Whether a block's rows are computed for all channels before the next block, or a channel tile's blocks.

        Rows that are kept from block to block belong to one tile.
        """
        return self.kept_rows == 0 and (self.blocks >= 4 or self.channel_tiles == 1)

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the result, as they are walked."""
        shape = self.walk if self.pool is None else self.pool
        return shape.out_height, shape.out_width

    @property
    def blocks(self) -> int:
        """Row blocks of one image."""
        return -(-self.result[0] // self.rows_per_block)

    @property
    def block_pixels(self) -> int:
        """Results of a block."""
        return self.rows_per_block * self.result[1]

    @property
    def kept_rows(self) -> int:
        """Rows of the convolution that a block's windows share with the next block's."""
        return 0 if self.pool is None else max(self.pool.kernel[0] - self.pool.strides[0], 0)

    @property
    def block_rows(self) -> int:
        """Rows of the convolution that a block reads."""
        if self.pool is None:
            return self.rows_per_block
        return (self.rows_per_block - 1) * self.pool.strides[0] + self.pool.kernel[0]

    @property
    def block_bytes(self) -> int:
        """Size of the results of a block and channel tile, before and after transposition."""
        pixels = self.block_rows * self.walk.out_width + self.block_pixels * (1 if self.pool is None else 2)
        return pixels * self.width * 4

    def cycles(self) -> float:
        """Estimated cycles of one image, on the scale of ``ConvPlan.cycles``."""
        w = self.walk
        full, rest = divmod(w.out_width, self.tile.rows)
        tiles = [self.tile] * full + [TileShape(rest, self.tile.vectors)] * bool(rest)
        row = sum(self._tile_cycles(tile) for tile in tiles) * self.channel_tiles
        vectors = self.channel_tiles * self.width * self.blocks * -(-self.block_pixels // self.lanes)
        passes = vectors * next((cycles for size, cycles in _PASS_CYCLES if self.block_bytes <= size), 24)
        copy = 0.0
        if any(w.pads):
            copy = w.in_channels * w.padded_height * (w.padded_width / self.lanes * 2 + 10)
        pooled = 0.0
        if self.pool is not None:
            pooled = self.channel_tiles * self.result[0] * self.result[1] * self.tile.vectors
            pooled *= self.pool.kernel[0] * self.pool.kernel[1] / 2 + 1
        # A block begins with its loops and with weights that another tile has driven out of L1.
        begin = (_BLOCK_CYCLES + self.taps * self.tile.vectors * 2) * self.blocks * self.channel_tiles
        return w.out_height * row + passes + copy + pooled + begin

    def _tile_cycles(self, tile: TileShape) -> float:
        step = tile.cycles_per_step() + 0.25
        if self.taps * tile.vectors * self.lanes * 4 > _WEIGHTS_IN_L1_BYTES:
            step = max(step, 2.0 * tile.vectors + 1)
        return step * self.taps + tile.rows * tile.vectors / 2 + 15


def plan_channel_conv(
    geometry: ConvGeometry, vector: FloatVector, pool: ConvGeometry | None = None
) -> ChannelConvPlan | None:
    """Choose register tile and block height by the cycle model; None for grouped convolutions."""
    if geometry.groups > 1:
        return None
    best: tuple[float, ChannelConvPlan] | None = None
    channel_vectors = -(-geometry.out_channels // vector.lanes)
    tiles = [tile for tile in tile_shapes(vector, 64) if tile.vectors <= channel_vectors]
    for columns in _columns(geometry, pool):
        for rows_per_block in range(1, 65):
            block = ChannelConvPlan(geometry, vector.lanes, tiles[0], rows_per_block, pool, columns)
            if rows_per_block > 1 and (rows_per_block > block.result[0] or block.block_bytes > _MAX_BLOCK_BYTES):
                break
            if columns and block.result[0] % rows_per_block:
                # Such a row may be part of several rows of the image: no row can be left out of a last block.
                continue
            for tile in tiles:
                plan = replace(block, tile=tile)
                if tile.rows > plan.walk.out_width:
                    continue
                cycles = plan.cycles()
                if best is None or cycles < best[0]:
                    best = (cycles, plan)
    return None if best is None else best[1]


def _columns(geometry: ConvGeometry, pool: ConvGeometry | None) -> list[int]:
    """Values of ``ChannelConvPlan.columns`` to try."""
    if pool is not None or not (geometry.kernel == geometry.strides == (1, 1)) or any(geometry.pads):
        return [0]
    pixels = geometry.height * geometry.width
    return [pixels // rows for rows in range(1, min(pixels, 64) + 1) if pixels % rows == 0]


def pack_channel_weight(plan: ChannelConvPlan, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Reorder weight [Cout, Cin, kh, kw] to ``plan.packed_weight_shape``, zero past the last channel.

    The taps are in order [kh, kw, Cin].
    """
    padded = np.zeros((plan.channel_tiles * plan.width, plan.taps), np.float32)
    g = plan.geometry
    taps = weight.reshape(g.out_channels, g.in_channels, -1).transpose(0, 2, 1)
    padded[: g.out_channels] = taps.reshape(g.out_channels, plan.taps)
    return np.ascontiguousarray(padded.reshape(plan.channel_tiles, plan.width, plan.taps).transpose(0, 2, 1))
