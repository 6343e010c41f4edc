"""Vector instructions beyond what TIR expresses, each with executable semantics in NumPy.

``VectorPopcount`` counts bits per 64-bit lane. Where a CPU counts in smaller elements (bytes, 16 bits) the counts are
kept there as *partial* counts, whose element can take ``partial_words`` words before it may overflow; then they are
widened into the 64-bit totals. So no count can overflow: a 64-bit lane holds anything, and totals are cut to 32 bits
only when a whole dot product is done (at most 2^31 - 1 weights).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.target import codegen

from bnn_compiler.schedules.isa import Isa, PopcountUnit
from bnn_compiler.schedules.kernel_builder import Expr, constant, join, typed

UInt64Array = NDArray[np.uint64]

_LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
#: popcount(0) … popcount(15) as bytes, in two little-endian halves.
_NIBBLE_COUNTS = (0x0302020102010100, 0x0403030203020201)


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, tirx.const(codegen.llvm_lookup_intrinsic_id(name), "uint32"), *operands)


def fused_multiply_add(a: Expr, b: Expr, c: Expr, dtype: str, isa: Isa) -> Expr:
    """``a·b + c``, rounded once where the CPU has FMA, else twice; ``reference.multiply_add`` is its semantics."""
    return _llvm("llvm.fma", dtype, a, b, c) if isa.fused_multiply_add else a * b + c


def has_table_lookup(isa: Isa) -> bool:
    """Whether ``lookup_int32x8`` exists: AVX-512 only."""
    return isa.popcount in ("vpopcntq", "avx512_lookup")


def lookup_int32x8(table: list[Expr], index: Expr) -> Expr:
    """``table[index[lane]]`` for 8 lanes (``vpermi2d``); ``table`` is a list of int32x8, ``index`` int32x8 in range."""
    padded = table if len(table) % 2 == 0 else [*table, table[-1]]
    result = None
    for pair in range(0, len(padded), 2):
        # vpermi2d reads only the lowest four bits of an index.
        found = _llvm("llvm.x86.avx512.vpermi2var.d.256", "int32x8", padded[pair], index, padded[pair + 1])
        below = index < constant(8 * pair, "int32", 8)
        result = found if result is None else tirx.Select(below, result, found)
    return result


def lookup_semantics(table: NDArray[np.int32], index: NDArray[np.int32]) -> NDArray[np.int32]:
    """``lookup_int32x8`` on a flat table."""
    return table[index]


@dataclass(frozen=True)
class VectorPopcount(ABC):
    """How one CPU family counts bits in vectors of ``lanes`` 64-bit words.

    ``tile`` is the register tile (vectors, broadcast words) that fits the CPU's registers next to the operands.
    ``partial_words`` is None where counts are 64-bit totals at once.
    """

    lanes: int
    partial_dtype: str
    partial_words: int | None
    tile: tuple[int, int]

    @property
    def partial_lanes(self) -> int:
        """Elements of a vector of partial counts."""
        return self.lanes * 8 // int(np.dtype(self.partial_dtype).itemsize)

    @abstractmethod
    def accumulate(self, partial: Expr, words: Expr) -> Expr:
        """``partial`` plus the bit counts of ``words`` (uint64 x lanes)."""

    @abstractmethod
    def widen(self, partial: Expr) -> Expr:
        """The totals (uint64 x lanes) in ``partial``."""

    def accumulate_semantics(self, partial: NDArray[Any], words: UInt64Array) -> NDArray[Any]:
        """``accumulate`` on arrays whose last axis is the vector."""
        elements = words.view(self.partial_dtype)
        counts = np.bitwise_count(elements) if hasattr(np, "bitwise_count") else _count_bits(elements)
        return (partial + counts).astype(self.partial_dtype)

    def widen_semantics(self, partial: NDArray[Any]) -> UInt64Array:
        """``widen`` on arrays whose last axis is the vector."""
        grouped = partial.reshape(*partial.shape[:-1], self.lanes, -1)
        totals: UInt64Array = grouped.sum(axis=-1, dtype=np.uint64)
        return totals


def _count_bits(elements: NDArray[Any]) -> NDArray[np.uint8]:
    """``np.bitwise_count`` for NumPy 1."""
    octets = elements.view(np.uint8).reshape(*elements.shape, elements.dtype.itemsize)
    counts: NDArray[np.uint8] = np.unpackbits(octets, axis=-1).sum(axis=-1, dtype=np.uint8)
    return counts


class NativePopcount(VectorPopcount):
    """``T.popcount`` on 64-bit lanes: ``vpopcntq`` where it exists, else what LLVM makes of it."""

    def accumulate(self, partial: Expr, words: Expr) -> Expr:
        """See ``VectorPopcount``."""
        return partial + tirx.popcount(words)

    def widen(self, partial: Expr) -> Expr:
        """See ``VectorPopcount``."""
        return partial


class LookupPopcount(VectorPopcount):
    """``vpshufb`` as a table of nibble counts into byte counters (8 per byte and word), widened by ``vpsadbw``."""

    def accumulate(self, partial: Expr, words: Expr) -> Expr:
        """See ``VectorPopcount``."""
        mask = constant(_LOW_NIBBLES, "uint64", self.lanes)
        low = self._nibble_counts(words & mask)
        high = self._nibble_counts((words >> constant(4, "uint64", self.lanes)) & mask)
        return partial + low + high

    def _nibble_counts(self, nibbles: Expr) -> Expr:
        octets = typed("uint8", 8 * self.lanes)
        table = join([constant(_NIBBLE_COUNTS[lane % 2], "uint64") for lane in range(self.lanes)])
        name = "llvm.x86.avx512.pshuf.b.512" if self.lanes == 8 else "llvm.x86.avx2.pshuf.b"
        return _llvm(name, octets, tirx.reinterpret(octets, table), tirx.reinterpret(octets, nibbles))

    def widen(self, partial: Expr) -> Expr:
        """See ``VectorPopcount``."""
        name = "llvm.x86.avx512.psad.bw.512" if self.lanes == 8 else "llvm.x86.avx2.psad.bw"
        return _llvm(name, typed("uint64", self.lanes), partial, constant(0, "uint8", 8 * self.lanes))


class NeonPopcount(VectorPopcount):
    """``cnt`` on bytes, ``uadalp`` into 16-bit counters (16 per element and word), widened by two ``uaddlp``."""

    def accumulate(self, partial: Expr, words: Expr) -> Expr:
        """See ``VectorPopcount``."""
        counts = tirx.popcount(tirx.reinterpret("uint8x16", words))
        return partial + _llvm("llvm.aarch64.neon.uaddlp.v8i16.v16i8", "uint16x8", counts)

    def widen(self, partial: Expr) -> Expr:
        """See ``VectorPopcount``."""
        fours = _llvm("llvm.aarch64.neon.uaddlp.v4i32.v8i16", "uint32x4", partial)
        return _llvm("llvm.aarch64.neon.uaddlp.v2i64.v4i32", "uint64x2", fours)


#: The register tiles are the best measured (see docs/kernels.md); AVX2 and SSE have 16 registers, the others 32.
_UNITS: dict[PopcountUnit, VectorPopcount] = {
    "vpopcntq": NativePopcount(lanes=8, partial_dtype="uint64", partial_words=None, tile=(5, 4)),
    "avx512_lookup": LookupPopcount(lanes=8, partial_dtype="uint8", partial_words=31, tile=(4, 4)),
    "avx2_lookup": LookupPopcount(lanes=4, partial_dtype="uint8", partial_words=31, tile=(2, 4)),
    "neon": NeonPopcount(lanes=2, partial_dtype="uint16", partial_words=4095, tile=(4, 4)),
    "portable": NativePopcount(lanes=2, partial_dtype="uint64", partial_words=None, tile=(1, 4)),
}


def vector_popcount(isa: Isa) -> VectorPopcount:
    """The way to count bits on ``isa``."""
    return _UNITS[isa.popcount]
