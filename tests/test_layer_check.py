"""The comparison of one layer: what passes, and what must not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnn_compiler.layers import BinaryLayer
from bnn_compiler.verification.layer_check import UNIT_ROUNDOFF, check_layer, error_bound, gamma
from bnn_compiler.verification.reference import Array

FAN_IN = 576


def make_layer(scale: float, bias: float | None = None, *, exact: bool = False) -> BinaryLayer:
    return BinaryLayer(
        name="conv",
        function="layer_0",
        input_tensor="x",
        output_tensor="y",
        scale=np.full(3, scale, np.float32),
        bias=None if bias is None else np.full(3, bias, np.float32),
        macs=0,
        fan_in=FAN_IN,
        input_shape=(1, 64, 2, 2),
        channel_axis=1,
        exact=exact,
    )


def integers() -> Array:
    return np.random.default_rng(0).integers(-FAN_IN // 2, FAN_IN // 2, (1, 3, 2, 2)).astype(np.float32) * 2


def test_equal_values_pass() -> None:
    z = integers()
    result = check_layer(make_layer(1.0, exact=True), z, z.copy())
    assert result.passed and result.max_abs_error == 0 and result.bound == 0


def test_an_exact_layer_allows_not_one_ulp() -> None:
    z = integers()
    wrong = z.copy()
    wrong[0, 1, 1, 0] = np.nextafter(wrong[0, 1, 1, 0], np.float32(np.inf))
    result = check_layer(make_layer(1.0, exact=True), wrong, z)
    assert result.mismatches == 1
    assert result.first is not None and result.first[0] == (0, 1, 1, 0)
    assert (
        "layer 'conv' differs from ONNX Runtime in 1 of 12 values; the first is [0, 1, 1, 0]"
        in result.describe_failure()
    )


def test_minus_zero_equals_zero() -> None:
    assert check_layer(
        make_layer(1.0, exact=True), -np.zeros((1, 3, 1), np.float32), np.zeros((1, 3, 1), np.float32)
    ).passed


@pytest.mark.parametrize(("scale", "bias"), [(0.0371, None), (0.0371, 0.62), (3e-4, -1.5), (217.0, 3.0)])
def test_rounding_passes_and_the_next_integer_does_not(scale: float, bias: float | None) -> None:
    layer = make_layer(scale, bias)
    z = integers().astype(np.float64)
    reference = (z * scale + (bias or 0.0)).astype(np.float32)
    rounded = reference * np.float32(1 + UNIT_ROUNDOFF * 8)
    assert check_layer(layer, rounded, reference).passed
    wrong = reference.copy()
    # One weight of the wrong sign moves z by 2; a border pixel counted wrongly by 1.
    wrong[0, 0, 0, 0] += np.float32(scale)
    assert check_layer(layer, wrong, reference).mismatches == 1


def test_a_drowned_scale_is_left_to_the_bound_and_counted() -> None:
    layer = make_layer(1e-6, 1000.0)
    reference = np.full((1, 3, 1, 1), 1000.0, np.float32)
    result = check_layer(layer, reference, reference)
    assert result.passed and result.undecidable_channels == 3
    assert not check_layer(layer, reference + 1, reference).passed


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_fail(value: float) -> None:
    z = integers()
    wrong = z.copy()
    wrong[0, 0, 0, 0] = value
    for exact in (True, False):
        assert check_layer(make_layer(1.0, exact=exact), wrong, z).mismatches == 1


def test_wrong_shape_fails() -> None:
    z = integers()
    assert not check_layer(make_layer(1.0), z[:, :, :1], z).passed
    assert not check_layer(make_layer(1.0), z.astype(np.float64), z).passed


def test_bound_holds_for_sums_in_any_order() -> None:
    """The worst of many orders of summation stays below the derived bound, and the bound is not vacuous."""
    generator = np.random.default_rng(1)
    layer = make_layer(0.0371, 0.62)
    terms = generator.choice([-1.0, 1.0], FAN_IN).astype(np.float32) * np.float32(0.0371)
    exact = terms.astype(np.float64).sum() + np.float64(np.float32(0.62))
    worst = 0.0
    for _ in range(200):
        total = np.float32(0.62)
        for term in generator.permutation(terms):
            total += term
        worst = max(worst, abs(float(total) - exact))
    bound = float(error_bound(layer)[0])
    assert 0 < worst < bound < FAN_IN * 0.0371 * 1e-3


def test_gamma_is_monotone_and_bounded() -> None:
    values = [gamma(n) for n in (1, 10, 10**4, 10**6, 10**7, 10**8)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(UNIT_ROUNDOFF, rel=1e-6) and values[-1] == 1.0


def test_the_bound_grows_with_the_activations() -> None:
    """Terms of up to three units of z round three times as much as terms of one."""
    layer = make_layer(0.3)
    np.testing.assert_allclose(error_bound(replace(layer, reach=3.0)), 3 * error_bound(layer), rtol=1e-12)
