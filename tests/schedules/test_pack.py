"""Packing kernels bit for bit against the NumPy reference, and weight packing against its definition."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.pack import pack_conv_activations, pack_dense_activations
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.pack_weights import pack_conv_weights, pack_dense_weights
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.popcount_dense import dense_bits_shape
from bnn_compiler.schedules.reference import pack_conv_reference, pack_dense_reference
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, misaligned, runnable_isa

# (batch, channels, height, width, pads, groups): edge sizes around the lanes and the word.
CONV_SHAPES = [
    (1, 1, 1, 1, (0, 0, 0, 0), 1),
    (2, 3, 5, 7, (1, 2, 0, 3), 1),
    (1, 31, 4, 4, (1, 1, 1, 1), 1),
    (1, 33, 1, 9, (0, 4, 0, 4), 1),
    (1, 63, 8, 8, (0, 0, 0, 0), 1),
    (1, 64, 7, 7, (1, 1, 1, 1), 1),
    (1, 65, 3, 17, (2, 0, 1, 1), 1),
    (2, 130, 6, 6, (0, 1, 1, 0), 2),
    (1, 6, 16, 16, (1, 1, 1, 1), 6),
    (1, 200, 9, 33, (0, 0, 2, 0), 1),
]
DENSE_SHAPES = [(1, 1), (2, 63), (1, 64), (3, 65), (1, 127), (2, 784), (1, 1023), (5, 1024), (1, 1025), (2, 4100)]
RULES = [
    PackRule("ge", 0.0),
    PackRule("gt", 0.25, affine=True),
    PackRule("le", "channel", "unsigned"),
    PackRule("lt", "channel", affine=True),
    PackRule("eq", 0.5),
    PackRule("ne", 0.5),
    PackRule("nge", 0.0),
    PackRule("ngt", "channel"),
    PackRule("nle", float("inf")),
    PackRule("nlt", -0.75, "unsigned"),
    PackRule("gt", 0.0, "ternary"),
    PackRule("gt", "channel", "ternary", affine=True),
    PackRule("ge", 1e-300, dtype="float64"),
    PackRule("lt", "channel", dtype="float64"),
]


def _geometry(batch: int, channels: int, height: int, width: int, pads: tuple[int, ...], groups: int) -> ConvGeometry:
    top, left, bottom, right = pads
    return ConvGeometry(batch, channels, height, width, groups, (1, 1), pads=(top, left, bottom, right), groups=groups)


def _activations(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Normal values with all that a comparison may trip over: ±0, ties, NaN, infinities, subnormals."""
    x = rng.standard_normal(shape)
    special = np.array([0.0, -0.0, 0.25, 0.5, -0.75, np.nan, np.inf, -np.inf, 1e-40, -1e-40, 1e-300])
    return np.where(rng.random(shape) < 0.4, rng.choice(special, shape), x).astype(dtype)


def _parameters(rng: np.random.Generator, rule: PackRule, length: int) -> list[Array]:
    return [
        np.where(rng.random(length) < 0.3, 0.5, rng.standard_normal(length)).astype(argument.dtype)
        for argument in rule.parameters(length)
    ]


def _options(rule: PackRule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in ("predicate", "threshold", "alphabet", "affine", "dtype")}


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_conv_activations(cpu: str) -> None:
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(1)
    # Every rule meets some shapes and every shape some rules; the slow sweep takes the product.
    cases = {f"k{i}": (CONV_SHAPES[i % len(CONV_SHAPES)], RULES[i % len(RULES)], i % 2) for i in range(20)}
    _check_conv(cpu, isa, rng, cases)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_conv_activations_sweep(cpu: str) -> None:
    isa = runnable_isa(cpu)
    product = itertools.product(CONV_SHAPES, RULES, (0, 1))
    _check_conv(cpu, isa, np.random.default_rng(2), {f"k{i}": case for i, case in enumerate(product)})


def _check_conv(cpu: str, isa: Any, rng: np.random.Generator, cases: dict[str, Any]) -> None:
    functions, expected = {}, {}
    for name, (shape, rule, wanted_pad_code) in cases.items():
        geometry = _geometry(*shape)
        pad_code = 0 if rule.alphabet == "ternary" else wanted_pad_code
        functions[name] = pack_conv_activations(geometry, isa=isa, pad_code=pad_code, **_options(rule))
        x = _activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width), rule.dtype)
        parameters = _parameters(rng, rule, geometry.in_channels)
        reference = pack_conv_reference(
            geometry, x, rule, tuple(parameters), pad_code=pad_code, fused=isa.fused_multiply_add
        )
        assert reference.shape == conv_bits_shape(geometry, rule.alphabet)
        expected[name] = ([x, *parameters], reference)
    kernels = CompiledKernels(cpu, functions)
    for name, (inputs, reference) in expected.items():
        bits = kernels.run(name, inputs, reference.shape, "uint64")
        np.testing.assert_array_equal(bits, reference, err_msg=f"{cases[name]}")


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_dense_activations(cpu: str) -> None:
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(3)
    cases = {f"k{i}": (DENSE_SHAPES[i % len(DENSE_SHAPES)], RULES[i % len(RULES)]) for i in range(20)}
    _check_dense(cpu, isa, rng, cases)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_dense_activations_sweep(cpu: str) -> None:
    isa = runnable_isa(cpu)
    product = itertools.product(DENSE_SHAPES, RULES)
    _check_dense(cpu, isa, np.random.default_rng(4), {f"k{i}": case for i, case in enumerate(product)})


