"""Arithmetic of messages: signs in {-1, 0, +1}, one per position, as two planes of bits.

A message is a pair of neighbouring rows of ``rows`` uint64[R, W]: +1 in the first, -1 in the second; positions past N
are 0 in both. All messages live in one array, and each loop writes one row: LLVM then needs so few overlap checks that
it uses vector instructions. Functions take row numbers, because counting references to a view costs more than the work.
"""

from __future__ import annotations

import numpy as np

from .machine_code import Words, compiled, popcount


@compiled
def conflict(rows: Words, a: int, b: int) -> int:
    """Number of positions where two messages contradict each other."""
    total = np.uint64(0)
    for w in range(rows.shape[1]):
        total += popcount((rows[a, w] & rows[b + 1, w]) | (rows[a + 1, w] & rows[b, w]))
    return int(total)


@compiled
def copy_message(rows: Words, source: int, target: int) -> bool:
    """Copy a message; return whether the copy changed."""
    change = np.uint64(0)
    for half in range(2):
        for w in range(rows.shape[1]):
            value = rows[source + half, w]
            change |= value ^ rows[target + half, w]
            rows[target + half, w] = value
    return bool(change != 0)


@compiled
def add_two(rows: Words, a: int, b: int, target: int) -> bool:
    """Write sign(a + b); return whether it changed."""
    change = np.uint64(0)
    for w in range(rows.shape[1]):
        value = (rows[a, w] & ~rows[b + 1, w]) | (rows[b, w] & ~rows[a + 1, w])
        change |= value ^ rows[target, w]
        rows[target, w] = value
    for w in range(rows.shape[1]):
        value = (rows[a + 1, w] & ~rows[b, w]) | (rows[b + 1, w] & ~rows[a, w])
        change |= value ^ rows[target + 1, w]
        rows[target + 1, w] = value
    return bool(change != 0)


@compiled
def add_three(rows: Words, a: int, b: int, c: int, target: int) -> None:
    """Write sign(a + b + c)."""
    for w in range(rows.shape[1]):
        sp = (rows[a, w] & ~rows[b + 1, w]) | (rows[b, w] & ~rows[a + 1, w])
        sm = (rows[a + 1, w] & ~rows[b, w]) | (rows[b + 1, w] & ~rows[a, w])
        rows[target, w] = (rows[a, w] & rows[b, w]) | (sp & ~rows[c + 1, w]) | (rows[c, w] & ~(sp | sm))
    for w in range(rows.shape[1]):
        sp = (rows[a, w] & ~rows[b + 1, w]) | (rows[b, w] & ~rows[a + 1, w])
        sm = (rows[a + 1, w] & ~rows[b, w]) | (rows[b + 1, w] & ~rows[a, w])
        rows[target + 1, w] = (rows[a + 1, w] & rows[b + 1, w]) | (sm & ~rows[c, w]) | (rows[c + 1, w] & ~(sp | sm))


@compiled
def clear(rows: Words, row: int, count: int) -> None:
    """Set rows to zero."""
    for r in range(row, row + count):
        for w in range(rows.shape[1]):
            rows[r, w] = np.uint64(0)


@compiled
def count_message(rows: Words, message: int, counter: int, planes: int, carry: int) -> None:
    """Add a message to two's complement counters: ``planes`` rows from ``counter``; ``carry`` is a scratch row."""
    words = rows.shape[1]
    for w in range(words):
        rows[carry, w] = rows[message, w]
    for plane in range(counter, counter + planes):
        for w in range(words):
            value, add = rows[plane, w], rows[carry, w]
            rows[plane, w] = value ^ add
            rows[carry, w] = value & add
    for w in range(words):
        rows[carry, w] = rows[message + 1, w]
    for plane in range(counter, counter + planes):
        for w in range(words):
            value, subtract = rows[plane, w], rows[carry, w]
            rows[plane, w] = value ^ subtract
            rows[carry, w] = ~value & subtract


@compiled
def sign_of(rows: Words, counter: int, planes: int, target: int, scratch: int) -> bool:
    """Write the signs of counters as a message; return whether it changed."""
    words = rows.shape[1]
    change = np.uint64(0)
    for w in range(words):
        rows[scratch, w] = rows[counter, w]
    for plane in range(counter + 1, counter + planes):
        for w in range(words):
            rows[scratch, w] |= rows[plane, w]
    top = counter + planes - 1
    for w in range(words):
        value = rows[scratch, w] & ~rows[top, w]
        change |= value ^ rows[target, w]
        rows[target, w] = value
    for w in range(words):
        value = rows[top, w]
        change |= value ^ rows[target + 1, w]
        rows[target + 1, w] = value
    return bool(change != 0)


@compiled
def classify(rows: Words, counter: int, planes: int, near: int) -> None:
    """Which counters are > 1, 1, 0, -1, < -1: five rows from ``near``; they decide the sign of counter - message."""
    words = rows.shape[1]
    above, one, zero, minus_one, below = near, near + 1, near + 2, near + 3, near + 4
    top = counter + planes - 1
    for w in range(words):
        rows[zero, w] = rows[counter + 1, w]
        rows[minus_one, w] = rows[counter + 1, w]
    for plane in range(counter + 2, counter + planes):
        for w in range(words):
            rows[zero, w] |= rows[plane, w]
        for w in range(words):
            rows[minus_one, w] &= rows[plane, w]
    for w in range(words):
        rows[one, w] = rows[counter, w] & ~rows[zero, w]
    for w in range(words):
        rows[zero, w] = ~(rows[counter, w] | rows[zero, w])
    for w in range(words):
        rows[minus_one, w] &= rows[counter, w]
    for w in range(words):
        rows[below, w] = rows[top, w] & ~rows[minus_one, w]
    for w in range(words):
        rows[above, w] = ~(rows[one, w] | rows[zero, w] | rows[top, w])


@compiled
def all_but(rows: Words, near: int, message: int, target: int) -> bool:
    """Write the sign of classified counters less one message; return whether it changed."""
    above, one, zero, minus_one, below = near, near + 1, near + 2, near + 3, near + 4
    change = np.uint64(0)
    for w in range(rows.shape[1]):
        value = rows[above, w] | (rows[one, w] & ~rows[message, w]) | (rows[zero, w] & rows[message + 1, w])
        change |= value ^ rows[target, w]
        rows[target, w] = value
    for w in range(rows.shape[1]):
        value = rows[below, w] | (rows[minus_one, w] & ~rows[message + 1, w]) | (rows[zero, w] & rows[message, w])
        change |= value ^ rows[target + 1, w]
        rows[target + 1, w] = value
    return bool(change != 0)
