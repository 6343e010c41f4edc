"""XNOR-popcount matrix products in a register tile; shared by convolution and dense layers.

With activation bits x and weight bits u (1 where the weight is +1), P = Σ popcount(x ^ u) counts the disagreements, and
the integer result is z = offset - step·P:

    bipolar   {-1,+1}     z = K - 2·P (+ the border correction of a zero-padded convolution)
    unsigned  {0,1}       z = U - P       with U the number of +1 weights of the channel
    ternary   {-1,0,+1}   z = K - P       over the planes [x > 0, x < 0] against [u, ~u]

K is the number of weights of a channel, taps in the padding included.

Codes of k = 2, 3 or 4 bits (``unsigned2`` …, ``bipolar2`` …) generalise the first two: an activation is c·code − zero
with c = 1 (unsigned) or 2 (bipolar) and an integer ``zero``. Plane p holds bit p of the codes, P_p counts its
disagreements with u, P = Σ 2^p·P_p, and Σ w·code = (2^k − 1)·U − P, hence

    z = c·(2^k − 1)·U − zero·κ − c·P       with κ = 2·U − K the sum of the weights inside the image.

With k = 1 and zero = 1 (bipolar) or 0 (unsigned) these are the formulas above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

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

Alphabet = Literal[
    "bipolar", "unsigned", "ternary", "bipolar2", "bipolar3", "bipolar4", "unsigned2", "unsigned3", "unsigned4"
]
OutDtype = Literal["float32", "int32"]
#: Loads one operand of a tile: plane of the code, depth in words, vector or word of the tile.
Operand = Callable[[int, Index, int], Expr]

WORD_BITS = 64
HALF_BITS = WORD_BITS // 2


def planes(alphabet: Alphabet) -> int:
    """Bit planes per activation."""
    return 2 if alphabet == "ternary" else code_bits(alphabet)


def codes_alphabet(*, bipolar: bool, bits: int) -> Alphabet:
    """The alphabet of codes of 2, 3 or 4 bits."""
    if not 2 <= bits <= 4:
        raise ValueError(f"codes have 2, 3 or 4 bits, not {bits}")
    return f"{'bipolar' if bipolar else 'unsigned'}{bits}"  # type: ignore[return-value]


def code_bits(alphabet: Alphabet) -> int:
    """Bit planes that weigh 1, 2, 4 … and meet the same weights."""
    return int(alphabet[-1]) if alphabet[-1].isdigit() else 1


def is_bipolar(alphabet: Alphabet) -> bool:
    """Whether a step of the code is a step of two in z."""
    return alphabet.startswith("bipolar")


def code_step(alphabet: Alphabet) -> int:
    """c of the module's docstring: what a step of the code is in z."""
    return 2 if is_bipolar(alphabet) else 1


def default_zero(alphabet: Alphabet) -> int:
    """What c·code is where an activation is 0, unless a layer says otherwise: bipolar codes are symmetric about 0."""
    return (1 << code_bits(alphabet)) - 1 if is_bipolar(alphabet) else 0


def has_offset_per_channel(alphabet: Alphabet, zero: int) -> bool:
    """Whether z = offset − step·P has an offset that differs between channels even without a border correction."""
    if alphabet == "ternary":
        return False
    return not (is_bipolar(alphabet) and zero == default_zero(alphabet))


def common_offset(alphabet: Alphabet, weights: int) -> int:
    """The offset in z of channels of ``weights`` weights, where ``has_offset_per_channel`` is false."""
    return weights if alphabet == "ternary" else default_zero(alphabet) * weights


def channel_offsets(signs: NDArray[np.bool_], alphabet: Alphabet, zero: int) -> NDArray[np.int32]:
    """The offset of each channel, int32 [O], all taps inside the image; ``signs`` bool [O, …]."""
    plus = signs.reshape(len(signs), -1).sum(axis=1, dtype=np.int64)
    weights = signs[0].size
    if alphabet == "ternary":
        return np.full(len(signs), common_offset(alphabet, weights), np.int32)
    offsets = code_step(alphabet) * ((1 << code_bits(alphabet)) - 1) * plus - zero * (2 * plus - weights)
    return np.asarray(offsets.astype(np.int32))


