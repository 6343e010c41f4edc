"""A folded threshold decides exactly as the chain it replaces, on every float next to it and far from it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_compiler.constants import Array
from bnn_compiler.recognition.monotone_thresholds import solve_thresholds

FLOATS = st.floats(-1e4, 1e4, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


def around(values: Array) -> Array:
    """Each value, its neighbours, and values everywhere."""
    finite = values[np.isfinite(values)]
    up, down = np.float32(np.inf), np.float32(-np.inf)
    far = np.array(
        [0.0, -0.0, 1.0, -1.0, 1e30, -1e30, np.finfo(np.float32).max, np.finfo(np.float32).min, 1e-45], np.float32
    )
    return np.concatenate([finite, np.nextafter(finite, up), np.nextafter(finite, down), far]).astype(np.float32)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=6), st.booleans(), st.booleans())
def test_threshold_equals_chain(channels: list[tuple[float, float]], relu: bool, strict: bool) -> None:
    scale, shift = (np.array([channel[i] for channel in channels], np.float32) for i in (0, 1))
    compare = np.greater if strict else np.greater_equal

    def chain(x: Array) -> Array:
        x = np.maximum(x, np.float32(0)) if relu else x
        return (x * scale + shift).astype(np.float32)

    solved = solve_thresholds(chain, lambda value: compare(value, np.float32(0)), len(channels))
    assert solved is not None
    for x in around(solved.threshold * solved.direction):
        data = np.full(len(channels), x, np.float32)
        with np.errstate(all="ignore"):
            expected = compare(chain(data), np.float32(0))
            np.testing.assert_array_equal(solved.direction * data >= solved.threshold, expected)


def test_never_and_always() -> None:
    scale, shift = np.array([0, 0], np.float32), np.array([1, -1], np.float32)
    solved = solve_thresholds(lambda x: x * scale + shift, lambda value: value >= 0, 2)
    assert solved is not None
    np.testing.assert_array_equal(solved.threshold, [-np.inf, np.inf])


def test_not_monotone_is_refused() -> None:
    assert solve_thresholds(np.abs, lambda value: value < 1, 1) is None
