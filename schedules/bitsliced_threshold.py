"""The thresholding epilogue of a bit-sliced convolution: one bit per channel and pixel, without un-slicing.

A channel's bit is [z >= T], or its opposite, with an integer T. From z = h·(2U − V) + offset, h = f/2, and B counter
bits,

    z >= T   <=>   D >= Q,   D = 2U + (2^B − 1 − V),   Q = ceil((T − offset)/h) + 2^B − 1

with D made by one carry chain from the counter of the channel and that of the complement of V (once per block), and
compared from the lowest bit up: g = maj(d, ~q, g), a bit of Q being all ones or all zeros in the whole vector. Under
zero padding the offset depends on the border class of a pixel: the comparison runs once for every class that a block
holds, and masks choose.

The result is a matrix of bits, ``rows`` uint64 [O, words], its pixels in the order of the planes' blocks.
``pack_bit_rows`` turns it into the channel-packed bits of the next layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_counter import full_adder
from bnn_compiler.schedules.bit_planes import BlockRun, PlaneLayout
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    bind,
    constant,
    load,
    register,
    serial,
    splat,
    store,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import WORD_BITS

if TYPE_CHECKING:
    from bnn_compiler.schedules.bitsliced_sizes import BitslicedSizes

_SIGN_BIT = 63
#: In a table of thresholds: the bit of this channel is the opposite of the comparison.
_INVERTED = -(1 << 31)


def threshold_table(
    thresholds: NDArray[np.int64], inverted: NDArray[np.bool_], offsets: NDArray[np.int32], *, bits: int, half: int
) -> NDArray[np.int32]:
    """Q of every channel and border class, int32 [O, classes], with the sign bit set where the channel is inverted.

    ``thresholds`` and ``inverted`` [O]; ``offsets`` [O, classes] as of the floating-point epilogue; ``half`` is h.
    """
    distance = thresholds.reshape(-1, 1) - offsets.astype(np.int64)
    bound = -(-distance // half) + (1 << bits) - 1
    # 0 holds for every D, the largest number for none.
    table = np.clip(bound, 0, (1 << bits + 2) - 1)
    return np.where(inverted.reshape(-1, 1), table + _INVERTED, table).astype(np.int32)


def class_masks(layout: PlaneLayout, pixel_class: NDArray[np.int32], classes: int) -> NDArray[np.uint64]:
    """Which pixels are of a class, uint64 [classes, words], in the order of the planes; none past the last pixel."""
    numbers = block_pixel_numbers(layout)
    real = numbers < layout.pixels
    of_bit = np.where(real, pixel_class[np.minimum(numbers, layout.pixels - 1)], -1)
    members = of_bit == np.arange(classes).reshape(-1, 1, 1)
    return np.packbits(members, axis=-1, bitorder="little").view("<u8").reshape(classes, -1).astype(np.uint64)


def block_classes(layout: PlaneLayout, masks: NDArray[np.uint64]) -> NDArray[np.int32]:
    """How many classes a block holds, and which, int32 [blocks, 1 + classes]."""
    table, first = [], 0
    for run in layout.runs:
        for _ in range(run.blocks):
            present = np.flatnonzero(masks[:, first : first + run.lanes].any(axis=1))
            table.append([len(present), *present, *[0] * (len(masks) - len(present))])
            first += run.lanes
    return np.array(table, np.int32)


def block_pixel_numbers(layout: PlaneLayout) -> NDArray[np.int64]:
    """The pixel of every bit of the planes' words, int64 [words, 64]; from ``layout.pixels`` on there is none."""
    numbers = []
    for run in layout.runs:
        of_bit = np.array([layout.pixel_of_bit(bit, run.lanes) for bit in range(WORD_BITS)])
        starts = run.first_pixel + np.arange(run.blocks) * (WORD_BITS * run.lanes)
        numbers.append((starts[:, None, None] + np.arange(run.lanes)[:, None] + of_bit).reshape(-1, WORD_BITS))
    return np.concatenate(numbers)


