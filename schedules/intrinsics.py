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
#: (a ^ b) & c as the truth table of vpternlog, whose inputs are 0xF0, 0xCC and 0xAA.
_XOR_AND = (0xF0 ^ 0xCC) & 0xAA
#: popcount(0) … popcount(15) as bytes, in two little-endian halves.
_NIBBLE_COUNTS = (0x0302020102010100, 0x0403030203020201)


def _llvm(name: str, dtype: str, *operands: Expr) -> Expr:
    return tirx.call_llvm_pure_intrin(dtype, tirx.const(codegen.llvm_lookup_intrinsic_id(name), "uint32"), *operands)


def fused_multiply_add(a: Expr, b: Expr, c: Expr, dtype: str, isa: Isa) -> Expr:
    """``a·b + c``, rounded once where the CPU has FMA, else twice; ``reference.multiply_add`` is its semantics."""
    return _llvm("llvm.fma", dtype, a, b, c) if isa.fused_multiply_add else a * b + c


def has_avx512(isa: Isa) -> bool:
    """Whether ``narrow_pair`` and ``lookup_int32`` exist."""
    return isa.popcount in ("vpopcntq", "avx512_lookup")


def narrow_pair(low: Expr, high: Expr) -> Expr:
    """The low halves of two uint64x8 as one int32x16: one ``vpermt2d``, where two conversions would take five."""
    dtype = "int32x16"
    even = join([tirx.const(2 * lane, "int32") for lane in range(16)])
    return _llvm(
        "llvm.x86.avx512.vpermi2var.d.512", dtype, tirx.reinterpret(dtype, low), even, tirx.reinterpret(dtype, high)
    )


def narrow_pair_semantics(low: UInt64Array, high: UInt64Array) -> NDArray[np.int32]:
    """``narrow_pair`` on arrays of 8."""
    return np.concatenate([low, high]).astype(np.uint32).view(np.int32)


def lookup_int32(table: list[Expr], index: Expr, lanes: int) -> Expr:
    """``table[index[lane]]`` for 8 or 16 lanes; ``table`` is a list of int32 x lanes, ``index`` int32 x lanes in range.

    One ``vpermd`` or ``vpermt2d`` per two vectors of the table, which read only the index bits they need.
    """
    dtype = typed("int32", lanes)
    if lanes == 16 and len(table) == 1:
        return _llvm("llvm.x86.avx512.permvar.si.512", dtype, table[0], index)
    padded = table if len(table) % 2 == 0 else [*table, table[-1]]
    result = None
    for pair in range(0, len(padded), 2):
        found = _llvm(f"llvm.x86.avx512.vpermi2var.d.{32 * lanes}", dtype, padded[pair], index, padded[pair + 1])
        below = index < constant(lanes * pair, "int32", lanes)
        result = found if result is None else tirx.Select(below, result, found)
    return result


