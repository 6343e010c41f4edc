"""The loops of a popcount convolution: gather columns, multiply register tiles, hand on the results.

``popcount_conv`` says what is computed; kernels with other results (``popcount_conv_bits``, ``popcount_conv_fused``)
take ``ConvEmitter`` and say what becomes of a register tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from bnn_compiler.schedules.intrinsics import has_avx512, lookup_int32
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    copy_lanes,
    join,
    load,
    minimum,
    parallel,
    register,
    serial,
    splat,
    store,
    tile_starts,
    workspace,
)
from bnn_compiler.schedules.popcount import (
    HALF_BITS,
    OutDtype,
    PopcountTile,
    code_bits,
    common_offset,
    float_result,
    integer_result,
    narrowed,
    spans,
    store_leading,
)
from bnn_compiler.schedules.popcount_conv_plan import TABLE_ALIGN, PopcountPlan


class ImageEmitter(Protocol):
    """Emits what a kernel does with one image; its scratch memory is made with it."""

    def emit_image(self, image: Expr) -> None:
        """All statements for ``image``."""


def emit_images(plans: Sequence[PopcountPlan], emitter_of: Callable[[], ImageEmitter]) -> None:
    """Loop over the images of a kernel of convolutions ``plans``; threads may share them."""
    batch = plans[0].geometry.batch
    if any(plan.shared == "images" for plan in plans):
        with parallel(batch) as image:
            emitter_of().emit_image(image)
        return
    emitter = emitter_of()
    with serial(batch) as image:
        emitter.emit_image(image)


class ConvEmitter:
    """Emits the loops of one convolution; ``results`` is what becomes of a register tile."""

    def __init__(self, plan: PopcountPlan, buffers: Mapping[str, Buffer], out_dtype: OutDtype = "float32") -> None:
        self.plan = plan
        self.out_dtype = out_dtype
        self.unit = plan.unit
        self.buffers = buffers
        lanes = self.unit.lanes
        band_pixels = plan.band_rows * plan.geometry.out_width
        vectors = min(self.unit.tile[0], -(-band_pixels // lanes))
        self.tile_shape = (vectors, min(self.unit.tile[1], plan.geometry.group_out_channels))
        self.band_pixels = band_pixels
        #: The first of the output's channels that the convolution computes.
        self.first_output = 0
        if plan.shared != "bands":
            self._make_columns()
            if plan.shared != "channels":
                self._make_registers()

    def _make_columns(self) -> None:
        """Where a band's im2col is."""
        plan, bits = self.plan, self.buffers["bits"]
        self.columns = bits if plan.is_pointwise else workspace(plan.depth * plan.column_stride, "uint64")

    def _make_registers(self) -> None:
        """What one thread works with."""
        plan = self.plan
        self.tile = PopcountTile(self.unit, *self.tile_shape, plan.weight_depth, code_bits(plan.alphabet))
        self.spill = register(self.unit.lanes, self.out_dtype)

    def emit_image(self, image: Expr) -> None:
        """Loop over groups and bands; the results of some pixels come twice."""
        plan = self.plan
        if plan.shared == "bands":
            with parallel(plan.bands) as band:
                self._make_columns()
                self._make_registers()
                with serial(plan.geometry.groups) as group:
                    self._band(image, group, band)
        else:
            with serial(plan.geometry.groups) as group, serial(plan.bands) as band:
                self._band(image, group, band)

    def _band(self, image: Expr, group: Expr, band: Expr) -> None:
        plan = self.plan
        geometry = plan.geometry
        plane = image * geometry.groups + group
        first_row = band * plan.band_rows
        if plan.bands * plan.band_rows > geometry.out_height:
            last = geometry.out_height - plan.band_rows
            first_row = bind(minimum(first_row, last))
        if plan.is_pointwise:
            column_start = plane * (plan.words * plan.pixels)
        else:
            column_start = 0
            self._gather_columns(plane, first_row)
        self._multiply(image, group, column_start, first_row * geometry.out_width)

    def _gather_columns(self, plane: Expr, first_row: Expr) -> None:
        """columns[word, ky, kx][pixel] of one band; rows are copied in vectors that may overlap."""
        plan = self.plan
        geometry = plan.geometry
        (kernel_height, kernel_width), (stride_y, stride_x) = geometry.kernel, geometry.strides
        lanes = copy_lanes(geometry.out_width, 8)
        full, rest = tile_starts(geometry.out_width, lanes, 1)
        with (
            serial(plan.words) as word,
            serial(kernel_height) as tap_y,
            serial(kernel_width) as tap_x,
            serial(plan.band_rows) as row,
        ):
            input_row = (first_row + row) * stride_y + tap_y * geometry.dilations[0]
            source = (plane * plan.words + word) * geometry.padded_height + input_row
            source = bind(source * geometry.padded_width + tap_x * geometry.dilations[1])
            k = (word * kernel_height + tap_y) * kernel_width + tap_x
            target = bind(k * plan.column_stride + row * geometry.out_width)

            def copy(start: Index) -> None:
                value = load(self.buffers["bits"], source + start * stride_x, lanes, stride_x)
                store(self.columns, target + start, value, lanes)

            with serial(full) as vector:
                copy(vector * lanes)
            for start in rest:
                copy(start)

    def _multiply(self, image: Expr, group: Expr, column_start: Index, first_pixel: Expr) -> None:
        """Tiles of pixels outside, channels inside: a tile's columns stay in L1."""
        lanes, vectors = self.unit.lanes, self.tile_shape[0]
        channels = self.plan.geometry.group_out_channels
        if self.band_pixels < lanes:
            full, rest, valid = 0, [0], self.band_pixels
        else:
            full, rest = tile_starts(self.band_pixels, lanes, vectors)
            valid = lanes

        def pixels(tile: Expr, first_channel: Index, count: int) -> None:
            first = tile * (vectors * lanes)
            offsets = [vector * lanes for vector in range(vectors)]
            start = group * channels + first_channel
            self._channels(image, start, count, column_start + first, first_pixel + first, offsets, lanes)

        def pixels_behind(first_channel: Index, count: int) -> None:
            if rest:
                start = group * channels + first_channel
                self._channels(image, start, count, column_start, first_pixel, rest, valid)

        if self.plan.shared != "channels":
            with serial(full) as tile:
                pixels(tile, 0, channels)
            pixels_behind(0, channels)
            return
        # No two threads may set bits of the same word: each takes whole half words of channels.
        shared = HALF_BITS if channels % HALF_BITS == 0 and self.first_output % HALF_BITS == 0 else channels
        with parallel(channels // shared) as task:
            self._make_registers()
            first_channel = bind(task * shared)
            with serial(full) as tile:
                pixels(tile, first_channel, shared)
            pixels_behind(first_channel, shared)

    def _channels(
        self,
        image: Expr,
        first_channel: Expr,
        channels: int,
        column_start: Index,
        first_pixel: Expr,
        offsets: list[int],
        valid: int,
    ) -> None:
        """``channels`` channels of a group, for the vectors of pixels at ``offsets`` from ``first_pixel``."""
        rows = self.tile_shape[1]
        block = partial(
            self._block, image, column_start=column_start, first_pixel=first_pixel, offsets=offsets, valid=valid
        )
        with serial(channels // rows) as index:
            block(first_channel + index * rows, rows)
        if channels % rows:
            block(first_channel + channels // rows * rows, channels % rows)

    def _block(
        self,
        image: Expr,
        first_channel: Expr,
        rows: int,
        *,
        column_start: Index,
        first_pixel: Expr,
        offsets: list[int],
        valid: int,
    ) -> None:
        """One register tile: the vectors at ``offsets`` for ``rows`` channels."""
        plan = self.plan
        lanes = self.unit.lanes
        first_channel = bind(first_channel)
        totals = self.tile.emit(
            len(offsets),
            rows,
            lambda p, k, i: load(
                self.columns, column_start + (k + p * plan.weight_depth) * plan.column_stride + offsets[i], lanes
            ),
            lambda p, k, j: load(self.buffers["weights"], (first_channel + j) * plan.weight_depth + k),
        )
        disagreements = [
            [
                (offsets[i], narrowed([totals[i + vector][j] for vector in range(count)], lanes), count * lanes)
                for i, count in spans(offsets, lanes, plan.isa)
            ]
            for j in range(rows)
        ]
        self.results(image, first_channel, disagreements, first_pixel, valid)

    def results(
        self, image: Expr, first_channel: Expr, rows: list[list[tuple[int, Expr, int]]], first_pixel: Expr, valid: int
    ) -> None:
        """Store the results of adjacent channels: per channel spans of (offset from the first pixel, P, pixels)."""
        plan = self.plan
        for j, row in enumerate(rows):
            channel = first_channel + j
            parameters = self.parameters(channel)
            output = bind((image * plan.geometry.out_channels + channel) * plan.pixels + first_pixel)
            for start, disagreements, width in row:
                y = self.value(disagreements, channel, parameters, first_pixel + start, width, valid)
                store_leading(self.buffers["output"], output + start, y, self.leading(width, valid), width, self.spill)

    def leading(self, width: int, valid: int) -> int:
        """How many of ``width`` pixels exist: either every vector is whole, or there is one, and partly real."""
        return valid if valid < self.unit.lanes else width

    def parameters(self, channel: Expr) -> list[Expr | None]:
        """Scale and bias of a channel, where there are any."""
        return [bind(load(self.buffers[name], channel)) if name in self.buffers else None for name in ("scale", "bias")]

    def value(
        self, disagreements: Expr, channel: Expr, parameters: list[Expr | None], pixel: Expr, width: int, valid: int
    ) -> Expr:
        """z of ``width`` adjacent pixels of a channel, or float(z)·scale + bias."""
        plan = self.plan
        z = integer_result(disagreements, self.offset(channel, pixel, width, valid), plan.alphabet, width)
        if self.out_dtype == "int32":
            return z
        scale, bias = (None if value is None else splat(value, width) for value in parameters)
        return float_result(z, scale, bias, width, plan.isa)

    def offset(self, channel: Expr, pixel: Expr, lanes: int, valid: int) -> Expr:
        """The offset in z of ``lanes`` adjacent pixels of a channel, int32 x lanes; only ``valid`` if fewer exist."""
        plan = self.plan
        if not plan.has_table:
            if plan.offset_per_channel:
                return splat(load(self.buffers["offsets"], channel), lanes)
            geometry = plan.geometry
            weights = geometry.group_in_channels * geometry.kernel[0] * geometry.kernel[1]
            return constant(common_offset(plan.alphabet, weights), "int32", lanes)
        table = channel * plan.classes
        offsets = self.buffers["offsets"]
        if valid < self.unit.lanes:
            # Fewer pixels than lanes: the class map ends here, so it cannot be loaded as a vector.
            indices = [load(self.buffers["pixel_class"], pixel + min(lane, valid - 1)) for lane in range(lanes)]
            return _gather(offsets, table, indices)
        if has_avx512(plan.isa) and plan.classes <= 4 * TABLE_ALIGN:
            entries = [load(offsets, table + start, lanes) for start in range(0, plan.classes, lanes)]
            return lookup_int32(entries, load(self.buffers["pixel_class"], pixel, lanes), lanes)
        return _gather(offsets, table, [load(self.buffers["pixel_class"], pixel + lane) for lane in range(lanes)])


def _gather(table: Buffer, start: Expr, indices: list[Expr]) -> Expr:
    return join([load(table, start + index) for index in indices])
