"""Bit planes: for each tap of a convolution one bit per output pixel, made from channel-packed bits.

A *tap* is one weight position (word of 64 channels, ky, kx, channel in the word). Its *plane* is the bit vector, over
blocks of output pixels, of the activation that the tap reads. A block is 64·L pixels, L = 64-bit lanes of a vector. The
columns of 64-channel words (a bit-level im2col, any stride, dilation and padding) are transposed 64 x 64 in every lane.

Within a block the pixels are permuted so that un-slicing needs no gathers: bit k = 16·a + i of lane l is pixel
4·L·i + L·a + l. The pixels of a batch are numbered through; past the last one come zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from bnn_compiler.schedules.popcount import Alphabet, planes, words_per
from bnn_compiler.schedules.popcount_conv import conv_bits_shape

WORD_BITS = 64


@dataclass(frozen=True)
class PlaneLayout:
    """Sizes of the planes of one convolution; ``lanes`` 64-bit lanes to a vector."""

    geometry: ConvGeometry
    alphabet: Alphabet
    lanes: int

    @property
    def words(self) -> int:
        """64-channel words per pixel and group, all bit planes of the alphabet counted."""
        return planes(self.alphabet) * words_per(self.geometry.group_in_channels)

    @property
    def taps(self) -> int:
        """Planes per group, those of the unused channels of the last word included (they are zero)."""
        return self.words * self.geometry.kernel[0] * self.geometry.kernel[1] * WORD_BITS

    @property
    def zero_plane(self) -> int:
        """Index of a plane of zeros."""
        return self.taps

    @property
    def block_pixels(self) -> int:
        """Output pixels per vector."""
        return WORD_BITS * self.lanes

    @property
    def image_pixels(self) -> int:
        """Output pixels of one image."""
        return self.geometry.out_height * self.geometry.out_width

    @property
    def blocks(self) -> int:
        """Vectors that hold all output pixels of the batch."""
        return -(-self.geometry.batch * self.image_pixels // self.block_pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the planes, uint64."""
        return (self.geometry.groups, self.blocks, self.taps + 1, self.lanes)

    def tap(self, channel: int, tap_y: int, tap_x: int, plane: int = 0) -> int:
        """Index of the tap of one channel of the group (and bit plane of the alphabet)."""
        height, width = self.geometry.kernel
        word = plane * words_per(self.geometry.group_in_channels) + channel // WORD_BITS
        return ((word * height + tap_y) * width + tap_x) * WORD_BITS + channel % WORD_BITS


def make_bit_planes(layout: PlaneLayout, name: str) -> PrimFunc:
    """The kernel (bits uint64 as ``conv_bits_shape``) -> planes uint64 [G, blocks, taps + 1, L]."""
    arguments = [
        Argument("bits", conv_bits_shape(layout.geometry, layout.alphabet), "uint64"),
        Argument("planes", layout.shape, "uint64"),
    ]
    return build_kernel(name, name, arguments, lambda buffers: _emit(layout, buffers["bits"], buffers["planes"]))


def _emit(layout: PlaneLayout, bits: Buffer, target: Buffer) -> None:
    geometry, lanes = layout.geometry, layout.lanes
    column_pixels = layout.blocks * layout.block_pixels
    columns = workspace(column_pixels, "uint64")
    half = workspace(WORD_BITS * lanes, "uint64")
    for start in range(geometry.batch * layout.image_pixels // lanes * lanes, column_pixels, lanes):
        store(columns, start, constant(0, "uint64", lanes), lanes)
    kernel_height, kernel_width = geometry.kernel
    with serial(geometry.groups) as group:
        with serial(layout.words) as word, serial(kernel_height) as tap_y, serial(kernel_width) as tap_x:
            _gather_column(layout, bits, columns, group, word, tap_y, tap_x)
            first_tap = bind(((word * kernel_height + tap_y) * kernel_width + tap_x) * WORD_BITS)
            with serial(layout.blocks) as block:
                row = (group * layout.blocks + block) * (layout.taps + 1) + first_tap
                _transpose_block(columns, block * layout.block_pixels, half, target, bind(row * lanes), lanes)
        with serial(layout.blocks) as block:
            row = (group * layout.blocks + block) * (layout.taps + 1) + layout.zero_plane
            store(target, row * lanes, constant(0, "uint64", lanes), lanes)


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
    columns: Buffer, first: Expr, half: Buffer, target: Buffer, target_start: Expr, lanes: int
) -> None:
    """64 vectors of columns to 64 planes, eight at a time: distances 32, 16, 8, then 4, 2, 1."""
    with serial(8) as low:
        # Bit k = 16·a + i is pixel group 4·i + a; here k = 8·high + low, so a = high/2, i = 8·(high mod 2) + low.
        words = []
        for high in range(8):
            pixel_group = (low + 8 * (high % 2)) * 4 + high // 2
            words.append(bind(load(columns, first + pixel_group * lanes, lanes)))
        for high, word in enumerate(butterflies(words, (32, 16, 8), lanes, stride=8)):
            store(half, (low + 8 * high) * lanes, word, lanes)
    with serial(8) as high:
        words = [bind(load(half, (high * 8 + low) * lanes, lanes)) for low in range(8)]
        for low, word in enumerate(butterflies(words, (4, 2, 1), lanes)):
            store(target, target_start + (high * 8 + low) * lanes, word, lanes)
