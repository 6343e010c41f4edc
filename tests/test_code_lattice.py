"""Values on a lattice become codes; others do not."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bnn_compiler.recognition.code_lattice import CodeLattice, fit_codes

THIRD = float(np.float32(1) / np.float32(3))
TWO_THIRDS = float(np.float32(2) / np.float32(3))


@pytest.mark.parametrize(
    ("values", "zero_padded", "expected"),
    [
        ((0.0, 1.0, 2.0, 3.0), True, CodeLattice((0, 1, 2, 3), False, 1.0, 0, 0.0, True)),
        ((0.0, THIRD, TWO_THIRDS, 1.0), True, CodeLattice((0, 1, 2, 3), False, 1 / 3, 0, 0.0, False)),
        ((-1.0, -THIRD, THIRD, 1.0), True, CodeLattice((0, 1, 2, 3), True, 1 / 3, 3, 0.0, False)),
        ((-2.0, 0.0, 2.0), True, CodeLattice((0, 1, 2), False, 2.0, 1, 0.0, True)),
        ((-1.0, 0.5, 1.0), True, CodeLattice((0, 3, 4), False, 0.5, 2, 0.0, True)),
        ((-0.5, 1.0), True, CodeLattice((0, 3), False, 0.5, 1, 0.0, True)),
        ((1.0, 2.0, 3.0), True, CodeLattice((0, 1, 2), False, 1.0, -1, 0.0, True)),
        ((0.25, 1.25, 2.25), False, CodeLattice((0, 1, 2), False, 1.0, 0, 0.25, True)),
        ((-0.25, 0.75, 1.75), True, CodeLattice((0, 2, 4), True, 0.25, 1, 0.0, True)),
    ],
)
def test_lattice(values: tuple[float, ...], zero_padded: bool, expected: CodeLattice) -> None:
    assert fit_codes(values, zero_padded=zero_padded) == expected


@pytest.mark.parametrize(
    ("values", "zero_padded"),
    [
        ((-0.999, 0.001, 1.001), True),
        ((0.0, 1.0, 16.0), False),
        (tuple(float(value) for value in range(17)), False),
        ((0.3141, 1.3141, 2.3141), True),
        ((0.0, 1.0, 2.00001), False),
    ],
)
def test_no_lattice(values: tuple[float, ...], zero_padded: bool) -> None:
    assert fit_codes(values, zero_padded=zero_padded) is None


@given(
    st.integers(-30, 30),
    st.sets(st.integers(1, 15), min_size=1, max_size=15),
    st.sampled_from([0.25, 0.5, 1.0, 3.0, 1 / 3, 0.1]),
    st.booleans(),
)
@example(start=14, codes={1}, unit=1 / 3, zero_padded=True)  # 7/3 and 8/3: their difference is 1/3 with a large error
def test_every_lattice_is_found(start: int, codes: set[int], unit: float, zero_padded: bool) -> None:
    """Values unit·(start/2 + code) are codes, and the codes give the values back."""
    values = tuple(float(np.float32(unit * (start / 2 + code))) for code in sorted({0, *codes}))
    found = fit_codes(values, zero_padded=zero_padded)
    assert found is not None
    assert found.codes[0] == 0 and found.codes[-1] < 1 << found.bits <= 16
    assert found.pads_zero or not zero_padded
    step = 2 if found.bipolar else 1
    back = [found.offset + found.unit * (step * code - found.zero) for code in found.codes]
    np.testing.assert_allclose(back, values, rtol=0, atol=2.0**-21 * max(abs(value) for value in values))
    if found.exact:
        assert [Fraction(value) for value in back] == [Fraction(value) for value in values]
    if found.zero_code is not None:
        assert found.unit * (found.zero_code - found.zero) + found.offset == 0


@pytest.mark.parametrize("values", [(-1.0, math.nan), (math.nan, 1.0), (0.0, math.inf), (-1.7e308, 0.0, 1.7e308)])
def test_values_that_have_no_step(values: tuple[float, ...]) -> None:
    """0/0 is among the values of a quotient; NaN sorts anywhere."""
    assert fit_codes(values, zero_padded=False) is None
