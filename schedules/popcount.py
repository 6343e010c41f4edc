"""XNOR-popcount matrix products in a register tile; shared by convolution and dense layers.

With activation bits x and weight bits u (1 where the weight is +1), P = Σ popcount(x ^ u) counts the disagreements, and
the integer result is z = offset - step·P:

    bipolar   {-1,+1}     z = K - 2·P (+ the border correction of a zero-padded convolution)
    unsigned  {0,1}       z = U - P       with U the number of +1 weights of the channel
    ternary   {-1,0,+1}   z = K - P       over the planes [x > 0, x < 0] against [u, ~u]

K is the number of weights of a channel, taps in the padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from bnn_compiler.schedules.intrinsics import VectorPopcount, fused_multiply_add, has_avx512, narrow_pair
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    load,
    register,
    serial,
    splat,
    store,
    typed,
)

Alphabet = Literal["bipolar", "unsigned", "ternary"]
OutDtype = Literal["float32", "int32"]

WORD_BITS = 64


def planes(alphabet: Alphabet) -> int:
    """Bit planes per activation."""
    return 2 if alphabet == "ternary" else 1


def words_per(bits: int) -> int:
    """64-bit words that hold ``bits``."""
    return -(-bits // WORD_BITS)


class PopcountTile:
    """A register tile: every vector of 64-bit words against every broadcast word, over a depth of words."""

    def __init__(self, unit: VectorPopcount, vectors: int, words: int, depth: int) -> None:
        """Allocate the registers of ``vectors`` x ``words`` counters; call it at the top of a kernel's body."""
        self._unit = unit
        self._depth = depth
        self._counts = [
            [register(unit.partial_lanes, unit.partial_dtype) for _ in range(words)] for _ in range(vectors)
        ]
        self._overflows = unit.partial_words is not None and depth > unit.partial_words
        if self._overflows:
            self._totals = [[register(unit.lanes, "uint64") for _ in range(words)] for _ in range(vectors)]

    def emit(
        self, vectors: int, words: int, vector_at: Callable[[Index, int], Expr], word_at: Callable[[Index, int], Expr]
    ) -> list[list[Expr]]:
        """Emit the loop over the depth; ``totals[i][j]`` (uint64 vectors) counts vector i against word j.

        ``vector_at(k, i)`` and ``word_at(k, j)`` load the operands at depth ``k``. A smaller tile than the registers
        allocated is fine.
        """
        if not self._overflows:
            self._emit_chunk(0, self._depth, vectors, words, vector_at, word_at)
            return [[self._widened(i, j) for j in range(words)] for i in range(vectors)]
        chunk = self._unit.partial_words
        assert chunk is not None
        lanes = self._unit.lanes
        for i in range(vectors):
            for j in range(words):
                store(self._totals[i][j], 0, constant(0, "uint64", lanes), lanes)

        def flush() -> None:
            for i in range(vectors):
                for j in range(words):
                    total = self._totals[i][j]
                    store(total, 0, load(total, 0, lanes) + self._widened(i, j), lanes)

        with serial(self._depth // chunk) as block:
            self._emit_chunk(block * chunk, chunk, vectors, words, vector_at, word_at)
            flush()
        if rest := self._depth % chunk:
            self._emit_chunk(self._depth - rest, rest, vectors, words, vector_at, word_at)
            flush()
        return [[load(self._totals[i][j], 0, lanes) for j in range(words)] for i in range(vectors)]

    def _emit_chunk(
        self,
        start: Index,
        depth: int,
        vectors: int,
        words: int,
        vector_at: Callable[[Index, int], Expr],
        word_at: Callable[[Index, int], Expr],
    ) -> None:
        unit = self._unit
        for i in range(vectors):
            for j in range(words):
                store(self._counts[i][j], 0, constant(0, unit.partial_dtype, unit.partial_lanes), unit.partial_lanes)
        with serial(depth) as step:
            k = start + step
            operands = [self._prepared(vector_at(k, i)) for i in range(vectors)]
            for j in range(words):
                word = self._prepared(splat(word_at(k, j), unit.lanes))
                for i in range(vectors):
                    counts = self._counts[i][j]
                    partial = load(counts, 0, unit.partial_lanes)
                    store(counts, 0, unit.accumulate(partial, operands[i], word), unit.partial_lanes)

    def _prepared(self, operand: Expr) -> tuple[Expr, ...]:
        return tuple(bind(part) for part in self._unit.prepare(bind(operand)))

    def _widened(self, i: int, j: int) -> Expr:
        return self._unit.widen(load(self._counts[i][j], 0, self._unit.partial_lanes))


def spans(offsets: Sequence[int], lanes: int, isa: Isa) -> Iterator[tuple[int, int]]:
    """Group the vectors of a tile for the epilogue: (index of the first, number of vectors), one or two vectors each.

    ``offsets`` are the vectors' first elements. AVX-512 treats two adjacent vectors of 64-bit totals as one of 32-bit
    results, which halves the epilogue; that is a tenth of a 3x3 convolution of 64 channels.
    """
    index = 0
    while index < len(offsets):
        adjacent = index + 1 < len(offsets) and offsets[index + 1] - offsets[index] == lanes
        count = 2 if has_avx512(isa) and adjacent else 1
        yield index, count
        index += count


def narrowed(totals: Sequence[Expr], lanes: int) -> Expr:
    """The totals of a span, each uint64 x lanes, as one vector of int32."""
    return narrow_pair(*totals) if len(totals) == 2 else totals[0].astype(typed("int32", lanes))


def integer_result(disagreements: Expr, offset: Expr, alphabet: Alphabet, lanes: int) -> Expr:
    """z = offset - step·P as int32 x lanes, from P and the offset as int32 x lanes."""
    if alphabet == "bipolar":
        disagreements = disagreements << constant(1, "int32", lanes)
    return offset - disagreements


def float_result(z: Expr, scale: Expr | None, bias: Expr | None, lanes: int, isa: Isa) -> Expr:
    """float(z)·scale + bias as float32 x lanes; ``scale`` and ``bias`` are float32 x lanes or absent."""
    dtype = typed("float32", lanes)
    y = z.astype(dtype)
    if scale is not None and bias is not None:
        return fused_multiply_add(y, scale, bias, dtype, isa)
    if scale is not None:
        return y * scale
    return y if bias is None else y + bias


def store_leading(buffer: Buffer, index: Index, values: Expr, count: int, lanes: int, spill: Buffer) -> None:
    """Store the first ``count`` of ``lanes`` values; ``spill`` is a register of the same type to take them apart."""
    if count == lanes:
        store(buffer, index, values, lanes)
        return
    store(spill, 0, values, lanes)
    for lane in range(count):
        store(buffer, index + lane, load(spill, lane))
