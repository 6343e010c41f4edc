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

from bnn_compiler.schedules.bit_gatherer import BitGatherer, can_read_bits
from bnn_compiler.schedules.bit_pool import ActivationWriter, check_handover, pool_arguments
from bnn_compiler.schedules.border_classes import has_border_correction
from bnn_compiler.schedules.feature_bits import FeatureWriter, flat_reader
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    build_kernel,
    load,
    splat,
)
from bnn_compiler.schedules.popcount import HALF_BITS, Alphabet, code_step, common_offset, default_zero
from bnn_compiler.schedules.popcount_conv import product_arguments
from bnn_compiler.schedules.popcount_conv_emitter import ConvEmitter, emit_images
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan, conv_bits_shape
from bnn_compiler.schedules.popcount_dense import dense_bits_shape


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
    reader: ConvGeometry | None,
    *,
    alphabet: Alphabet,
    zero_padded: bool,
    pad_bit: int = 0,
    isa: Isa,
    zero: int | None = None,
    pool: ConvGeometry | None = None,
    masked: bool = False,
) -> PrimFunc:
    """The kernel (bits, weights, bounds, inverted, [pixel_class], [masks]) -> bits of ``conv_bits_shape(reader)``.

    The reader's padding ring holds ``pad_bit`` in every real channel; the rest is as for ``popcount_conv2d``. ``pool``
    is a max-pool in between, and ``masked`` says that there are masks for it (``bit_pool``). Without a ``reader`` the
    bits are for a dense layer, ``dense_bits_shape``, whose features are the channels of the only pixel.

    Raises:
        ValueError: the reader's input is not this layer's output, or ``can_read_bits`` does not hold.
    """
    flat = flat_reader(pool or geometry)
    check_handover(geometry, pool, reader or flat)
    if reader is not None and not can_read_bits(reader):
        raise ValueError(f"bits do not fit groups of {reader.group_in_channels} channels")
    zero = default_zero(alphabet) if zero is None else zero
    has_table = has_border_correction(geometry, alphabet, zero_padded, zero)
    plan = PopcountPlan(geometry, alphabet, has_table, True, isa)
    bits, weights, offsets, *classes = product_arguments(plan, has_scale=False, has_bias=False)
    inverted = Argument("inverted", (geometry.out_channels,), "int32")
    arguments = [bits, weights, offsets, inverted, *classes, *pool_arguments(reader or flat, masked=masked)]
    shape = conv_bits_shape(reader, "bipolar") if reader else dense_bits_shape(flat.batch, flat.in_channels, "bipolar")
    arguments.append(Argument("output", shape, "uint64"))
    kernel_shape = "x".join(map(str, geometry.kernel))
    name = f"popcount_conv2d_bits_{kernel_shape}_{alphabet}_{isa.name}"

    def emitter(buffers: Mapping[str, Buffer]) -> _BitsEmitter:
        writer = (
            FeatureWriter(flat, pool, buffers["output"], buffers)
            if reader is None
            else ActivationWriter(reader, pool, buffers)
        )
        return _BitsEmitter(plan, reader or flat, writer, pad_bit, buffers)

    return build_kernel(name, name, arguments, lambda buffers: emit_images([plan], lambda: emitter(buffers)))


class _BitsEmitter(ConvEmitter):
    """Results become bits of a word per pixel and 32 channels; words become the reader's activation image by image."""

    def __init__(
        self,
        plan: PopcountPlan,
        reader: ConvGeometry,
        writer: ActivationWriter,
        pad_bit: int,
        buffers: Mapping[str, Buffer],
    ) -> None:
        super().__init__(plan, buffers)
        self.bits = BitGatherer(reader, "bipolar", pad_bit, buffers["output"], writer, plan.pixels, self.unit.lanes)

    def emit_image(self, image: Expr) -> None:
        """Count, then copy the bits into the reader's activation."""
        self.bits.clear()
        super().emit_image(image)
        self.bits.finish(image)

    def results(
        self, image: Expr, first_channel: Expr, rows: list[list[tuple[int, Expr, int]]], first_pixel: Expr, valid: int
    ) -> None:
        """Set the bits of adjacent channels; setting one twice does no harm."""
        channels = self.plan.geometry.group_out_channels
        # Where tiles of channels do not cross a half word, its bits are gathered in a register.
        together = HALF_BITS % self.tile_shape[1] == 0 and channels % self.tile_shape[1] == 0
        bits: dict[int, Expr] = {}
        for j, row in enumerate(rows):
            channel = first_channel + j
            bit = bind(tirx.const(1, "uint32") << (channel % HALF_BITS).astype("uint32"))
            none = tirx.const(0, "uint32")
            is_inverted = bind(load(self.buffers["inverted"], channel)) != 0
            reached, missed = bind(tirx.Select(is_inverted, none, bit)), bind(tirx.Select(is_inverted, bit, none))
            word = self.bits.row(channel, first_pixel)
            for start, disagreements, width in row:
                bound = self.offset(channel, first_pixel + start, width)
                found = tirx.Select(disagreements <= bound, splat(reached, width), splat(missed, width))
                before = bits.get(start) if together else None
                bits[start] = bind(found if before is None else before | found)
                if not together or j == len(rows) - 1:
                    self.bits.set_bits(word + start, bits[start], width)
