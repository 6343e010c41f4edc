"""Bit-sliced convolution from bits to bits: its channels are thresholded where they are counted.

Two kernels. ``bitsliced_conv2d_bits`` counts as ``bitsliced_conv2d`` does and stores one bit per channel and pixel
(``bitsliced_threshold``), pixels in the order of the planes' blocks. ``pack_bit_rows`` transposes those, 64 x 64 in
every lane, into the channel-packed bits that the next convolution reads, padding ring included; through a max-pool
where the network has one in between (``bit_pool``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_matrix import butterflies
from bnn_compiler.schedules.bit_planes import BlockRun, PlaneLayout
from bnn_compiler.schedules.bit_pool import ActivationWriter, check_handover, pool_arguments
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_counting import emit_counting, program_arguments
from bnn_compiler.schedules.bitsliced_sizes import counter_bits, make_sizes
from bnn_compiler.schedules.bitsliced_threshold import ThresholdEpilogue, block_classes, class_masks, threshold_table
from bnn_compiler.schedules.channel_program import ChannelProgram
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    load,
    serial,
    store,
    workspace,
)
from bnn_compiler.schedules.popcount import WORD_BITS, code_step, words_per
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape


def bitsliced_conv2d_bits_constants(
    layout: PlaneLayout,
    signs: NDArray[np.bool_],
    thresholds: NDArray[np.int64],
    inverted: NDArray[np.bool_],
    *,
    zero_padded: bool,
    zero: int | None = None,
) -> tuple[NDArray[np.generic], ...]:
    """Thresholds int32 [O, classes] and, where there are several classes, their masks and which a block holds.

    Channel c gives the bits [z >= thresholds[c]], or their opposites where ``inverted[c]``.
    """
    offsets, *pixel_class = bitsliced_conv2d_constants(layout, signs, zero_padded=zero_padded, zero=zero)
    half = code_step(layout.alphabet)
    bits = counter_bits(layout.geometry, layout.alphabet)
    if not pixel_class:
        return (threshold_table(thresholds, inverted, offsets, bits=bits, half=half),)
    classes = int(pixel_class[0].max()) + 1
    masks = class_masks(layout, pixel_class[0], classes)
    table = threshold_table(thresholds, inverted, offsets[:, :classes], bits=bits, half=half)
    return table, masks, block_classes(layout, masks)


def bitsliced_conv2d_bits(
    layout: PlaneLayout,
    program: ChannelProgram,
    constants: Sequence[NDArray[np.generic]],
    *,
    isa: Isa,
    name: str | None = None,
) -> PrimFunc:
    """The kernel (planes, indices, nodes, first_rows, thresholds, [class_masks, block_classes]) -> rows.

    ``rows`` is uint64 [O, words] with one bit per pixel in the order of the planes' blocks; those past the last pixel
    mean nothing. ``constants`` are those of ``bitsliced_conv2d_bits_constants``; like ``program`` they only give sizes.
    """
    sizes = make_sizes(layout, program, constants, isa)
    arguments = [*program_arguments(layout, program), Argument("thresholds", constants[0].shape, "int32")]
    if sizes.has_classes:
        arguments.append(Argument("class_masks", constants[1].shape, "uint64"))
        arguments.append(Argument("block_classes", constants[2].shape, "int32"))
    arguments.append(Argument("output", (layout.geometry.out_channels, layout.words_per_row), "uint64"))
    kernel_shape = "x".join(map(str, layout.geometry.kernel))
    readable = f"bitsliced_conv2d_bits_{kernel_shape}_{layout.alphabet}_{isa.name}"

    def epilogue_of(buffers: Mapping[str, Buffer], run: BlockRun) -> ThresholdEpilogue:
        return ThresholdEpilogue(sizes, buffers, run)

    return build_kernel(
        name or readable, readable, arguments, lambda buffers: emit_counting(sizes, buffers, epilogue_of)
    )


def pack_bit_rows(
    layout: PlaneLayout,
    reader: ConvGeometry,
    *,
    pad_bit: int,
    pool: ConvGeometry | None = None,
    masked: bool = False,
    name: str = "pack_bit_rows",
) -> PrimFunc:
    """The kernel (rows uint64 [O, words], [masks]) -> bits, uint64 of ``conv_bits_shape`` of the geometry that reads.

    ``layout`` is that of the convolution that made the rows. The padding ring holds ``pad_bit`` in every real channel.
    ``pool`` is a max-pool in between, and ``masked`` says that there are masks for it (``bit_pool``).

    Raises:
        ValueError: the reader's input is not the writer's output.
    """
    writer = layout.geometry
    check_handover(writer, pool, reader)
    arguments = [
        Argument("rows", (writer.out_channels, layout.words_per_row), "uint64"),
        *pool_arguments(reader, masked=masked),
        Argument("bits", conv_bits_shape(reader, "bipolar"), "uint64"),
    ]
    return build_kernel(
        name, "pack_bit_rows", arguments, lambda buffers: _emit_pack(layout, reader, pool, pad_bit, buffers)
    )


def _emit_pack(
    layout: PlaneLayout, reader: ConvGeometry, pool: ConvGeometry | None, pad_bit: int, buffers: Mapping[str, Buffer]
) -> None:
    writer = ActivationWriter(reader, pool, buffers)
    columns = workspace(layout.padded_pixels, "uint64")
    half = workspace(WORD_BITS * layout.lanes, "uint64")
    channels = reader.group_in_channels
    words = words_per(channels)

    def pack_word(group: Expr, word: int | Expr, count: int) -> None:
        first_row = bind((group * channels + word * WORD_BITS) * layout.words_per_row)
        for run in layout.runs:
            with serial(run.blocks) as block:
                pixel = bind(run.first_pixel + block * (WORD_BITS * run.lanes))
                _transpose_block(layout, buffers["rows"], first_row, count, half, columns, pixel, run.lanes)
        ring = constant((1 << count) - 1 if pad_bit else 0, "uint64")
        with serial(reader.batch) as image:
            plane = (image * reader.groups + group) * words + word
            target = bind(plane * (reader.padded_height * reader.padded_width))
            writer.write(columns, image * layout.image_pixels, group * words + word, buffers["bits"], target, ring)

    writer.clear()
    with serial(reader.groups) as group:
        with serial(channels // WORD_BITS) as word:
            pack_word(group, word, WORD_BITS)
        if channels % WORD_BITS:
            pack_word(group, channels // WORD_BITS, channels % WORD_BITS)


def _transpose_block(
    layout: PlaneLayout,
    rows: Buffer,
    first_row: Expr,
    count: int,
    half: Buffer,
    columns: Buffer,
    first_pixel: Expr,
    lanes: int,
) -> None:
    """``count`` vectors of rows to 64 vectors of adjacent pixels' words: distances 32, 16, 8, then 4, 2, 1."""
    step = layout.pixel_of_bit(1, lanes)
    row_word = bind(first_row + first_pixel // WORD_BITS)
    with serial(8) as low:
        words: list[Expr | None] = []
        for high in range(8):
            channel = 8 * high + low
            if 8 * high < count < 8 * high + 8:
                channel = tirx.min(channel, tirx.const(count - 1, "int32"))  # masked below
            value = load(rows, row_word + channel * layout.words_per_row, lanes) if 8 * high < count else None
            words.append(None if value is None else bind(value))
        for high, word in enumerate(butterflies(words, (32, 16, 8), lanes, stride=8)):
            stored = constant(0, "uint64", lanes) if word is None else word
            store(half, (low + 8 * high) * lanes, stored, lanes)
    real = constant((1 << count) - 1, "uint64", lanes)
    with serial(8) as high:
        octet: list[Expr | None] = [bind(load(half, (high * 8 + low) * lanes, lanes)) for low in range(8)]
        pixel = bind(first_pixel + layout.pixel_of_octet(high, lanes))
        for low, word in enumerate(butterflies(octet, (4, 2, 1), lanes)):
            store(columns, pixel + low * step, word if count == WORD_BITS else word & real, lanes)
