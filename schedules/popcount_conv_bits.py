"""Popcount convolution from bits to bits: its results are thresholded in registers and packed for the next layer.

The bit [z >= T] of a channel is [P <= Q], Q = floor((offset − T)/step) by the pixel's border class (see ``popcount``
for z = offset − step·P), or its opposite. Bits are gathered in 32-bit words per pixel, 32 channels each, and pairs of
them are copied into the reader's packed activation, padding ring included; through a max-pool where the network has one
in between (``bit_pool``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_pool import ActivationWriter, check_handover, pool_arguments
from bnn_compiler.schedules.border_classes import has_border_correction
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
    splat,
    store,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_step, common_offset, default_zero
from bnn_compiler.schedules.popcount_conv import ConvEmitter
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan, conv_bits_shape

_HALF_BITS = WORD_BITS // 2


def can_read_bits(reader: ConvGeometry) -> bool:
    """Whether the reader's words hold adjacent channels: one group, or whole words per group."""
    return reader.groups == 1 or reader.group_in_channels % WORD_BITS == 0


def popcount_conv2d_bits_constants(
    geometry: ConvGeometry,
    constants: Sequence[NDArray[Any]],
    thresholds: NDArray[np.int64],
    inverted: NDArray[np.bool_],
    *,
    alphabet: Alphabet,
) -> tuple[NDArray[np.generic], ...]:
    """Weights, bounds Q int32 [O, classes], ``inverted`` int32 [O] and, under a border correction, the pixels' classes.

    ``constants`` are those of ``popcount_conv2d_constants``. Channel c gives the bits [z >= thresholds[c]], or their
    opposites where ``inverted[c]``.
    """
    weights, *tables = constants
    fan_in = geometry.group_in_channels * geometry.kernel[0] * geometry.kernel[1]
    offsets = tables[0].astype(np.int64) if tables else common_offset(alphabet, fan_in)
    bounds = (offsets - thresholds.reshape(-1, 1)) // code_step(alphabet)
    return weights, bounds.astype(np.int32), inverted.astype(np.int32), *tables[1:]


def popcount_conv2d_bits(
    geometry: ConvGeometry,
    reader: ConvGeometry,
    *,
    alphabet: Alphabet,
    zero_padded: bool,
    pad_bit: int,
    isa: Isa,
    zero: int | None = None,
    pool: ConvGeometry | None = None,
    masked: bool = False,
) -> PrimFunc:
    """The kernel (bits, weights, bounds, inverted, [pixel_class], [masks]) -> bits of ``conv_bits_shape(reader)``.

    The reader's padding ring holds ``pad_bit`` in every real channel; the rest is as for ``popcount_conv2d``. ``pool``
    is a max-pool in between, and ``masked`` says that there are masks for it (``bit_pool``).

    Raises:
        ValueError: the reader's input is not this layer's output, or ``can_read_bits`` does not hold.
    """
    check_handover(geometry, pool, reader)
    if not can_read_bits(reader):
        raise ValueError(f"bits do not fit groups of {reader.group_in_channels} channels")
    zero = default_zero(alphabet) if zero is None else zero
    has_table = has_border_correction(geometry, alphabet, zero_padded, zero)
    plan = PopcountPlan(geometry, alphabet, has_table, True, isa)
    arguments = [
        Argument("bits", conv_bits_shape(geometry, alphabet), "uint64"),
        Argument("weights", (geometry.out_channels, plan.weight_depth), "uint64"),
        Argument("offsets", (geometry.out_channels, plan.classes), "int32"),
        Argument("inverted", (geometry.out_channels,), "int32"),
    ]
    if has_table:
        arguments.append(Argument("pixel_class", (plan.pixels,), "int32"))
    arguments += pool_arguments(reader, masked=masked)
    arguments.append(Argument("output", conv_bits_shape(reader, "bipolar"), "uint64"))
    kernel_shape = "x".join(map(str, geometry.kernel))
    name = f"popcount_conv2d_bits_{kernel_shape}_{alphabet}_{isa.name}"
    return build_kernel(
        name, name, arguments, lambda buffers: _BitsEmitter(plan, reader, pool, pad_bit, buffers).emit()
    )