def words_per(bits: int) -> int:
    """64-bit words that hold ``bits``."""
    return -(-bits // WORD_BITS)


class PopcountTile:
    """A register tile: every vector of 64-bit words against every broadcast word, over a depth of words.

    With several ``bits`` one side has as many bit planes of ``depth`` words, which meet the same words of the other
    side. The highest plane is counted first and the counters double between planes: Σ 2^p·P_p costs one addition per
    counter and plane beside the counting.
    """

    def __init__(self, unit: VectorPopcount, vectors: int, words: int, depth: int, bits: int = 1) -> None:
        """Allocate the registers of ``vectors`` x ``words`` counters; call it at the top of a kernel's body."""
        self._unit = unit
        self._depth = depth
        self._bits = bits
        self._counts = [
            [register(unit.partial_lanes, unit.partial_dtype) for _ in range(words)] for _ in range(vectors)
        ]
        self._overflows = unit.partial_words is not None and depth * ((1 << bits) - 1) > unit.partial_words
        if self._overflows:
            self._totals = [[register(unit.lanes, "uint64") for _ in range(words)] for _ in range(vectors)]

    def emit(self, vectors: int, words: int, vector_at: Operand, word_at: Operand) -> list[list[Expr]]:
        """Emit the loop over the depth; ``totals[i][j]`` (uint64 vectors) counts vector i against word j.

        ``vector_at(p, k, i)`` and ``word_at(p, k, j)`` load the operands of plane ``p`` at depth ``k``. A smaller tile
        than the registers allocated is fine.
        """
        unit, lanes = self._unit, self._unit.lanes
        counts = [row[:words] for row in self._counts[:vectors]]
        if not self._overflows:
            for plane in reversed(range(self._bits)):
                _clear_or_double(counts, unit.partial_dtype, unit.partial_lanes, clear=plane == self._bits - 1)
                self._emit_steps(plane, 0, self._depth, vectors, words, vector_at, word_at)
            return [[self._widened(i, j) for j in range(words)] for i in range(vectors)]
        chunk = unit.partial_words
        assert chunk is not None
        totals = [row[:words] for row in self._totals[:vectors]]

        def count_chunk(plane: int, start: Index, depth: int) -> None:
            _clear_or_double(counts, unit.partial_dtype, unit.partial_lanes, clear=True)
            self._emit_steps(plane, start, depth, vectors, words, vector_at, word_at)
            for i, row in enumerate(totals):
                for j, total in enumerate(row):
                    store(total, 0, load(total, 0, lanes) + self._widened(i, j), lanes)

        for plane in reversed(range(self._bits)):
            _clear_or_double(totals, "uint64", lanes, clear=plane == self._bits - 1)
            with serial(self._depth // chunk) as block:
                count_chunk(plane, block * chunk, chunk)
            if rest := self._depth % chunk:
                count_chunk(plane, self._depth - rest, rest)
        return [[load(total, 0, lanes) for total in row] for row in totals]

    def _emit_steps(
        self,
        plane: int,
        start: Index,
        depth: int,
        vectors: int,
        words: int,
        vector_at: Operand,
        word_at: Operand,
    ) -> None:
        """Count ``depth`` words of one plane from ``start`` on."""
        unit = self._unit
        with serial(depth) as step:
            k = start + step
            operands = [self._prepared(vector_at(plane, k, i)) for i in range(vectors)]
            for j in range(words):
                word = self._prepared(splat(word_at(plane, k, j), unit.lanes))
                for i in range(vectors):
                    counts = self._counts[i][j]
                    partial = load(counts, 0, unit.partial_lanes)
                    store(counts, 0, unit.accumulate(partial, operands[i], word), unit.partial_lanes)

    def _prepared(self, operand: Expr) -> tuple[Expr, ...]:
        return tuple(bind(part) for part in self._unit.prepare(bind(operand)))

    def _widened(self, i: int, j: int) -> Expr:
        return self._unit.widen(load(self._counts[i][j], 0, self._unit.partial_lanes))


def _clear_or_double(registers: Sequence[Sequence[Buffer]], dtype: str, lanes: int, *, clear: bool) -> None:
    for row in registers:
        for counter in row:
            value = load(counter, 0, lanes)
            store(counter, 0, constant(0, dtype, lanes) if clear else value + value, lanes)


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
    if is_bipolar(alphabet):
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
