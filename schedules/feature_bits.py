"""Bits in the order in which dense layers read them: bit c of word l is feature c·KW + l of KW words (``pack``)."""

from __future__ import annotations

from collections.abc import Mapping

from bnn_compiler.schedules.bit_pool import ActivationWriter
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    copy_lanes,
    load,
    register,
    serial,
    splat,
    store,
    tile_starts,
    typed,
    workspace,
)
from bnn_compiler.schedules.popcount import HALF_BITS, WORD_BITS, words_per


def flat_reader(writer: ConvGeometry) -> ConvGeometry:
    """A 1x1 convolution that reads the only pixel of a layer's output (or a pool's) as a dense layer does."""
    return ConvGeometry(writer.batch, writer.out_channels, 1, 1, 1, (1, 1))


class FeatureWriter(ActivationWriter):
    """Writes the channels of an image's only pixel as the packed activation of a dense layer."""

    def __init__(
        self, reader: ConvGeometry, pool: ConvGeometry | None, target: Buffer, buffers: Mapping[str, Buffer]
    ) -> None:
        super().__init__(reader, pool, buffers)
        self._target = target
        self._words = words_per(reader.in_channels)
        self._collected = workspace(self._words, "uint64")
        self._word = register(1, "uint64")

    def write(self, source: Buffer, start: Index, word: Index, target: Buffer, plane: Expr, ring: Expr) -> None:
        """Keep the pixel's word."""
        source, start = self.pooled(source, start, word)
        store(self._collected, word, load(source, start))

    def finish(self, image: Index) -> None:
        """Bring the bits of all words into the order of features."""
        with serial(self._words) as word:
            store(self._word, 0, constant(0, "uint64"))
            with serial(WORD_BITS) as step:
                feature = bind(step * self._words + word)
                bit = load(self._collected, feature // WORD_BITS) >> (feature % WORD_BITS).astype("uint64")
                bit = (bit & constant(1, "uint64")) << step.astype("uint64")
                store(self._word, 0, load(self._word, 0) | bit)
            store(self._target, image * self._words + word, load(self._word, 0))


class FeaturePacker:
    """Gathers a row of features, uint32 0 or 1 each, into words. Make it at the top of a kernel's body."""

    def __init__(self, features: int, isa: Isa) -> None:
        self._features = features
        self.words = words_per(features)
        self._lanes = copy_lanes(self.words, isa.vector_bits // 32)
        self._halves = [register(self._lanes, "uint32") for _ in range(2)]

    @property
    def stride(self) -> int:
        """Elements between rows: those behind the last feature must be 0."""
        return self.words * WORD_BITS

    def clear_rest(self, source: Buffer, start: Index) -> None:
        """Make them 0 in the row at ``start``."""
        if self.stride > self._features:
            with serial(self.stride - self._features) as index:
                store(source, start + self._features + index, constant(0, "uint32"))

    def pack(self, source: Buffer, start: Index, target: Buffer, target_start: Index) -> None:
        """Pack the row at ``start`` of ``source`` to ``target_start``."""
        lanes = self._lanes
        full, rest = tile_starts(self.words, lanes, 1)

        def pack_words(word: Index) -> None:
            for half, bits in enumerate(self._halves):
                store(bits, 0, constant(0, "uint32", lanes), lanes)
                with serial(HALF_BITS) as step:
                    found = load(source, start + (half * HALF_BITS + step) * self.words + word, lanes)
                    found = found << splat(step.astype("uint32"), lanes)
                    store(bits, 0, load(bits, 0, lanes) | found, lanes)
            low, high = (load(bits, 0, lanes).astype(typed("uint64", lanes)) for bits in self._halves)
            store(target, target_start + word, low | (high << constant(HALF_BITS, "uint64", lanes)), lanes)

        with serial(full) as tile:
            pack_words(tile * lanes)
        for word in rest:
            pack_words(word)