class _BitsEmitter(ConvEmitter):
    """Results become bits of a word per pixel and 32 channels; words become the reader's activation image by image."""

    def __init__(
        self,
        plan: PopcountPlan,
        reader: ConvGeometry,
        pool: ConvGeometry | None,
        pad_bit: int,
        buffers: Mapping[str, Buffer],
    ) -> None:
        super().__init__(plan, buffers)
        self.reader = reader
        self.writer = ActivationWriter(reader, pool, buffers)
        self.pad_bit = pad_bit
        #: Pixels of a row of halves: what lies behind the last one belongs to no pixel.
        self.stride = plan.pixels + 2 * self.unit.lanes
        self.words = -(-plan.geometry.out_channels // WORD_BITS)
        self.halves = workspace(2 * self.words * self.stride, "uint32")
        self.joined = workspace(plan.pixels, "uint64")

    def begin_image(self, image: Expr) -> None:
        """Clear the bits."""
        with serial(2 * self.words * self.stride) as index:
            store(self.halves, index, constant(0, "uint32"))

    def results(
        self, image: Expr, first_channel: Expr, rows: list[list[tuple[int, Expr, int]]], first_pixel: Expr, valid: int
    ) -> None:
        """Set the bits of adjacent channels; setting one twice does no harm."""
        channels = self.plan.geometry.group_out_channels
        # Where tiles of channels do not cross a half word, its bits are gathered in a register.
        together = _HALF_BITS % self.tile_shape[1] == 0 and channels % self.tile_shape[1] == 0
        bits: dict[int, Expr] = {}
        for j, row in enumerate(rows):
            channel = first_channel + j
            bit = bind(tirx.const(1, "uint32") << (channel % _HALF_BITS).astype("uint32"))
            none = tirx.const(0, "uint32")
            is_inverted = bind(load(self.buffers["inverted"], channel)) != 0
            reached, missed = bind(tirx.Select(is_inverted, none, bit)), bind(tirx.Select(is_inverted, bit, none))
            word = bind(channel // _HALF_BITS * self.stride + first_pixel)
            for start, disagreements, width in row:
                bound = self.offset(channel, first_pixel + start, width, valid)
                found = tirx.Select(disagreements <= bound, splat(reached, width), splat(missed, width))
                before = bits.get(start) if together else None
                bits[start] = bind(found if before is None else before | found)
                if not together or j == len(rows) - 1:
                    store(self.halves, word + start, load(self.halves, word + start, width) | bits[start], width)

    def end_image(self, image: Expr) -> None:
        """Join halves to words and copy them into the reader's activation."""
        pixels, channels = self.plan.pixels, self.plan.geometry.out_channels
        self.writer.clear()
        lanes = min(self.unit.lanes, 1 << (pixels.bit_length() - 1))

        def join_halves(word: int | Expr, count: int) -> None:
            def at(start: Expr | int, width: int) -> None:
                low, high = (
                    load(self.halves, (2 * word + half) * self.stride + start, width).astype(typed("uint64", width))
                    for half in range(2)
                )
                store(self.joined, start, low | (high << constant(_HALF_BITS, "uint64", width)), width)

            with serial(pixels // lanes) as vector:
                at(vector * lanes, lanes)
            with serial(pixels % lanes) as pixel:
                at(pixels // lanes * lanes + pixel, 1)
            ring = constant((1 << count) - 1 if self.pad_bit else 0, "uint64")
            plane = bind((image * self.words + word) * (self.reader.padded_height * self.reader.padded_width))
            self.writer.write(self.joined, 0, word, self.buffers["output"], plane, ring)

        with serial(channels // WORD_BITS) as word:
            join_halves(word, WORD_BITS)
        if channels % WORD_BITS:
            join_halves(channels // WORD_BITS, channels % WORD_BITS)
