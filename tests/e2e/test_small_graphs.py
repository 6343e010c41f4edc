"""Every small graph that the front end takes gives the outputs that ONNX Runtime recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import bnn_compiler
from tests.conftest import ModelFinder, find_model

# Graphs whose results are integers (or sums of powers of two) throughout: equal bit for bit.
EXACT = [
    "base_sign_conv", "one_ulp_off", "all_plus_one", "affine01_act", "weights01", "shared_weight", "grouped4",
    "depthwise", "dilation2", "asym_pads", "k1_s2", "k1x7", "k2_even", "auto_pad_same_upper", "auto_pad_same_lower",
    "cin1", "cout1", "cin65_cout7", "k_full", "sign_of_zero", "where_of_zero", "relu_sub_sign", "bias", "pad_minus1",
    "pad_half", "pad_before_sign", "pad_conv_and_op", "conv1d", "bn_sign_opset17", "bn_gamma_zero",
    "int_threshold_tie", "int_threshold_tie_gt", "flipped_where", "where_asym", "sign_identity_transpose",
    "two_outputs", "sign_to_float_op", "maxpool_of_sign", "concat_signs", "add_signs", "gemm_transB", "gemm_noT",
    "matmul_weight_left", "constant_node_weight", "sparse_constant_weight", "init_also_input", "external_ok",
    "dyn_batch", "conv3d", "lstm_like_einsum", "weights_transposed", "weights_int8_cast", "one_zero_weight",
    "one_zero_channel", "ternary_weights", "negative_zero_weight", "unfolded_zero_latent", "div_abs",
]  # fmt: skip
# Graphs with α or float activations: sums of rounded floats, in ONNX Runtime's order or ours.
ROUNDED = [
    "alpha_per_channel", "alpha_negative", "alpha_per_input_channel", "where_scaled", "sign_plus_eps", "float_act",
    "relu_act", "shared_weight_bin_and_float", "concat_sign_float", "matmul_alpha_col", "matmul_alpha_row",
    "sign_to_float_conv", "weights_dequant", "ste_residue",
]  # fmt: skip


def run_recorded(
    path: Path, algorithm: str, input_shapes: dict[str, tuple[int, ...]] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    compiled = bnn_compiler.compile_model(path, algorithm=algorithm, input_shapes=input_shapes)
    verification = compiled.report["verification"]
    assert verification is not None
    assert verification["passed"]
    recorded = np.load(path.with_suffix(".npz"))
    pairs = []
    for i in range(4):
        feeds = {spec.name: np.split(recorded[f"in_{spec.name}"], 4)[i] for spec in compiled.inputs}
        for name, actual in compiled.run(feeds).items():
            pairs.append((actual, np.split(recorded[f"out_{name}"], 4)[i]))
    return pairs


@pytest.mark.parametrize("name", EXACT)
def test_exact(name: str, small_model: ModelFinder) -> None:
    for actual, expected in run_recorded(small_model(name), "auto"):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["dyn_hw", "dyn_all_gap"])
def test_open_height_and_width(name: str, small_model: ModelFinder) -> None:
    for actual, expected in run_recorded(small_model(name), "auto", {"input": (1, 16, 8, 8)}):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ROUNDED)
def test_rounded(name: str, small_model: ModelFinder) -> None:
    for actual, expected in run_recorded(small_model(name), "auto"):
        # At most 1200 terms of magnitude up to the largest output are summed: γ_1200 = 7e-5; sums err like its root.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["base_sign_conv", "bn_sign_opset17", "gemm_noT", "grouped4"])
def test_float_algorithm(name: str, small_model: ModelFinder) -> None:
    for actual, expected in run_recorded(small_model(name), "float"):
        np.testing.assert_array_equal(actual, expected)


# Every form of convolution that the bit-sliced kernels take; the rest of these graphs falls back to popcount.
@pytest.mark.parametrize("name", [
    "base_sign_conv", "grouped4", "depthwise", "dilation2", "asym_pads", "k1_s2", "k1x7", "k2_even", "cin1", "cout1",
    "cin65_cout7", "k_full", "sign_of_zero", "pad_minus1", "pad_before_sign", "conv1d", "bn_sign_opset17",
    "int_threshold_tie_gt", "shared_weight", "bias",
])  # fmt: skip
def test_bitsliced_algorithm(name: str, small_model: ModelFinder) -> None:
    for actual, expected in run_recorded(small_model(name), "bitsliced"):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ["base_sign_conv", "cin65_cout7", "grouped4", "gemm_noT", "pad_before_sign"])
def test_exact_sign_of_zero(name: str, small_model: ModelFinder) -> None:
    """Three-valued activations: zeros in the input stay zeros, as in ONNX Runtime."""
    path = small_model(name)
    compiled = bnn_compiler.compile_model(path, sign_zero="exact")
    assert {layer["status"] for layer in compiled.report["layers"]} == {"binary_weight"}
    session = onnxruntime.InferenceSession(path)
    x = np.random.default_rng(0).integers(-1, 2, compiled.inputs[0].shape).astype(np.float32)
    feeds = {compiled.inputs[0].name: x}
    (actual,) = compiled.run(feeds).values()
    np.testing.assert_array_equal(actual, session.run(None, feeds)[0])


def test_nan_is_no_crash_and_counts_as_documented(small_model: ModelFinder) -> None:
    """README: a binariser takes NaN as its value for "comparison is false"; Sign(NaN) is taken as -1."""
    compiled = bnn_compiler.compile_model(small_model("base_sign_conv"))
    (spec,) = compiled.inputs
    x = np.random.default_rng(0).standard_normal(spec.shape).astype(np.float32)
    with_nan, with_minus = x.copy(), x.copy()
    with_nan[0, ::3, 1] = np.nan
    with_minus[0, ::3, 1] = -1
    (actual,), (expected,) = (compiled.run({spec.name: array}).values() for array in (with_nan, with_minus))
    np.testing.assert_array_equal(actual, expected)


def test_the_lists_name_real_graphs() -> None:
    if find_model("base_sign_conv", small=True) is None:
        pytest.skip("evaluation models are not here")
    assert [name for name in (*EXACT, *ROUNDED) if find_model(name, small=True) is None] == []