class ThresholdEpilogue:
    """Emits the bits of the blocks of one run; allocate it at the top of a kernel's body."""

    def __init__(self, sizes: BitslicedSizes, buffers: Mapping[str, Buffer], run: BlockRun) -> None:
        self.sizes = sizes
        self.buffers = buffers
        self.run = run
        self.lanes = run.lanes
        #: The complement of V.
        self.totals = workspace(sizes.bits * run.lanes, "uint64")
        self.result = register(run.lanes, "uint64")
        self.word: Expr = None
        self.block: Expr = None

    def add_totals(self, planes: Sequence[Expr], *, first: bool) -> None:
        """Take a counter from the complement of V, which starts as all ones where ``first``."""
        borrow = constant(0, "uint64", self.lanes)
        for level, plane in enumerate(planes):
            start = constant((1 << WORD_BITS) - 1, "uint64", self.lanes) if first else self._total(level)
            left, borrow = full_adder(bind(start), plane, borrow, self.lanes, self.sizes.isa, subtract=True)
            store(self.totals, level * self.lanes, left, self.lanes)

    def begin_block(self, block: Expr) -> None:
        """Block ``block`` of the run follows."""
        first_word = self.run.first_pixel // WORD_BITS
        first_run = self.sizes.layout.runs[0]
        blocks_before = 0 if self.run == first_run else first_run.blocks
        self.word = bind(first_word + block * self.lanes)
        self.block = bind(blocks_before + block)

    def finish(self, planes: Sequence[Expr], channel: Expr) -> None:
        """Compare a channel's counter and store its bits."""
        levels = self._distance(planes)
        thresholds = self.buffers["thresholds"]
        first = bind(channel * self.sizes.classes)
        if not self.sizes.has_classes:
            result = self._compare(levels, load(thresholds, first))
        else:
            table, stride = self.buffers["block_classes"], self.sizes.classes + 1
            store(self.result, 0, constant(0, "uint64", self.lanes), self.lanes)
            row = bind(self.block * stride)
            with serial(load(table, row)) as i:
                chosen = bind(load(table, row + 1 + i))
                masks = load(
                    self.buffers["class_masks"], chosen * self.sizes.layout.words_per_row + self.word, self.lanes
                )
                bits = self._compare(levels, load(thresholds, first + chosen))
                store(self.result, 0, load(self.result, 0, self.lanes) | (bits & masks), self.lanes)
            result = load(self.result, 0, self.lanes)
        target = channel * self.sizes.layout.words_per_row + self.word
        store(self.buffers["output"], target, result, self.lanes)

    def _total(self, level: int) -> Expr:
        return load(self.totals, level * self.lanes, self.lanes)

    def _distance(self, planes: Sequence[Expr]) -> list[Expr]:
        """The planes of D, lowest first."""
        carry = constant(0, "uint64", self.lanes)
        levels = [bind(self._total(0))]
        for level in range(1, self.sizes.bits):
            total, carry = full_adder(self._total(level), planes[level - 1], carry, self.lanes, self.sizes.isa)
            levels.append(total)
        top = planes[self.sizes.bits - 1]
        return [*levels, bind(top ^ carry), bind(top & carry)]

    def _compare(self, levels: Sequence[Expr], threshold: Expr) -> Expr:
        wide = bind(splat(bind(threshold).astype("int64"), self.lanes))

        def mask_of(bit: int) -> Expr:
            shifted = wide << constant(_SIGN_BIT - bit, "int64", self.lanes)
            mask = shifted >> constant(_SIGN_BIT, "int64", self.lanes)
            return bind(tirx.reinterpret(typed("uint64", self.lanes), mask))

        reached = constant((1 << WORD_BITS) - 1, "uint64", self.lanes)
        for bit, level in enumerate(levels):
            _, reached = full_adder(mask_of(bit), level, reached, self.lanes, self.sizes.isa, subtract=True)
        return bind(reached ^ mask_of(_SIGN_BIT))
