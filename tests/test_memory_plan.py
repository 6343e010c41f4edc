"""The planner of the workspace: buffers that are in use together never overlap, and little is wasted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bnn_compiler.memory_plan import ALIGNMENT, Lifetime, peak_bytes, plan_memory

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 1000),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=12,
)


@given(LIFETIMES)
def test_live_buffers_never_overlap(lifetimes: list[Lifetime]) -> None:
    plan = plan_memory(lifetimes)
    assert len(plan.offsets) == len(lifetimes)
    taken: dict[tuple[int, int], int] = {}
    for index, (buffer, offset) in enumerate(zip(lifetimes, plan.offsets, strict=True)):
        assert offset % ALIGNMENT == 0
        assert 0 <= offset <= offset + buffer.size <= plan.size
        for step in range(buffer.first, buffer.last + 1):
            for byte in range(offset, offset + buffer.size):
                assert taken.setdefault((step, byte), index) == index


@given(LIFETIMES)
def test_no_smaller_than_the_peak_and_no_larger_than_everything(lifetimes: list[Lifetime]) -> None:
    plan = plan_memory(lifetimes)
    in_use = [sum(b.size for b in lifetimes if b.first <= step <= b.last) for step in range(20)]
    assert peak_bytes(lifetimes) == max(in_use)
    assert max(in_use) <= plan.size <= sum(-(-b.size // ALIGNMENT) * ALIGNMENT for b in lifetimes)


def test_a_chain_takes_turns() -> None:
    """Each buffer meets only its neighbours: two places are enough."""
    chain = [Lifetime(640, step, step + 1) for step in range(6)]
    plan = plan_memory(chain)
    assert plan.size == peak_bytes(chain) == 1280
    assert set(plan.offsets) == {0, 640}


def test_smallest_gap_that_is_large_enough() -> None:
    """Two buffers leave gaps of 1536 and 768 bytes between those that stay; one of 700 bytes comes then."""
    staying = [Lifetime(size, 0, 3) for size in (2048, 1024, 704)]
    leaving = [Lifetime(size, 0, 1) for size in (1536, 768)]
    late = Lifetime(700, 2, 3)
    plan = plan_memory([*staying, *leaving, late])
    assert plan.offsets == (0, 3584, 5376, 2048, 4608, 4608)
    assert plan.size == peak_bytes([*staying, *leaving]) == 6080


def test_nothing_to_place() -> None:
    assert plan_memory([]).size == 0
    assert plan_memory([Lifetime(0, 0, 3)]).offsets == (0,)
    assert peak_bytes([]) == 0
