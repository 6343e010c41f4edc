"""A bit-sliced counter: B bit planes c_0 … c_{B-1} that hold one B-bit number per bit position, in registers.

Adding 2^m planes takes 2^m − 1 full adders arranged as a carry-save tree, and one ripple of half adders through the
upper planes: long blocks amortise the ripple. Two thirds of the adders take no plane of the counter, so that the
latency of the counter's own chain (one adder per four planes at level 0) stays below the throughput of the adders.

Subtraction needs no inversion of the counter: c − a − b has the difference bit c ^ a ^ b, as the sum, and the borrow
maj(~c, a, b). So blocks that are subtracted differ from blocks that are added in one truth table.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.intrinsics import ternary_logic
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import Expr, bind, load, register, store

UInt64Array = NDArray[np.uint64]


class BitSlicedCounter:
    """``bits`` registers of ``lanes`` 64-bit words; allocate it at the top of a kernel's body."""

    def __init__(self, bits: int, lanes: int, isa: Isa) -> None:
        self.bits = bits
        self._lanes = lanes
        self._isa = isa
        self._registers = [register(lanes, "uint64") for _ in range(bits)]

    def above(self, level: int) -> BitSlicedCounter:
        """The same counter in units of 2^level, for planes that weigh as much: its upper planes, in place."""
        upper = copy.copy(self)
        upper._registers = self._registers[level:]
        upper.bits = self.bits - level
        return upper

    def plane(self, level: int) -> Expr:
        """The plane of weight 2^level."""
        return bind(load(self._registers[level], 0, self._lanes))

    def set_plane(self, level: int, value: Expr) -> None:
        """Replace the plane of weight 2^level."""
        store(self._registers[level], 0, value, self._lanes)

    def count(self, planes: int, plane_at: Callable[[int], Expr], *, subtract: bool) -> None:
        """Add (or subtract) ``planes`` planes, a power of two of at least four; ``plane_at(i)`` loads the i-th."""
        following = iter(range(planes))
        levels = planes.bit_length() - 1
        if planes != 1 << levels or levels < 2:
            raise AssertionError(f"a block of {planes} planes")
        carry = self._reduce(levels - 1, lambda: plane_at(next(following)), subtract=subtract)
        for level in range(levels, self.bits):
            current = self.plane(level)
            self.set_plane(level, bind(current ^ carry))
            carry = bind((tirx.bitwise_not(current) if subtract else current) & carry)

    def _reduce(self, level: int, following: Callable[[], Expr], *, subtract: bool) -> Expr:
        """Take 2^(level + 1) planes into planes 0 … level of the counter; the carry has weight 2^(level + 1)."""
        if level > 2:
            first = self._reduce(level - 1, following, subtract=subtract)
            second = self._reduce(level - 1, following, subtract=subtract)
            return self._into(level, first, second, subtract=subtract)
        if level == 1:
            total, first = full_adder(following(), following(), following(), self._lanes, self._isa)
            second = self._into(0, total, following(), subtract=subtract)
            return self._into(1, first, second, subtract=subtract)
        total, first = full_adder(following(), following(), following(), self._lanes, self._isa)
        other, second = full_adder(following(), following(), following(), self._lanes, self._isa)
        total, third = full_adder(total, other, following(), self._lanes, self._isa)
        fourth = self._into(0, total, following(), subtract=subtract)
        total, carry = full_adder(first, second, third, self._lanes, self._isa)
        return self._into(2, carry, self._into(1, total, fourth, subtract=subtract), subtract=subtract)

    def _into(self, level: int, a: Expr, b: Expr, *, subtract: bool) -> Expr:
        total, carry = full_adder(self.plane(level), a, b, self._lanes, self._isa, subtract=subtract)
        self.set_plane(level, total)
        return carry


def full_adder(a: Expr, b: Expr, c: Expr, lanes: int, isa: Isa, *, subtract: bool = False) -> tuple[Expr, Expr]:
    """(a ^ b ^ c, majority): the sum a + b + c, or with ``subtract`` difference and borrow of a − b − c."""
    total = bind(ternary_logic(a, b, c, 0x96, lanes, isa))
    return total, bind(ternary_logic(a, b, c, 0x8E if subtract else 0xE8, lanes, isa))


def full_adder_semantics(
    a: UInt64Array, b: UInt64Array, c: UInt64Array, *, subtract: bool = False
) -> tuple[UInt64Array, UInt64Array]:
    """``full_adder`` in NumPy."""
    minuend = ~a if subtract else a
    return a ^ b ^ c, (minuend & b) | (minuend & c) | (b & c)