def _check_dense(cpu: str, isa: Any, rng: np.random.Generator, cases: dict[str, Any]) -> None:
    functions, expected = {}, {}
    for name, ((rows, features), rule) in cases.items():
        functions[name] = pack_dense_activations(rows, features, isa=isa, **_options(rule))
        x = _activations(rng, (rows, features), rule.dtype)
        parameters = _parameters(rng, rule, features)
        reference = pack_dense_reference(x, rule, tuple(parameters), fused=isa.fused_multiply_add)
        assert reference.shape == dense_bits_shape(rows, features, rule.alphabet)
        expected[name] = ([x, *parameters], reference)
    kernels = CompiledKernels(cpu, functions)
    for name, (inputs, reference) in expected.items():
        bits = kernels.run(name, inputs, reference.shape, "uint64")
        np.testing.assert_array_equal(bits, reference, err_msg=f"{cases[name]}")


@pytest.mark.parametrize("cpu", ["znver4", "skylake-avx512", "haswell"])
def test_float16_activations(cpu: str) -> None:
    """Exact, because float16 converts to float32 without loss; needs F16C on x86."""
    isa = runnable_isa(cpu)
    rule = PackRule("ge", 0.1, dtype="float16")
    x = _activations(np.random.default_rng(5), (2, 300), "float16")
    kernels = CompiledKernels(cpu, {"pack": pack_dense_activations(2, 300, isa=isa, **_options(rule))})
    expected = pack_dense_reference(x, rule, (), fused=isa.fused_multiply_add)
    np.testing.assert_array_equal(kernels.run("pack", [x], expected.shape, "uint64"), expected)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_activations_may_lie_anywhere(cpu: str) -> None:
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(6)
    geometry = ConvGeometry(1, 40, 9, 9, 8, (3, 3), pads=(1, 1, 1, 1))
    rule = PackRule("ge", "channel", affine=True)
    kernels = CompiledKernels(cpu, {"pack": pack_conv_activations(geometry, isa=isa, **_options(rule))})
    inputs = [_activations(rng, (1, 40, 9, 9), "float32"), *_parameters(rng, rule, 40)]
    expected = pack_conv_reference(
        geometry, inputs[0], rule, tuple(inputs[1:]), pad_code=0, fused=isa.fused_multiply_add
    )
    bits = misaligned(np.zeros(expected.shape, np.uint64))
    kernels.run_in_place("pack", [misaligned(array) for array in inputs], bits)
    np.testing.assert_array_equal(bits, expected)


def test_rules_that_make_no_sense_are_refused() -> None:
    isa = runnable_isa("x86-64")
    geometry = ConvGeometry(1, 8, 4, 4, 8, (3, 3), pads=(1, 1, 1, 1))
    with pytest.raises(ValueError, match="predicate 'gt', found 'ge'"):
        PackRule("ge", alphabet="ternary")
    with pytest.raises(ValueError, match="cast float64"):
        PackRule("ge", affine=True, dtype="float64")
    with pytest.raises(ValueError, match="pad_code 1 does not fit ternary"):
        pack_conv_activations(geometry, isa=isa, predicate="gt", alphabet="ternary", pad_code=1)
    with pytest.raises(ValueError, match="pad_code 2"):
        pack_conv_activations(geometry, isa=isa, pad_code=2)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20), st.integers(1, 200), st.booleans(), st.integers(0, 2**32 - 1))
def test_dense_weights_are_packed_as_defined(features: int, depth: int, ternary: bool, seed: int) -> None:
    signs = np.random.default_rng(seed).random((features, depth)) < 0.5
    packed = pack_dense_weights(signs, "ternary" if ternary else "bipolar")
    words = -(-depth // 64)
    for part, plane in enumerate([signs, ~signs] if ternary else [signs]):
        for feature, k in itertools.product(range(features), range(depth)):
            word = packed[feature // 8, part * words + k % words, feature % 8]
            assert bool(int(word) >> (k // words) & 1) == plane[feature, k]
    # Nothing but the weights: all other bits are 0.
    assert np.bitwise_count(packed).sum() == (signs.size if ternary else signs.sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 150), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 99))
def test_conv_weights_are_packed_as_defined(
    out_channels: int, channels: int, height: int, width: int, ternary: bool, seed: int
) -> None:
    signs = np.random.default_rng(seed).random((out_channels, channels, height, width)) < 0.5
    packed = pack_conv_weights(signs, "ternary" if ternary else "bipolar")
    words = -(-channels // 64)
    by_tap = packed.reshape(out_channels, -1, height, width)
    for part, plane in enumerate([signs, ~signs] if ternary else [signs]):
        for c in range(channels):
            bit = by_tap[:, part * words + c // 64] >> np.uint64(c % 64) & np.uint64(1)
            np.testing.assert_array_equal(bit.astype(bool), plane[:, c])
    assert np.bitwise_count(packed).sum() == (signs.size if ternary else signs.sum())
