"""Bits of a convolution's results become the packed activation of the layer that reads them.

Results come in tiles of a few channels by a vector of pixels. Their bits are gathered in 32-bit half words per pixel,
32 channels each; at the end of an image pairs of them are joined and copied into the reader's words, padding ring
included.
"""

from __future__ import annotations

from bnn_compiler.schedules.bit_pool import ActivationWriter
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    copy_lanes,
    load,
    serial,
    store,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import HALF_BITS, WORD_BITS, Alphabet, planes, words_per


def can_read_bits(reader: ConvGeometry) -> bool:
    """Whether the reader's words hold adjacent channels: one group, or whole words per group."""
    return reader.groups == 1 or reader.group_in_channels % WORD_BITS == 0


class BitGatherer:
    """Gathers one image's bits at a time in ``target``, a flat uint64 buffer of ``conv_bits_shape(reader, alphabet)``.

    ``writer`` copies the words there, through a max-pool perhaps; the ring holds ``pad_code``, a bit or a code, in
    every real channel. An image has ``pixels``; spans of two vectors of ``lanes`` may be written behind the last one.
    Make it at the top of a kernel's body.
    """

    def __init__(
        self,
        reader: ConvGeometry,
        alphabet: Alphabet,
        pad_code: int,
        target: Buffer,
        writer: ActivationWriter,
        pixels: int,
        lanes: int,
    ) -> None:
        self.reader = reader
        self.target = target
        self.writer = writer
        self.pad_code = pad_code
        self.planes = planes(alphabet)
        self.pixels = pixels
        #: Half words from one row of them to the next.
        self.stride = pixels + 2 * lanes
        self.words = words_per(reader.in_channels)
        self.lanes = copy_lanes(self.pixels, lanes)
        self.halves = workspace(self.planes * 2 * self.words * self.stride, "uint32")
        self.joined = workspace(self.pixels, "uint64")

    def clear(self) -> None:
        """Start an image."""
        with serial(self.planes * 2 * self.words * self.stride) as index:
            store(self.halves, index, constant(0, "uint32"))

    def row(self, channel: Expr, pixel: Expr, plane: int = 0) -> Expr:
        """Where the half words of ``channel`` from ``pixel`` on are, for ``set_bits``."""
        return bind((plane * 2 * self.words + channel // HALF_BITS) * self.stride + pixel)

    def set_bits(self, index: Index, bits: Expr, width: int) -> None:
        """Set ``bits``, uint32 x width, in adjacent half words; to set one twice does no harm."""
        store(self.halves, index, load(self.halves, index, width) | bits, width)

    def finish(self, image: Expr) -> None:
        """Join halves to words and copy them into the reader's activation."""
        self.writer.clear()
        channels = self.reader.in_channels
        with serial(channels // WORD_BITS) as word:
            self._finish_word(image, word, WORD_BITS)
        if channels % WORD_BITS:
            self._finish_word(image, channels // WORD_BITS, channels % WORD_BITS)
        self.writer.finish(image)

    def _finish_word(self, image: Expr, word: Index, count: int) -> None:
        lanes, pixels = self.lanes, self.pixels
        group_words = self.words // self.reader.groups
        padded_pixels = self.reader.padded_height * self.reader.padded_width
        for plane in range(self.planes):
            first = (plane * self.words + word) * 2

            def at(start: Index, width: int, first: Index = first) -> None:
                low, high = (
                    load(self.halves, (first + half) * self.stride + start, width).astype(typed("uint64", width))
                    for half in range(2)
                )
                store(self.joined, start, low | (high << constant(HALF_BITS, "uint64", width)), width)

            with serial(pixels // lanes) as vector:
                at(vector * lanes, lanes)
            with serial(pixels % lanes) as pixel:
                at(pixels // lanes * lanes + pixel, 1)
            ring = constant((1 << count) - 1 if self.pad_code >> plane & 1 else 0, "uint64")
            group, own = word // group_words, word % group_words
            row = ((image * self.reader.groups + group) * self.planes + plane) * group_words + own
            self.writer.write(self.joined, 0, word, self.target, bind(row * padded_pixels), ring)
