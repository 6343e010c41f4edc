"""Transpositions: bit for bit, and which permutations are some."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.schedules.float_transpose import plan_transpose
from tests.schedules.float_harness import FLOAT_CPUS, Layer, node, normal

CASES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((16, 16), (1, 0)),
    ((17, 35), (1, 0)),
    ((1, 6, 5, 20), (0, 3, 1, 2)),
    ((2, 20, 7, 9), (0, 2, 3, 1)),
    ((3, 19, 1, 21), (0, 3, 2, 1)),
    ((4, 33, 18), (0, 2, 1)),
    # No transpositions of large matrices: TVM's definition.
    ((2, 3, 4), (2, 1, 0)),
    ((1, 3, 20, 20), (0, 2, 3, 1)),
    ((5, 18, 20), (2, 0, 1)),
]


@pytest.mark.parametrize("cpu", FLOAT_CPUS)
@pytest.mark.parametrize(("shape", "permutation"), CASES)
def test_permutations(shape: tuple[int, ...], permutation: tuple[int, ...], cpu: str) -> None:
    layer = Layer((node("Transpose", "x", perm=permutation),), normal(shape), {})
    assert np.array_equal(layer.run(cpu), np.transpose(layer.x, permutation))


def test_plan() -> None:
    plan = plan_transpose((2, 20, 7, 9), (0, 2, 3, 1), 16)
    assert plan is not None
    assert (plan.batch, plan.rows, plan.columns) == (2, 20, 63)


@pytest.mark.parametrize(
    ("shape", "permutation"),
    [
        ((16, 16), (0, 1)),  # nothing moves
        ((16, 1, 16), (0, 2, 1)),  # nothing but an axis of extent 1 moves
        ((16, 15), (1, 0)),  # narrower than a vector
        ((16, 16, 16), (2, 1, 0)),  # no rotation
        ((16, 16, 16, 16), (1, 0, 2, 3)),  # the last axis stays last: rows of 256 move, which copies do best
    ],
)
def test_no_plan(shape: tuple[int, ...], permutation: tuple[int, ...]) -> None:
    assert plan_transpose(shape, permutation, 16) is None
