"""Vector width and register count of a target, as the float kernels use them."""

from __future__ import annotations

from dataclasses import dataclass

from .isa import Isa


@dataclass(frozen=True)
class FloatVector:
    """A target's float32 SIMD unit: elements per register, registers that code may use."""

    lanes: int
    registers: int


def float_vector(isa: Isa) -> FloatVector:
    """Return the widest float32 vectors of ``isa``.

    A target without SIMD gets four lanes too: LLVM splits such vectors into scalars and the code stays right.
    """
    # AVX-512 and AArch64 doubled the register file of their predecessors.
    many_registers = isa.vector_bits == 512 or isa.popcount == "neon"
    return FloatVector(lanes=isa.vector_bits // 32, registers=32 if many_registers else 16)
