"""Float convolution whose only reader packs its results: the comparison runs on accumulators in registers.

Columns of a band of output rows (an im2col in L1) meet a register tile of channels times vectors of pixels, as in
``float_conv``. Nothing but bits leaves the tile: no map is written, read and packed again. Sums run over taps in the
order (channel, ky, kx), one fused multiply-add each where the CPU has it; then comes the bias, rounded by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_gatherer import BitGatherer, can_read_bits
from bnn_compiler.schedules.bit_pool import ActivationWriter
from bnn_compiler.schedules.bit_rule_emitter import BitRuleEmitter
from bnn_compiler.schedules.float_vector import FloatVector, float_vector
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.intrinsics import fused_multiply_add
from bnn_compiler.schedules.isa import Isa
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
    parallel,
    register,
    serial,
    splat,
    store,
    tile_starts,
    typed,
    workspace,
)
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import HALF_BITS
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape

#: Channels of a register tile; a power of two, so that their bits lie in one half word.
_CHANNELS = 4
#: Columns of a band stay in L1 beside weights and results.
_COLUMN_BYTES = 16 * 1024
#: Multiply-accumulates, in vectors, that are worth being shared by several threads.
_SHARED_VECTORS = 80_000


@dataclass(frozen=True)
class PackedConvPlan:
    """A float convolution, and how its results are packed: for ``reader``, whose padding ring holds ``pad_code``."""

    geometry: ConvGeometry
    reader: ConvGeometry
    rule: PackRule
    pad_code: int
    has_bias: bool
    isa: Isa

    @property
    def fits(self) -> bool:
        """Whether the kernel computes it: a layer of few taps, whose columns need no strides, and many pixels."""
        g, read = self.geometry, self.reader
        made = (g.batch, g.out_channels, g.out_height, g.out_width)
        return (
            made == (read.batch, read.in_channels, read.height, read.width)
            and can_read_bits(read)
            and g.groups == 1
            and g.strides == (1, 1)
            and g.out_channels % _CHANNELS == 0
            and self.rule.dtype == "float32"
            and 4 * self.taps * g.out_width <= _COLUMN_BYTES
            and self.band_rows * g.out_width >= self.vector.lanes
        )

    @property
    def vector(self) -> FloatVector:
        """The CPU's vectors."""
        return float_vector(self.isa)

    @property
    def tile_vectors(self) -> int:
        """Vectors of pixels of a register tile."""
        return 4 if self.vector.registers == 32 else 2

    @property
    def taps(self) -> int:
        """Products per result."""
        return self.geometry.in_channels * self.geometry.kernel[0] * self.geometry.kernel[1]

    @property
    def band_rows(self) -> int:
        """Output rows whose columns are gathered at a time; they divide the height."""
        height, row_bytes = self.geometry.out_height, 4 * self.taps * self.geometry.out_width
        fitting = [rows for rows in range(1, height + 1) if height % rows == 0 and rows * row_bytes <= _COLUMN_BYTES]
        return max(fitting, default=1)

    @property
    def is_shared(self) -> bool:
        """Whether threads share the images of a batch, or an image's bands."""
        return self.geometry.macs >= _SHARED_VECTORS * self.vector.lanes


