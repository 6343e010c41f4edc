"""Bit-sliced convolution along a channel tree: counters start as their parent's, only differing weights are counted.

For every block of 64·L output pixels and every node of the program, in order:

    load the parent's counter, subtract the planes it has and the node has not, add the planes only the node has, store;
    for an output channel: un-slice the counter to integers U and store y = float(f·U − (f/2)·V + offset)·scale + bias

with f = 4 for bipolar activations, 2 for the others, and V the sum of all planes of the group (see docs/kernels.md).
The offset is −κ, κ the sum of the channel's weights inside the image: it depends on the border class of the pixel when
the convolution pads with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script import builder

from bnn_compiler.schedules.bit_counter import BitSlicedCounter
from bnn_compiler.schedules.bit_matrix import butterflies
from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.channel_program import (
    INDICES_PER_WORD,
    LONG_BLOCK,
    NODE_FIELDS,
    SHORT_BLOCK,
    TOTAL_SLOT,
    ZERO_SLOT,
    ChannelProgram,
)
from bnn_compiler.schedules.intrinsics import has_avx512, lookup_int32
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
    load,
    register,
    serial,
    splat,
    store,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import float_result
from bnn_compiler.schedules.popcount_conv import border_classes

#: Un-slicing works on 16-bit fields.
_FIELD_BITS = 16
_TABLE_LANES = 16


def counter_bits(layout: PlaneLayout, taps: int) -> int:
    """Planes of a counter of up to ``taps`` planes, on which nothing can overflow."""
    del layout
    return taps.bit_length()


def bitsliced_conv2d_constants(
    layout: PlaneLayout, signs: NDArray[np.bool_], *, zero_padded: bool
) -> tuple[NDArray[np.int32], ...]:
    """offsets int32 [O, classes] and, where there are several classes, the class of each pixel, int32 [pixels]."""
    if layout.alphabet != "bipolar":
        return (np.zeros((len(signs), 1), np.int32),)
    weights = 2 * signs.astype(np.int32) - 1
    offsets = -weights.reshape(len(signs), -1).sum(axis=1, dtype=np.int32).reshape(-1, 1)
    if not zero_padded or not any(layout.geometry.pads):
        return (offsets,)
    classes, outside = border_classes(layout.geometry)
    offsets = offsets + np.einsum("oihw,khw->ok", weights, outside.astype(np.int32)).astype(np.int32)
    padded = -(-offsets.shape[1] // _TABLE_LANES) * _TABLE_LANES
    table = np.zeros((len(signs), padded), np.int32)
    table[:, : offsets.shape[1]] = offsets
    pixels = np.zeros(layout.blocks * layout.block_pixels, np.int32)
    pixels[: layout.geometry.batch * layout.image_pixels] = np.tile(classes, layout.geometry.batch)
    return table, pixels


@dataclass(frozen=True)
class _Sizes:
    layout: PlaneLayout
    bits: int
    classes: int
    has_classes: bool
    nodes: int
    words: int
    slots: int
    isa: Isa


def bitsliced_conv2d(
    layout: PlaneLayout,
    program: ChannelProgram,
    constants: Sequence[NDArray[np.int32]],
    *,
    has_scale: bool,
    has_bias: bool,
    isa: Isa,
    name: str,
) -> PrimFunc:
    """The kernel (planes, indices, nodes, offsets, [pixel_class], [scale], [bias]) -> y float32 [N, O, OH, OW].

    One group. ``program`` gives the sizes of its tables, which are arguments.
    """
    geometry = layout.geometry
    bits = counter_bits(layout, layout.words * 64 * geometry.kernel[0] * geometry.kernel[1])
    sizes = _Sizes(
        layout,
        bits,
        constants[0].shape[1],
        len(constants) > 1,
        len(program.nodes),
        len(program.indices),
        program.slots,
        isa,
    )
    arguments = [
        Argument("planes", layout.shape, "uint64"),
        Argument("indices", program.indices.shape, "uint64"),
        Argument("nodes", program.nodes.shape, "int32"),
        Argument("offsets", constants[0].shape, "int32"),
    ]
    if sizes.has_classes:
        arguments.append(Argument("pixel_class", constants[1].shape, "int32"))
    for present, parameter in ((has_scale, "scale"), (has_bias, "bias")):
        if present:
            arguments.append(Argument(parameter, (geometry.out_channels,), "float32"))
    shape = (geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width)
    arguments.append(Argument("output", shape, "float32"))
    return build_kernel(name, name, arguments, lambda buffers: _Emitter(sizes, buffers).emit())


class _Emitter:
    """Emits the loops of one convolution."""

    def __init__(self, sizes: _Sizes, buffers: Mapping[str, Buffer]) -> None:
        self.sizes = sizes
        self.buffers = buffers
        self.lanes = sizes.layout.lanes
        self.counter = BitSlicedCounter(sizes.bits, self.lanes, sizes.isa)
        self.slots = workspace(sizes.slots * sizes.bits * self.lanes, "uint64")
        self.totals = workspace(sizes.layout.block_pixels, "int32")
        self.results = workspace(sizes.layout.block_pixels, "float32")
        self.position = register(1, "int32")
        self.factor = 4 if sizes.layout.alphabet == "bipolar" else 2

    def emit(self) -> None:
        """Loop over blocks of pixels and nodes."""
        layout = self.sizes.layout
        with serial(layout.blocks) as block:
            planes = bind(block * ((layout.taps + 1) * self.lanes))
            self._count_all(planes)
            with serial(self.sizes.nodes) as node:
                fields = {
                    field: bind(load(self.buffers["nodes"], node * len(NODE_FIELDS) + i))
                    for i, field in enumerate(NODE_FIELDS)
                }
                self._load(fields["parent_slot"])
                store(self.position, 0, fields["position"])
                for kind, subtract in (("minus", True), ("plus", False)):
                    self._count(planes, fields[f"{kind}_long"], LONG_BLOCK, subtract=subtract)
                    self._count(planes, fields[f"{kind}_short"], SHORT_BLOCK, subtract=subtract)
                self._store(fields["slot"])
                with builder.If(fields["channel"] >= 0), builder.Then():
                    self._finish(block, fields["channel"])

    def _count_all(self, planes: Expr) -> None:
        """Slot 0 becomes U = 0, slot 1 becomes V; ``totals`` the integers (f/2)·V."""
        lanes = self.lanes
        for level in range(self.sizes.bits):
            self.counter.set_plane(level, constant(0, "uint64", lanes))
        self._store(ZERO_SLOT)
        taps = self.sizes.layout.taps
        with serial(taps // LONG_BLOCK) as long:
            first = planes + long * (LONG_BLOCK * lanes)
            self.counter.count(
                LONG_BLOCK, lambda i: bind(load(self.buffers["planes"], first + i * lanes, lanes)), subtract=False
            )
        self._store(TOTAL_SLOT)
        for start, values in self._unsliced():
            store(self.totals, start, values * constant(self.factor // 2, "int32", 2 * lanes), 2 * lanes)

    def _slot(self, slot: Index, level: int) -> Index:
        return (slot * self.sizes.bits + level) * self.lanes

    def _load(self, slot: Index) -> None:
        for level in range(self.sizes.bits):
            self.counter.set_plane(level, load(self.slots, self._slot(slot, level), self.lanes))

    def _store(self, slot: Index) -> None:
        for level in range(self.sizes.bits):
            store(self.slots, self._slot(slot, level), self.counter.plane(level), self.lanes)

    def _count(self, planes: Expr, blocks: Expr, size: int, *, subtract: bool) -> None:
        """Count ``blocks`` blocks of planes named by the next indices."""
        with serial(blocks):
            position = bind(load(self.position, 0))
            words: list[Expr] = []

            def plane_at(i: int) -> Expr:
                # One 64-bit load brings four indices: the load ports are what this loop runs out of first.
                word, field = divmod(i, INDICES_PER_WORD)
                if word == len(words):
                    words.append(bind(load(self.buffers["indices"], position + word)))
                shifted = words[word] >> tirx.const(16 * field, "uint64")
                index = bind((shifted & tirx.const(0xFFFF, "uint64")).astype("int64"))
                return bind(load(self.buffers["planes"], planes.astype("int64") + index * self.lanes, self.lanes))

            self.counter.count(size, plane_at, subtract=subtract)
            store(self.position, 0, position + size // INDICES_PER_WORD)

    def _unsliced(self) -> list[tuple[int, Expr]]:
        """The counter's integers: (first pixel in the block, int32 x 2L) for all pixels, in order."""
        lanes = self.lanes
        fields = 4 * lanes
        planes: list[Expr | None] = [self.counter.plane(level) for level in range(self.sizes.bits)]
        planes += [None] * (_FIELD_BITS - self.sizes.bits)
        result = []
        for i, word in enumerate(butterflies(planes, (8, 4, 2, 1), lanes)):
            narrow = bind(tirx.reinterpret(typed("uint16", fields), word))
            for half in range(2):
                # Field 4·l + a of the vector is pixel L·a + l of its group.
                order = [
                    4 * (pixel % lanes) + pixel // lanes for pixel in range(half * 2 * lanes, (half + 1) * 2 * lanes)
                ]
                chosen = tirx.Shuffle([narrow], [tirx.const(field, "int32") for field in order])
                result.append((i * fields + half * 2 * lanes, bind(chosen.astype(typed("int32", 2 * lanes)))))
        return result

    def _finish(self, block: Expr, channel: Expr) -> None:
        """Un-slice the counter and store the channel's outputs."""
        width = 2 * self.lanes
        factor = constant(self.factor, "int32", width)
        scale, bias = (
            splat(bind(load(self.buffers[name], channel)), width) if name in self.buffers else None
            for name in ("scale", "bias")
        )
        table = self._offsets(channel, width)
        layout = self.sizes.layout
        whole = layout.geometry.batch * layout.image_pixels % layout.block_pixels == 0
        single = layout.geometry.batch == 1 and whole
        pixel = bind(block * layout.block_pixels)
        output = bind(channel * layout.image_pixels + pixel)
        for start, counts in self._unsliced():
            z = counts * factor - load(self.totals, start, width)
            z = z + self._offset(table, channel, pixel + start, width)
            y = float_result(z, scale, bias, width, self.sizes.isa)
            if single:
                store(self.buffers["output"], output + start, y, width)
            else:
                store(self.results, start, y, width)
        if not single:
            self._copy_results(pixel, channel)

    def _copy_results(self, pixel: Expr, channel: Expr) -> None:
        """Results of real pixels, image by image, to the output."""
        layout = self.sizes.layout
        geometry = layout.geometry
        with serial(geometry.batch) as image:
            first = image * layout.image_pixels
            low = bind(tirx.max(first, pixel))
            high = tirx.min(first + layout.image_pixels, pixel + layout.block_pixels)
            target = bind((image * geometry.out_channels + channel) * layout.image_pixels - first)
            with serial(tirx.max(high - low, tirx.const(0, "int32"))) as i:
                store(self.buffers["output"], target + low + i, load(self.results, low - pixel + i))

    def _offsets(self, channel: Expr, width: int) -> list[Expr]:
        if not self.sizes.has_classes:
            return [splat(bind(load(self.buffers["offsets"], channel)), width)]
        if not has_avx512(self.sizes.isa):
            return []
        first = channel * self.sizes.classes
        return [
            bind(load(self.buffers["offsets"], first + start, width)) for start in range(0, self.sizes.classes, width)
        ]

    def _offset(self, table: list[Expr], channel: Expr, pixel: Expr, width: int) -> Expr:
        if not self.sizes.has_classes:
            return table[0]
        if table:
            return lookup_int32(table, load(self.buffers["pixel_class"], pixel, width), width)
        first = channel * self.sizes.classes
        values = [
            load(self.buffers["offsets"], first + load(self.buffers["pixel_class"], pixel + lane))
            for lane in range(width)
        ]
        return tirx.Shuffle(values, [tirx.const(lane, "int32") for lane in range(width)])
