"""Transposing bit matrices in vector lanes, by butterflies of shifts and masks.

A square matrix of n bits by n bits lies in n words (or in n fields of n bits of wider words): bit c of word r is entry
(r, c). Swapping the off-diagonal blocks of size n/2, then n/4 … 1 transposes it (Warren, Hacker's Delight, 7-3):

    t = ((a >> j) ^ b) & m;   b ^= t;   a ^= t << j        for words a = r, b = r + j,  m = the low j of every 2j bits

Every lane of a vector holds a matrix of its own. Words known to be zero are ``None`` and cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.kernel_builder import Expr, bind, constant

UInt64Array = NDArray[np.uint64]
Word = Expr | None


def low_mask(distance: int) -> int:
    """The low ``distance`` of every ``2·distance`` bits of a 64-bit word."""
    block = (1 << distance) - 1
    return sum(block << shift for shift in range(0, 64, 2 * distance))


def butterfly(a: Word, b: Word, distance: int, lanes: int) -> tuple[Word, Word]:
    """Swap the high bits of ``a`` with the low bits of ``b``, in blocks of ``distance`` (uint64 x lanes)."""
    mask = constant(low_mask(distance), "uint64", lanes)
    shift = constant(distance, "uint64", lanes)
    if a is None and b is None:
        return None, None
    if b is None:
        return bind(a & mask), bind((a >> shift) & mask)
    if a is None:
        return bind((b & mask) << shift), bind(b ^ (b & mask))
    difference = bind(((a >> shift) ^ b) & mask)
    return bind(a ^ (difference << shift)), bind(b ^ difference)


def butterflies(words: Sequence[Word], distances: Sequence[int], lanes: int, stride: int = 1) -> list[Word]:
    """Butterfly stages on ``words``; word i stands for word ``i·stride`` of the matrix."""
    current = list(words)
    for distance in distances:
        step = distance // stride
        for first in range(len(current)):
            if not first & step:
                current[first], current[first + step] = butterfly(
                    current[first], current[first + step], distance, lanes
                )
    return current


def butterfly_semantics(a: UInt64Array, b: UInt64Array, distance: int) -> tuple[UInt64Array, UInt64Array]:
    """``butterfly`` in NumPy."""
    shift = np.uint64(distance)
    difference = ((a >> shift) ^ b) & np.uint64(low_mask(distance))
    return a ^ (difference << shift), b ^ difference


def exchange_bytes(vectors: Sequence[Word], lanes: int) -> list[Word]:
    """Transpose the 8 x 8 bytes that eight vectors (uint8 x 8L) hold in each 64-bit lane, by shuffles of two vectors.

    Byte j of lane l of result i is byte i of lane l of vector j.
    """
    zero = constant(0, "uint8", 8 * lanes)
    current = list(vectors)
    for distance in (4, 2, 1):
        for first in range(8):
            if not first & distance:
                a, b = current[first], current[first + distance]
                if a is None and b is None:
                    continue
                pair = [zero if a is None else a, zero if b is None else b]
                for side, order in enumerate(byte_exchange_order(lanes, distance)):
                    indices = [tirx.const(index, "int32") for index in order]
                    current[first + side * distance] = bind(tirx.Shuffle(pair, indices))
    return current


def byte_exchange_order(lanes: int, distance: int) -> tuple[list[int], list[int]]:
    """Shuffle indices of a butterfly on the bytes of each 64-bit lane of a pair of vectors (both results).

    Byte i of the first result is byte i of a where i has no bit ``distance``, else byte i − distance of b.
    """
    octets = 8 * lanes
    first = [i if not i & distance else octets + i - distance for i in range(octets)]
    second = [i + distance if not i & distance else octets + i for i in range(octets)]
    return first, second