def lookup_semantics(table: NDArray[np.int32], index: NDArray[np.int32]) -> NDArray[np.int32]:
    """``lookup_int32`` on a flat table."""
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

    def prepare(self, operand: Expr) -> tuple[Expr, ...]:
        """What ``accumulate`` needs of an operand (uint64 x lanes) and can be computed once for all its partners."""
        return (operand,)

    @abstractmethod
    def accumulate(self, partial: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """``partial`` plus the number of bits in which two prepared operands differ."""

    @abstractmethod
    def widen(self, partial: Expr) -> Expr:
        """The totals (uint64 x lanes) in ``partial``."""

    def accumulate_semantics(self, partial: NDArray[Any], a: UInt64Array, b: UInt64Array) -> NDArray[Any]:
        """``accumulate`` on arrays whose last axis is the vector."""
        elements = (a ^ b).view(self.partial_dtype)
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

    def accumulate(self, partial: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """See ``VectorPopcount``."""
        return partial + tirx.popcount(a[0] ^ b[0])

    def widen(self, partial: Expr) -> Expr:
        """See ``VectorPopcount``."""
        return partial


class LookupPopcount(VectorPopcount):
    """``vpshufb`` as a table of nibble counts into byte counters (8 per byte and word), widened by ``vpsadbw``."""

    def accumulate(self, partial: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """See ``VectorPopcount``."""
        mask = constant(_LOW_NIBBLES, "uint64", self.lanes)
        differing = a[0] ^ b[0]
        low = self._nibble_counts(differing & mask)
        high = self._nibble_counts((differing >> constant(4, "uint64", self.lanes)) & mask)
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


class TernaryLookupPopcount(LookupPopcount):
    """``LookupPopcount`` where ternary logic combines two operands and masks the nibbles in one instruction.

    The high nibbles of an operand are shifted down once, not once per pair: six instructions per pair instead of eight.
    """

    def prepare(self, operand: Expr) -> tuple[Expr, ...]:
        """See ``VectorPopcount``: low nibbles and high nibbles in the low halves of bytes, below junk."""
        return operand, operand >> constant(4, "uint64", self.lanes)

    def accumulate(self, partial: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """See ``VectorPopcount``."""
        low, high = (self._nibble_counts(self._differing_nibbles(x, y)) for x, y in zip(a, b, strict=True))
        return partial + low + high

    def _differing_nibbles(self, a: Expr, b: Expr) -> Expr:
        mask = constant(_LOW_NIBBLES, "uint64", self.lanes)
        dtype = typed("uint64", self.lanes)
        return _llvm("llvm.x86.avx512.pternlog.q.512", dtype, a, b, mask, tirx.const(_XOR_AND, "int32"))


class NeonPopcount(VectorPopcount):
    """``cnt`` on bytes, ``uadalp`` into 16-bit counters (16 per element and word), widened by two ``uaddlp``."""

    def accumulate(self, partial: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """See ``VectorPopcount``."""
        counts = tirx.popcount(tirx.reinterpret("uint8x16", a[0] ^ b[0]))
        return partial + _llvm("llvm.aarch64.neon.uaddlp.v8i16.v16i8", "uint16x8", counts)

    def widen(self, partial: Expr) -> Expr:
        """See ``VectorPopcount``."""
        fours = _llvm("llvm.aarch64.neon.uaddlp.v4i32.v8i16", "uint32x4", partial)
        return _llvm("llvm.aarch64.neon.uaddlp.v2i64.v4i32", "uint64x2", fours)


#: The register tiles are the best measured (see docs/kernels.md); AVX2 and SSE have 16 registers, the others 32.
_UNITS: dict[PopcountUnit, VectorPopcount] = {
    "vpopcntq": NativePopcount(lanes=8, partial_dtype="uint64", partial_words=None, tile=(4, 4)),
    "avx512_lookup": TernaryLookupPopcount(lanes=8, partial_dtype="uint8", partial_words=31, tile=(4, 4)),
    "avx2_lookup": LookupPopcount(lanes=4, partial_dtype="uint8", partial_words=31, tile=(2, 4)),
    "neon": NeonPopcount(lanes=2, partial_dtype="uint16", partial_words=4095, tile=(4, 4)),
    "portable": NativePopcount(lanes=2, partial_dtype="uint64", partial_words=None, tile=(1, 4)),
}


def vector_popcount(isa: Isa) -> VectorPopcount:
    """The way to count bits on ``isa``."""
    return _UNITS[isa.popcount]


def ternary_logic(a: Expr, b: Expr, c: Expr, table: int, lanes: int, isa: Isa) -> Expr:
    """A function of three bits, on uint64 x lanes; bit 4·a + 2·b + c of ``table`` is the result.

    One ``vpternlogq`` where the CPU has it. Elsewhere the tables of full adders are spelt so that LLVM finds the
    shortest sequence (three instructions on NEON, five on AVX2).
    """
    if isa.ternary_logic and lanes > 1:
        name = f"llvm.x86.avx512.pternlog.q.{64 * lanes}"
        return _llvm(name, typed("uint64", lanes), a, b, c, tirx.const(table, "int32"))
    if table == 0x96:
        return a ^ b ^ c
    if table == 0xE8:
        return a ^ ((a ^ b) & (a ^ c))
    if table == 0x8E:
        inverted = tirx.bitwise_not(a)
        return inverted ^ ((inverted ^ b) & (inverted ^ c))
    raise ValueError(f"no spelling of the truth table {table:#04x}")


def ternary_logic_semantics(a: UInt64Array, b: UInt64Array, c: UInt64Array, table: int) -> UInt64Array:
    """``ternary_logic`` bit by bit."""
    result = np.zeros_like(a)
    for case in range(8):
        if table >> case & 1:
            terms = [x if case >> shift & 1 else ~x for x, shift in ((a, 2), (b, 1), (c, 0))]
            result |= terms[0] & terms[1] & terms[2]
    return result


def has_affine_transpose(isa: Isa) -> bool:
    """Whether ``affine_transpose`` exists, with the byte shuffles of two vectors that make it worth having (VBMI)."""
    return isa.gfni and has_avx512(isa)


def affine_transpose(octets: Expr, lanes: int) -> Expr:
    """The 8 x 8 bits of each 64-bit lane of uint8 x 8L transposed, and the order of its bytes reversed before.

    Bit i of byte j of the result is bit j of byte 7 − i. One ``vgf2p8affineqb``, which multiplies matrices
    over GF(2): here unit vectors by the data.
    """
    units = join([constant(1 << lane % 8, "uint8") for lane in range(8 * lanes)])
    name = f"llvm.x86.vgf2p8affineqb.{64 * lanes}"
    return _llvm(name, typed("uint8", 8 * lanes), units, octets, tirx.const(0, "int8"))


def affine_transpose_semantics(octets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``affine_transpose`` on arrays whose last axis is a multiple of 8 bytes."""
    matrices = octets.reshape(*octets.shape[:-1], -1, 8)
    bits = np.unpackbits(matrices[..., ::-1, None], axis=-1, bitorder="little")
    transposed = np.packbits(np.swapaxes(bits, -1, -2), axis=-1, bitorder="little")
    return transposed.reshape(octets.shape)
