"""Bit planes: for each tap of a convolution one bit per output pixel, made from channel-packed bits.

A *tap* is one weight position (word of 64 channels, ky, kx, channel in the word). Its *plane* is the bit vector, over
blocks of output pixels, of the activation that the tap reads. A block is 64·L pixels, L = 64-bit lanes of a vector. The
columns of 64-channel words (a bit-level im2col, any stride, dilation and padding) are transposed 64 x 64 in every lane.

The pixels of a batch are numbered through; past the last one come zeros. Whole blocks have the layout's ``lanes``; what
is left over may take a block of fewer lanes. Within a block the pixels are permuted so that un-slicing (see
``bit_unslice``) needs no gathers:

    order "fields"   bit k = 16·a + i of lane l is pixel 4·L·i + L·a + l
    order "bytes"    bit k of lane l is pixel L·k + l
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.bit_matrix import butterflies
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    copy_lanes,
    load,
    serial,
    store,
    tile_starts,
    workspace,
)
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_bits, planes, words_per
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape

PixelOrder = Literal["fields", "bytes"]

#: Lanes of a left-over block, at least.
_FEWEST_LANES = 2


@dataclass(frozen=True)
class BlockRun:
    """Consecutive blocks of ``lanes``; the first is at pixel ``first_pixel`` and at word ``first_word`` of a group.

    ``pixels`` of their pixels are real: the last block may be partly real.
    """

    lanes: int
    blocks: int
    first_pixel: int
    first_word: int
    pixels: int


@dataclass(frozen=True)
class PlaneLayout:
    """Sizes of the planes of one convolution; ``lanes`` 64-bit lanes to a vector, a power of two of at least 2."""

    geometry: ConvGeometry
    alphabet: Alphabet
    lanes: int
    order: PixelOrder = "fields"

    @property
    def words(self) -> int:
        """64-channel words per pixel and group, all bit planes of the alphabet counted."""
        return planes(self.alphabet) * words_per(self.geometry.group_in_channels)

    @property
    def weights(self) -> int:
        """Weights of an output channel."""
        return self.geometry.group_in_channels * self.geometry.kernel[0] * self.geometry.kernel[1]

    @property
    def taps(self) -> int:
        """Planes per group, those of the unused channels of the last word included (they are zero)."""
        return self.words * self.geometry.kernel[0] * self.geometry.kernel[1] * WORD_BITS

    @property
    def levels(self) -> int:
        """Planes of a tap that weigh 1, 2, 4 … (codes of several bits)."""
        return code_bits(self.alphabet)

    @property
    def level_taps(self) -> int:
        """Planes per group that weigh alike."""
        return self.taps // self.levels

    @property
    def zero_plane(self) -> int:
        """Index of a plane of zeros, behind those of a level: every level has one."""
        return self.level_taps

    @property
    def level_planes(self) -> int:
        """Planes of a level, the one of zeros included: the distance between the same taps of two levels."""
        return self.level_taps + 1

    @property
    def block_planes(self) -> int:
        """Planes of a block of pixels and a group."""
        return self.levels * self.level_planes

    @property
    def image_pixels(self) -> int:
        """Output pixels of one image."""
        return self.geometry.out_height * self.geometry.out_width

    @property
    def pixels(self) -> int:
        """Output pixels of the batch."""
        return self.geometry.batch * self.image_pixels

    @property
    def runs(self) -> tuple[BlockRun, ...]:
        """The whole blocks, then the pixels left over in a block of the fewest lanes that hold them."""
        block = WORD_BITS * self.lanes
        whole, rest = divmod(self.pixels, block)
        lanes = self.lanes
        while lanes > _FEWEST_LANES and rest <= WORD_BITS * lanes // 2:
            lanes //= 2
        if rest and lanes == self.lanes:
            return (BlockRun(lanes, whole + 1, 0, 0, self.pixels),)
        runs = [BlockRun(self.lanes, whole, 0, 0, whole * block)] if whole else []
        if rest:
            runs.append(BlockRun(lanes, 1, whole * block, whole * self.block_planes * self.lanes, rest))
        return tuple(runs)

    @property
    def padded_pixels(self) -> int:
        """Pixels of all blocks, real or not."""
        return sum(run.blocks * run.lanes for run in self.runs) * WORD_BITS

    @property
    def words_per_row(self) -> int:
        """Words of one bit per pixel."""
        return self.padded_pixels // WORD_BITS

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the planes, uint64: per group the blocks, per block the levels, lowest first."""
        return (self.geometry.groups, self.words_per_row * self.block_planes)

    def tap(self, channel: int, tap_y: int, tap_x: int, plane: int = 0) -> int:
        """Index of the tap of one channel of the group (and bit plane of the alphabet)."""
        height, width = self.geometry.kernel
        word = plane * words_per(self.geometry.group_in_channels) + channel // WORD_BITS
        level = plane if self.levels > 1 else 0
        return ((word * height + tap_y) * width + tap_x) * WORD_BITS + channel % WORD_BITS + level

    def weight_taps(self) -> NDArray[np.int64]:
        """The tap of each weight of a channel, int64 [N], weights in the order (channel, ky, kx); of bit plane 0."""
        height, width = self.geometry.kernel
        channel, tap_y, tap_x = np.indices((self.geometry.group_in_channels, height, width)).reshape(3, -1)
        word = channel // WORD_BITS
        taps: NDArray[np.int64] = ((word * height + tap_y) * width + tap_x) * WORD_BITS + channel % WORD_BITS
        return taps

    @property
    def plane_stride(self) -> int:
        """Distance between the taps of a weight in bit planes 0 and 1 of a ternary alphabet; 0 elsewhere."""
        return self.taps // 2 if self.alphabet == "ternary" else 0

    def pixel_of_bit(self, bit: int, lanes: int) -> int:
        """The pixel, in its block, of bit ``bit`` of lane 0; lanes hold adjacent pixels."""
        if self.order == "bytes":
            return lanes * bit
        field, position = divmod(bit, 16)
        return 4 * lanes * position + lanes * field

    def pixel_of_octet(self, octet: Expr, lanes: int) -> Expr:
        """``pixel_of_bit`` of bit 8·octet, for a loop variable."""
        if self.order == "bytes":
            return octet * (8 * lanes)
        return octet % 2 * (4 * lanes * 8) + octet // 2 * lanes


