"""Integer thresholds against the float epilogue and comparison that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnn_compiler.kernels.bit_thresholds import bit_thresholds
from bnn_compiler.kernels.layer_kernels import OutputMap, pack_rule
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.reference import binarise, epilogue_reference
from tests.binary_specs import binary_conv

READER = ConvGeometry(1, 4, 3, 3, 2, (1, 1))
FAN_IN = 37
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, -3.0, 3.0e38, np.inf, -np.inf]),
    st.floats(-50, 50, width=32),
)
VECTORS = st.lists(NUMBERS, min_size=4, max_size=4).map(lambda values: np.array(values, np.float32))
FINITE = VECTORS.map(lambda values: np.nan_to_num(values, posinf=7.0, neginf=-7.0))


@given(
    FINITE,
    st.none() | FINITE,
    VECTORS,
    st.sampled_from(["ge", "gt", "le", "lt", "nge", "ngt", "nle", "nlt"]),
    st.none() | st.lists(st.sampled_from([1.0, -1.0]), min_size=4, max_size=4),
    st.booleans(),
)
def test_every_integer_gives_the_same_bit(
    scale: np.ndarray, bias: np.ndarray | None, threshold: np.ndarray, predicate: str, direction: object, fused: bool
) -> None:
    reader = binary_conv(
        READER,
        predicate=predicate,
        threshold=threshold.reshape(4, 1, 1),
        direction=None if direction is None else np.array(direction, np.float32).reshape(4, 1, 1),
    )
    mapped = OutputMap(scale, bias, exact=False)
    found = bit_thresholds(mapped, FAN_IN, reader, fused=fused)
    assert found is not None
    z = np.tile(np.arange(-FAN_IN, FAN_IN + 1, dtype=np.int32), (4, 1))
    column = None if bias is None else bias.reshape(-1, 1)
    y = epilogue_reference(z, None if mapped.scaled is None else scale.reshape(-1, 1), column, fused=fused)
    rule, parameters = pack_rule(reader)
    (expected,) = binarise(y, rule, tuple(p.reshape(-1, 1) for p in parameters), fused=fused)
    np.testing.assert_array_equal((z >= found.bounds.reshape(-1, 1)) ^ found.inverted.reshape(-1, 1), expected)


@pytest.mark.parametrize("predicate", ["eq", "ne"])
def test_a_bit_that_changes_twice_is_no_threshold(predicate: str) -> None:
    mapped = OutputMap(np.ones(4, np.float32), None, exact=True)
    assert bit_thresholds(mapped, FAN_IN, binary_conv(READER, predicate=predicate), fused=True) is None


def test_three_valued_readers_have_two_bits() -> None:
    mapped = OutputMap(np.ones(4, np.float32), None, exact=True)
    assert bit_thresholds(mapped, FAN_IN, binary_conv(READER, predicate="ternary"), fused=True) is None


def test_readers_of_codes_have_several_bits() -> None:
    mapped = OutputMap(np.ones(4, np.float32), None, exact=True)
    thresholds = np.array([-1, 0, 1], np.float32)
    levels = (-3.0, -1.0, 1.0, 3.0)
    reader = binary_conv(READER, threshold=thresholds, levels=levels, low=-3.0, high=3.0)
    assert bit_thresholds(mapped, FAN_IN, reader, fused=True) is None
