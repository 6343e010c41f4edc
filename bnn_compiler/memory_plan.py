"""Where buffers of known size and lifetime lie in one piece of memory.

The problem is dynamic storage allocation (Garey and Johnson, SR2): rectangles of fixed width (time) and height (bytes)
are moved up and down until none overlap, as low as possible. Largest first into the smallest gap that is large enough
usually reaches the lower bound on networks (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net
Inference", 2020, section 5); other orders are tried, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Of every offset, in bytes: a cache line, and the widest vector."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer of ``size`` bytes that is in use from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        """Return whether both are in use in some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """``offsets`` of the buffers in the order they were given, and the ``size`` of the whole, in bytes."""

    offsets: tuple[int, ...]
    size: int


def plan_memory(lifetimes: Sequence[Lifetime], alignment: int = ALIGNMENT) -> MemoryPlan:
    """Place every buffer at a multiple of ``alignment``, apart from all others that are in use at the same time.

    Several orders in which buffers choose their places and two ways of choosing are tried; the smallest plan is taken.
    """
    target = -(-peak_bytes(lifetimes) // alignment) * alignment
    plans = (_place(lifetimes, order, alignment, ceiling) for order in _orders(lifetimes) for ceiling in (None, target))
    return min(plans, key=lambda plan: plan.size)


def _orders(lifetimes: Sequence[Lifetime]) -> list[list[int]]:
    """Largest first; longest first; largest product of both first."""
    indices = range(len(lifetimes))
    duration = [buffer.last - buffer.first + 1 for buffer in lifetimes]
    return [
        sorted(indices, key=lambda i: (-lifetimes[i].size, lifetimes[i].first)),
        sorted(indices, key=lambda i: (-duration[i], -lifetimes[i].size, lifetimes[i].first)),
        sorted(indices, key=lambda i: (-duration[i] * lifetimes[i].size, lifetimes[i].first)),
    ]


def _place(lifetimes: Sequence[Lifetime], order: Sequence[int], alignment: int, ceiling: int | None) -> MemoryPlan:
    """Let the buffers choose the smallest gap that is large enough, in ``order``.

    Below a ``ceiling``, they keep to the outer end of a gap that reaches it: tensors of a residual connection, each in
    use together with the next one, then take turns at bottom and top and leave the middle in one piece.
    """
    offsets: dict[int, int] = {}
    for index in order:
        buffer = lifetimes[index]
        taken = sorted((offsets[i], lifetimes[i].size) for i in offsets if buffer.meets(lifetimes[i]))
        offsets[index] = _choose_gap(taken, buffer.size, alignment, ceiling)
    size = max((offsets[i] + lifetimes[i].size for i in offsets), default=0)
    return MemoryPlan(tuple(offsets[i] for i in range(len(lifetimes))), size)


def peak_bytes(lifetimes: Sequence[Lifetime]) -> int:
    """Return the bytes in use in the step that has the most: no plan is smaller."""
    steps = {lifetime.first for lifetime in lifetimes}  # a maximum is reached where a buffer begins
    return max((sum(b.size for b in lifetimes if b.first <= step <= b.last) for step in steps), default=0)


def _choose_gap(taken: Sequence[tuple[int, int]], size: int, alignment: int, ceiling: int | None) -> int:
    """Return where ``size`` bytes go between ``taken`` (offset, size; sorted), or above them."""
    best: tuple[int, int] | None = None
    end = 0
    for offset, taken_size in taken:
        gap = offset - end
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, end)
        end = max(end, -(-(offset + taken_size) // alignment) * alignment)
    if ceiling is not None and ceiling - end >= size and (best is None or ceiling - end < best[0]):
        return (ceiling - size) // alignment * alignment if end else 0
    return end if best is None else best[1]