def make_bit_planes(layout: PlaneLayout, name: str) -> PrimFunc:
    """The kernel (bits uint64 as ``conv_bits_shape``) -> planes uint64 as ``layout.shape``."""
    arguments = [
        Argument("bits", conv_bits_shape(layout.geometry, layout.alphabet), "uint64"),
        Argument("planes", layout.shape, "uint64"),
    ]
    return build_kernel(name, name, arguments, lambda buffers: _emit(layout, buffers["bits"], buffers["planes"]))


def _emit(layout: PlaneLayout, bits: Buffer, target: Buffer) -> None:
    geometry = layout.geometry
    columns = workspace(layout.padded_pixels, "uint64")
    half = workspace(WORD_BITS * layout.lanes, "uint64")
    with serial(layout.padded_pixels - layout.pixels) as pixel:
        store(columns, layout.pixels + pixel, constant(0, "uint64"))
    kernel_height, kernel_width = geometry.kernel
    with serial(geometry.groups) as group:
        first_word = bind(group * layout.shape[1])
        with serial(layout.words) as word, serial(kernel_height) as tap_y, serial(kernel_width) as tap_x:
            _gather_column(layout, bits, columns, group, word, tap_y, tap_x)
            level = word // (layout.words // layout.levels)  # as many planes of zeros lie before
            first_tap = bind(((word * kernel_height + tap_y) * kernel_width + tap_x) * WORD_BITS + level)
            for run in layout.runs:
                with serial(run.blocks) as block:
                    pixel = bind(run.first_pixel + block * (WORD_BITS * run.lanes))
                    row = (block * layout.block_planes + first_tap) * run.lanes
                    _transpose_block(
                        layout, columns, pixel, half, target, bind(first_word + run.first_word + row), run.lanes
                    )
        for run in layout.runs:
            with serial(run.blocks) as block, serial(layout.levels) as level:
                row = (block * layout.block_planes + level * layout.level_planes + layout.zero_plane) * run.lanes
                store(target, first_word + run.first_word + row, constant(0, "uint64", run.lanes), run.lanes)


def _gather_column(
    layout: PlaneLayout, bits: Buffer, columns: Buffer, group: Expr, word: Expr, tap_y: Expr, tap_x: Expr
) -> None:
    """columns[pixel] of one tap's words; rows are copied in vectors that may overlap."""
    geometry = layout.geometry
    width = geometry.out_width
    copied = copy_lanes(width, layout.lanes)
    full, rest = tile_starts(width, copied, 1)
    stride_y, stride_x = geometry.strides
    with serial(geometry.batch) as image, serial(geometry.out_height) as row:
        plane = (image * geometry.groups + group) * layout.words + word
        source_row = plane * geometry.padded_height + row * stride_y + tap_y * geometry.dilations[0]
        source = bind(source_row * geometry.padded_width + tap_x * geometry.dilations[1])
        target = bind(image * layout.image_pixels + row * width)

        def copy(start: Index) -> None:
            value = load(bits, source + start * stride_x, copied, stride_x)
            store(columns, target + start, value, copied)

        with serial(full) as vector:
            copy(vector * copied)
        for start in rest:
            copy(start)


def _transpose_block(
    layout: PlaneLayout, columns: Buffer, first: Expr, half: Buffer, target: Buffer, target_start: Expr, lanes: int
) -> None:
    """64 vectors of columns to 64 planes, eight at a time: distances 32, 16, 8, then 4, 2, 1.

    Byte shuffles and ``vgf2p8affineqb`` need half the instructions and gain nothing: writing the planes to L2 is the
    bound.
    """
    # Bit k = 8·high + low; its pixel is a linear function of low within a group of eight.
    step = layout.pixel_of_bit(1, lanes)
    with serial(8) as low:
        words = []
        for high in range(8):
            pixel = layout.pixel_of_bit(8 * high, lanes) + low * step
            words.append(bind(load(columns, first + pixel, lanes)))
        for high, word in enumerate(butterflies(words, (32, 16, 8), lanes, stride=8)):
            store(half, (low + 8 * high) * lanes, word, lanes)
    with serial(8) as high:
        words = [bind(load(half, (high * 8 + low) * lanes, lanes)) for low in range(8)]
        for low, word in enumerate(butterflies(words, (4, 2, 1), lanes)):
            store(target, target_start + (high * 8 + low) * lanes, word, lanes)
