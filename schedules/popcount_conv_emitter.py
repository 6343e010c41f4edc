"""The loops of a popcount convolution: gather columns, multiply register tiles, hand on the results.

``popcount_conv`` says what is computed; kernels with other results (``popcount_conv_bits``, ``popcount_conv_fused``)
take ``ConvEmitter`` and say what becomes of a register tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    load,
    minimum,
    parallel,
    prefetch,
    serial,
    tile_starts,
    workspace,
)
from bnn_compiler.schedules.popcount import HALF_BITS, OutDtype, PopcountTile, code_bits, narrowed, spans
from bnn_compiler.schedules.popcount_conv_channels import ChannelCounter
from bnn_compiler.schedules.popcount_conv_columns import gather_columns
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan
from bnn_compiler.schedules.popcount_conv_results import ConvResults


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


class ConvEmitter(ConvResults):
    """Emits the loops of one convolution; ``results`` is what becomes of a register tile."""

    def __init__(self, plan: PopcountPlan, buffers: Mapping[str, Buffer], out_dtype: OutDtype = "float32") -> None:
        super().__init__(plan, buffers, out_dtype)
        lanes = self.unit.lanes
        band_pixels = plan.band_rows * plan.geometry.out_width
        vectors = min(self.unit.tile[0], -(-band_pixels // lanes))
        self.tile_shape = (vectors, min(self.unit.tile[1], plan.geometry.group_out_channels))
        self.band_pixels = band_pixels
        #: The first of the output's channels that the convolution computes.
        self.first_output = 0
        self.counter: ChannelCounter | None = None
        if plan.shared != "bands":
            self._make_columns()
            if plan.shared != "channels":
                self._make_registers()

    @property
    def task_channels(self) -> int:
        """Channels of a group that one thread computes."""
        channels = self.plan.geometry.group_out_channels
        if self.plan.shared != "channels":
            return channels
        # No two threads may set bits of the same word: each takes whole half words of channels.
        return HALF_BITS if channels % HALF_BITS == 0 and self.first_output % HALF_BITS == 0 else channels

    def _make_columns(self) -> None:
        """Where a band's im2col is."""
        plan, bits = self.plan, self.buffers["bits"]
        self.columns = bits if plan.is_pointwise else workspace(plan.depth * plan.column_stride, "uint64")

    def _make_registers(self) -> None:
        """What one thread works with."""
        plan = self.plan
        if plan.channels_in_lanes:
            self.counter = ChannelCounter(plan, self.buffers, self.columns, self.task_channels)
        else:
            self.tile = PopcountTile(self.unit, *self.tile_shape, plan.weight_depth, code_bits(plan.alphabet))
        self.make_spill()

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
            gather_columns(plan, self.buffers["bits"], self.columns, plane, first_row)
        self._multiply(image, group, column_start, first_row * geometry.out_width)

    def _multiply(self, image: Expr, group: Expr, column_start: Index, first_pixel: Expr) -> None:
        """All channels of a group for a band of pixels; threads may share the channels."""
        channels = self.plan.geometry.group_out_channels
        if self.plan.shared != "channels":
            self._product(image, group * channels, channels, column_start, first_pixel)
            return
        with parallel(channels // self.task_channels) as task:
            self._make_registers()
            first_channel = bind(group * channels + task * self.task_channels)
            self._product(image, first_channel, self.task_channels, column_start, first_pixel)

    def _product(self, image: Expr, first_channel: Expr, channels: int, column_start: Index, first_pixel: Expr) -> None:
        """Adjacent channels for a band of pixels."""
        if self.counter is None:
            # Tiles of pixels outside, channels inside: a tile's columns stay in L1.
            self._pixel_tiles(
                lambda first, offsets, valid: self._channels(
                    image, first_channel, channels, column_start + first, first_pixel + first, offsets, valid
                )
            )
            return
        # Tiles of channels outside, pixels inside: the columns are few, and a tile's weights stay in L1.
        full, rest = divmod(channels, self.counter.channels)
        with serial(full) as tile:
            start = bind(first_channel + tile * self.counter.channels)
            self._turned_channels(image, start, self.counter.channels, column_start, first_pixel)
        if rest:
            start = bind(first_channel + full * self.counter.channels)
            self._turned_channels(image, start, rest, column_start, first_pixel)

    def _pixel_tiles(self, emit: Callable[[Index, list[int], int], None]) -> None:
        """Emit tiles of a band's pixels: the first pixel, the vectors' offsets from it, pixels that a vector has."""
        lanes, vectors = self.unit.lanes, self.tile_shape[0]
        if self.band_pixels < lanes:
            emit(0, [0], self.band_pixels)
            return
        full, rest = tile_starts(self.band_pixels, lanes, vectors)
        with serial(full) as tile:
            emit(tile * (vectors * lanes), [vector * lanes for vector in range(vectors)], lanes)
        if rest:
            emit(0, rest, lanes)

    def _turned_channels(
        self, image: Expr, first_channel: Expr, channels: int, column_start: Index, first_pixel: Expr
    ) -> None:
        """A tile of channels in the lanes: count, then hand on the results row by row."""
        counter, lanes = self.counter, self.unit.lanes
        assert counter is not None
        counter.count(first_channel, channels, column_start)

        def hand_on(index: Index, rows: int, first: Index, offsets: list[int], valid: int) -> None:
            disagreements = [
                [
                    (
                        offsets[i],
                        load(counter.counts, (index + j) * counter.stride + first + offsets[i], count * lanes),
                        count * lanes,
                    )
                    for i, count in spans(offsets, lanes, self.plan.isa)
                ]
                for j in range(rows)
            ]
            self.results(image, bind(first_channel + index), disagreements, first_pixel + first, valid)

        def pixels(first: Index, offsets: list[int], valid: int) -> None:
            rows = self.tile_shape[1]
            with serial(channels // rows) as block:
                hand_on(block * rows, rows, first, offsets, valid)
            if channels % rows:
                hand_on(channels // rows * rows, channels % rows, first, offsets, valid)

        self._pixel_tiles(pixels)

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
        weights = self.buffers["weights"]

        def word_at(_plane: int, k: Index, j: int) -> Expr:
            if j == 0 and plan.prefetches_weights:
                # Over the steps, that is one line after the other of the next rows.
                prefetch(weights, (first_channel + rows) * plan.weight_depth + k * rows)
            return load(weights, (first_channel + j) * plan.weight_depth + k)

        totals = self.tile.emit(
            len(offsets),
            rows,
            lambda p, k, i: load(
                self.columns, column_start + (k + p * plan.weight_depth) * plan.column_stride + offsets[i], lanes
            ),
            word_at,
        )
        disagreements = [
            [
                (offsets[i], narrowed([totals[i + vector][j] for vector in range(count)], lanes), count * lanes)
                for i, count in spans(offsets, lanes, plan.isa)
            ]
            for j in range(rows)
        ]
        self.results(image, first_channel, disagreements, first_pixel, valid)