def pack_packed_conv_weight(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder weight [O, Cin, kh, kw] to [O/4, K, 4]."""
    tiles = weight.reshape(len(weight) // _CHANNELS, _CHANNELS, -1)
    return np.ascontiguousarray(tiles.swapaxes(1, 2))


def packed_conv_kernel(plan: PackedConvPlan) -> PrimFunc:
    """The kernel (x [N, C, H, W], packed weight, [bias [O]], parameters of the rule …) -> the reader's packed bits.

    Raises:
        ValueError: the plan does not fit.
    """
    if not plan.fits:
        raise ValueError(f"no kernel packs the results of {plan.geometry} for {plan.reader}")
    g = plan.geometry
    arguments = [
        Argument("x", (g.batch, g.in_channels, g.height, g.width), "float32"),
        Argument("weight", (g.out_channels // _CHANNELS, plan.taps, _CHANNELS), "float32"),
    ]
    if plan.has_bias:
        arguments.append(Argument("bias", (g.out_channels,), "float32"))
    arguments += plan.rule.parameters(g.out_channels)
    arguments.append(Argument("bits", conv_bits_shape(plan.reader, plan.rule.alphabet), "uint64"))
    name = f"float_conv2d_{'x'.join(map(str, g.kernel))}_to_{plan.rule.alphabet}_bits_{plan.isa.name}"
    return build_kernel(name, name, arguments, lambda buffers: _emit(plan, buffers))


def _emit(plan: PackedConvPlan, buffers: Mapping[str, Buffer]) -> None:
    batch = plan.geometry.batch
    if batch > 1 and plan.is_shared:
        with parallel(batch) as image:
            _Emitter(plan, buffers).emit_image(image)
        return
    emitter = _Emitter(plan, buffers)
    with serial(batch) as image:
        emitter.emit_image(image)


class _Emitter:
    """One image at a time; its scratch memory is made with it."""

    def __init__(self, plan: PackedConvPlan, buffers: Mapping[str, Buffer]) -> None:
        g, lanes = plan.geometry, plan.vector.lanes
        self.plan, self.buffers, self.lanes = plan, buffers, lanes
        self.band_pixels = plan.band_rows * g.out_width
        self.rule = BitRuleEmitter(plan.rule, g.out_channels, plan.isa, buffers, row_parameters=True)
        writer = ActivationWriter(plan.reader, None, {})
        self.bits = BitGatherer(
            plan.reader, plan.rule.alphabet, plan.pad_code, buffers["bits"], writer, g.out_height * g.out_width, lanes
        )
        self.image, self.start = buffers["x"], constant(0, "int32")
        if any(g.pads):
            self.image = workspace(g.in_channels * g.padded_height * g.padded_width, "float32")
        self.shares_bands = plan.is_shared and g.batch == 1
        if not self.shares_bands:
            self._make_tile()

    def _make_tile(self) -> None:
        """What one thread works with."""
        self.columns = workspace(self.plan.taps * self.band_pixels, "float32")
        self.sums = [[register(self.lanes, "float32") for _ in range(self.plan.tile_vectors)] for _ in range(_CHANNELS)]

    def emit_image(self, image: Expr) -> None:
        """Pad, then convolve and compare band by band, then copy the bits into the reader's activation."""
        g = self.plan.geometry
        bands = g.out_height // self.plan.band_rows
        if any(g.pads):
            self._pad(image)
        else:
            self.start = image * (g.in_channels * g.height * g.width)
        self.bits.clear()
        if self.shares_bands:
            with parallel(bands) as band:
                self._make_tile()
                self._band(band)
        else:
            with serial(bands) as band:
                self._band(band)
        self.bits.finish(image)

    def _pad(self, image: Expr) -> None:
        g = self.plan.geometry
        with serial(g.in_channels * g.padded_height * g.padded_width) as index:
            store(self.image, index, constant(0.0, "float32"))
        with serial(g.in_channels) as channel, serial(g.height) as row:
            source = bind(((image * g.in_channels + channel) * g.height + row) * g.width)
            target = bind((channel * g.padded_height + row + g.pads[0]) * g.padded_width + g.pads[1])
            self._copy_row(self.buffers["x"], source, self.image, target, g.width)

    def _copy_row(self, source: Buffer, start: Expr, target: Buffer, target_start: Expr, width: int) -> None:
        """Copy ``width`` elements, in vectors that may overlap."""
        lanes = copy_lanes(width, self.lanes)
        full, rest = tile_starts(width, lanes, 1)

        def copy(offset: Index) -> None:
            store(target, target_start + offset, load(source, start + offset, lanes), lanes)

        with serial(full) as vector:
            copy(vector * lanes)
        for offset in rest:
            copy(offset)

    def _band(self, band: Expr) -> None:
        plan, g = self.plan, self.plan.geometry
        kernel_height, kernel_width = g.kernel
        with (
            serial(g.in_channels) as channel,
            serial(kernel_height) as tap_y,
            serial(kernel_width) as tap_x,
            serial(plan.band_rows) as row,
        ):
            input_row = band * plan.band_rows + row + tap_y * g.dilations[0]
            source = (channel * g.padded_height + input_row) * g.padded_width + tap_x * g.dilations[1]
            k = (channel * kernel_height + tap_y) * kernel_width + tap_x
            target = bind(k * self.band_pixels + row * g.out_width)
            self._copy_row(self.image, bind(self.start + source), self.columns, target, g.out_width)
        first_pixel = bind(band * self.band_pixels)
        vectors, lanes = plan.tile_vectors, self.lanes
        full, rest = tile_starts(self.band_pixels, lanes, vectors)
        with serial(full) as tile:
            self._tile(first_pixel, tile * (vectors * lanes), [vector * lanes for vector in range(vectors)])
        if rest:
            self._tile(first_pixel, 0, rest)

    def _tile(self, first_pixel: Expr, first: Index, offsets: list[int]) -> None:
        """All channels of the vectors of pixels at ``offsets`` from ``first`` of a band."""
        plan, lanes, buffers = self.plan, self.lanes, self.buffers
        dtype = typed("float32", lanes)
        sums = [row[: len(offsets)] for row in self.sums]
        with serial(plan.geometry.out_channels // _CHANNELS) as block:
            for row in sums:
                for total in row:
                    store(total, 0, constant(0.0, "float32", lanes), lanes)
            with serial(plan.taps) as k:
                columns = [bind(load(self.columns, k * self.band_pixels + first + at, lanes)) for at in offsets]
                for j, row in enumerate(sums):
                    weight = bind(splat(load(buffers["weight"], (block * plan.taps + k) * _CHANNELS + j), lanes))
                    for total, column in zip(row, columns, strict=True):
                        value = fused_multiply_add(weight, column, load(total, 0, lanes), dtype, plan.isa)
                        store(total, 0, value, lanes)
            self._set_bits(block, first_pixel + first, offsets, sums)

    def _set_bits(self, block: Expr, pixel: Expr, offsets: list[int], sums: list[list[Buffer]]) -> None:
        lanes = self.lanes
        none = constant(0, "uint32", lanes)
        gathered: dict[tuple[int, int], Expr] = {}
        for j, row in enumerate(sums):
            channel = bind(block * _CHANNELS + j)
            bit = splat(bind(tirx.const(1, "uint32") << (channel % HALF_BITS).astype("uint32")), lanes)
            bias = splat(bind(load(self.buffers["bias"], channel)), lanes) if self.plan.has_bias else None
            for offset, total in zip(offsets, row, strict=True):
                value = load(total, 0, lanes)
                value = bind(value if bias is None else value + bias)
                for plane, found in enumerate(self.rule.bits(value, lanes, channel, bit, none)):
                    before = gathered.get((plane, offset))
                    gathered[plane, offset] = bind(found if before is None else before | found)
        for (plane, offset), bits in gathered.items():
            self.bits.set_bits(self.bits.row(block * _CHANNELS, pixel, plane) + offset, bits, lanes)
