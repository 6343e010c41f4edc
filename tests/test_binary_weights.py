"""Which weight tensors are binary."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.constants import Array
from bnn_compiler.recognition.binary_weights import BinaryWeights, NotBinary, analyse_weights


def signs(*shape: int) -> Array:
    return np.where(np.random.default_rng(1).random(shape) < 0.5, -1.0, 1.0).astype(np.float32)


def test_alpha_per_channel_spanning_magnitudes() -> None:
    alpha = np.array([1e-6, 3.7, 5e3, 0.1], np.float32)
    found = analyse_weights(signs(4, 3, 3, 3) * alpha[:, None, None, None])
    assert isinstance(found, BinaryWeights)
    np.testing.assert_array_equal(found.alpha, alpha.astype(np.float64))
    np.testing.assert_array_equal(found.signs, signs(4, 3, 3, 3) > 0)
    assert found.exact


def test_rounding_residue_is_tolerated_and_said() -> None:
    weights = signs(4, 3, 3, 3)
    weights[1, 0, 0, 0] = np.nextafter(np.float32(1), np.float32(2)) * np.sign(weights[1, 0, 0, 0])
    found = analyse_weights(weights)
    assert isinstance(found, BinaryWeights)
    assert not found.exact


@pytest.mark.parametrize("value", [0.0, -0.0, np.nan, np.inf])
def test_one_weight_without_a_sign(value: float) -> None:
    weights = signs(4, 3, 3, 3)
    weights[2, 1, 0, 0] = value
    found = analyse_weights(weights)
    assert isinstance(found, NotBinary)
    assert found.reason == "weights_contain_zero"
    assert "1 of 108" in found.detail


def test_two_magnitudes_in_a_channel() -> None:
    weights = signs(4, 3, 3, 3)
    weights[3, 0] *= np.float32(1.001)
    found = analyse_weights(weights)
    assert isinstance(found, NotBinary)
    assert (found.reason, "channel 3" in found.detail) == ("weights_not_two_valued", True)


def test_zero_is_one_of_many_values() -> None:
    """Weights of six bits are not ternary ones: what is said is that they take many values."""
    weights = np.random.default_rng(0).integers(-31, 32, (4, 3, 3, 3)).astype(np.float32)
    assert (weights == 0).any()
    found = analyse_weights(weights)
    assert isinstance(found, NotBinary)
    assert found.reason == "weights_not_two_valued"
    assert "more than two values" in found.detail and "finite" not in found.detail


def test_spread_is_a_percentage() -> None:
    weights = signs(4, 3, 3, 3)
    weights[3, 0] *= np.float32(1e-9)
    found = analyse_weights(weights)
    assert isinstance(found, NotBinary)
    assert found.detail == "|w| varies by 100 % in output channel 3"


def test_scale_per_input_channel() -> None:
    found = analyse_weights(signs(4, 3, 3, 3) * np.array([1, 2, 3], np.float32)[None, :, None, None])
    assert isinstance(found, NotBinary)
    assert found.reason == "weights_scaled_per_input"


def test_box_filter_is_not_binary() -> None:
    found = analyse_weights(np.full((1, 1, 5, 5), 0.04, np.float32))
    assert isinstance(found, NotBinary)
    assert found.reason == "weights_constant"
