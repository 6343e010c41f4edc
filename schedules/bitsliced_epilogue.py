"""The epilogue of a bit-sliced convolution: a channel's counter becomes its outputs in one block of pixels.

Everything is float32 and exact, as all numbers are integers below 2^24: with F the un-sliced floats (U = (F − c)·s),

    z = f·U − (f/2)·V + offset = F·(f·s) + t + offset,   t = −f·s·c − (f/2)·V

where t is made once per block and the offset is the channel's, by the border class of the pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder

from bnn_compiler.schedules.bit_planes import BlockRun
from bnn_compiler.schedules.bit_unslice import Unslicer
from bnn_compiler.schedules.intrinsics import fused_multiply_add, has_avx512, lookup_int32
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    join,
    load,
    register,
    serial,
    splat,
    store,
    typed,
    workspace,
)
from bnn_compiler.schedules.output_chain import Chain, ChainEmitter
from bnn_compiler.schedules.popcount import WORD_BITS, float_result, store_leading

if TYPE_CHECKING:
    from bnn_compiler.schedules.bitsliced_sizes import BitslicedSizes

#: Beyond this many entries a table of offsets is read entry by entry.
_MOST_TABLE_ENTRIES = 64


class Epilogue:
    """Emits the outputs of the blocks of one run; allocate it at the top of a kernel's body."""

    def __init__(
        self,
        sizes: BitslicedSizes,
        buffers: Mapping[str, Buffer],
        run: BlockRun,
        unslicer: Unslicer,
        chain: Chain = (),
    ) -> None:
        self.sizes = sizes
        self.buffers = buffers
        self.run = run
        self.unslicer = unslicer
        self.width = unslicer.width
        self.layout = sizes.layout
        self.block_pixels = WORD_BITS * run.lanes
        #: Real pixels of the last block.
        self.last_pixels = run.pixels - (run.blocks - 1) * self.block_pixels
        self.dtype = str(buffers["output"].dtype)
        self.totals = workspace(self.block_pixels, "float32")
        self.spill = register(self.width, self.dtype)
        #: Whether the pixels of a block belong to one image.
        self.is_direct = self.layout.geometry.batch == 1 or self.layout.image_pixels % self.block_pixels == 0
        self.results = None if self.is_direct else workspace(self.block_pixels, self.dtype)
        assert self.is_direct or not chain, "operands of a chain are read where results are written"
        self.chain = ChainEmitter(chain, buffers)
        self.pixel: Expr = None
        self.is_last: Expr = None

    def add_totals(self, planes: Sequence[Expr], *, first: bool) -> None:
        """Add −(f/2) times the counter to t, which starts as the constant where ``first``."""
        half = self.sizes.factor / 2 * self.unslicer.step
        offset = half * self.unslicer.offset * (-1 if first else 1)
        for start, floats in self.unslicer.floats(planes, self.block_pixels):
            addend = constant(offset, "float32", self.width)
            if not first:
                addend = addend + load(self.totals, start, self.width)
            store(self.totals, start, self._multiply_add(floats, -half, addend), self.width)

    def begin_block(self, block: Expr) -> None:
        """Block ``block`` of the run follows."""
        self.pixel = bind(self.run.first_pixel + block * self.block_pixels)
        self.is_last = block == self.run.blocks - 1

    def finish(self, planes: Sequence[Expr], channel: Expr) -> None:
        """Un-slice a channel's counter and store its outputs."""
        if self.run.blocks == 1 or self.last_pixels == self.block_pixels:
            self._finish(planes, channel, self.last_pixels)
            return
        with builder.If(self.is_last):
            with builder.Then():
                self._finish(planes, channel, self.last_pixels)
            with builder.Else():
                self._finish(planes, channel, self.block_pixels)

    def _finish(self, planes: Sequence[Expr], channel: Expr, valid: int) -> None:
        """``valid`` pixels of the block are real."""
        scale, bias = (
            splat(bind(load(self.buffers[name], channel)), self.width) if name in self.buffers else None
            for name in ("scale", "bias")
        )
        table = self._offset_table(channel)
        target = self._direct_target(channel) if self.is_direct else 0
        chain_parameters = self.chain.parameters(channel)
        for start, floats in self.unslicer.floats(planes, valid):
            addend = load(self.totals, start, self.width) + self._offset(table, channel, start)
            z = self._multiply_add(floats, self.sizes.factor * self.unslicer.step, addend)
            if self.dtype == "int32":
                y = z.astype(typed("int32", self.width))
            else:
                y = float_result(z, scale, bias, self.width, self.sizes.isa)
            if self.results is not None:
                store(self.results, start, y, self.width)
            else:
                count = min(self.width, valid - start)
                y = self.chain.apply(y, chain_parameters, target + start, self.width, count)
                store_leading(self.buffers["output"], target + start, y, count, self.width, self.spill)
        if self.results is not None:
            self._copy_results(channel, valid)

    def _multiply_add(self, a: Expr, factor: float, addend: Expr) -> Expr:
        dtype = typed("float32", self.width)
        return bind(fused_multiply_add(a, constant(factor, "float32", self.width), addend, dtype, self.sizes.isa))

    def _direct_target(self, channel: Expr) -> Expr:
        pixels = self.layout.image_pixels
        if self.layout.geometry.batch == 1:
            return bind(channel * pixels + self.pixel)
        image = self.pixel // pixels
        return bind((image * (self.layout.geometry.out_channels - 1) + channel) * pixels + self.pixel)

    def _copy_results(self, channel: Expr, valid: int) -> None:
        """Results of real pixels, image by image, to the output."""
        pixels = self.layout.image_pixels
        first_image = bind(self.pixel // pixels)
        last_image = (self.pixel + (valid - 1)) // pixels
        with serial(last_image - first_image + 1) as i:
            first = bind((first_image + i) * pixels)
            low = bind(tirx.max(first, self.pixel))
            count = bind(tirx.min(first + pixels, self.pixel + valid) - low)
            source = bind(low - self.pixel)
            row = (first_image + i) * self.layout.geometry.out_channels + channel
            target = bind(row * pixels + (low - first))
            with builder.If(count >= self.width):
                with builder.Then():
                    with serial(count // self.width) as vector:
                        self._copy(source, target, vector * self.width, self.width)
                    # The last vector overlaps its neighbour.
                    self._copy(source, target, count - self.width, self.width)
                with builder.Else(), serial(count) as pixel:
                    self._copy(source, target, pixel, 1)

    def _copy(self, source: Expr, target: Expr, start: Index, lanes: int) -> None:
        store(self.buffers["output"], target + start, load(self.results, source + start, lanes), lanes)

    @property
    def _looks_up(self) -> bool:
        return has_avx512(self.sizes.isa) and self.width >= 8 and self.sizes.classes <= _MOST_TABLE_ENTRIES

    def _offset_table(self, channel: Expr) -> list[Expr]:
        """The channel's offsets as floats, in vectors whose bits are int32."""
        offsets = self.buffers["offsets"]
        first = channel * self.sizes.classes
        if not self.sizes.has_classes:
            return [splat(bind(load(offsets, first).astype("float32")), self.width)]
        if not self._looks_up:
            return []
        floats = [
            load(offsets, first + start, self.width).astype(typed("float32", self.width))
            for start in range(0, self.sizes.classes, self.width)
        ]
        return [bind(tirx.reinterpret(typed("int32", self.width), values)) for values in floats]

    def _offset(self, table: list[Expr], channel: Expr, start: int) -> Expr:
        if not self.sizes.has_classes:
            return table[0]
        classes = self.buffers["pixel_class"]
        if table:
            index = load(classes, self.pixel + start, self.width)
            return tirx.reinterpret(typed("float32", self.width), lookup_int32(table, index, self.width))
        first = channel * self.sizes.classes
        entries = [
            load(self.buffers["offsets"], first + load(classes, self.pixel + start + lane))
            for lane in range(self.width)
        ]
        return join(entries).astype(typed("float32", self.width))
