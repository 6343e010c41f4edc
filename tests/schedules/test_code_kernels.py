"""Activations of two to four bits: packing to codes, and popcount products of codes, bit for bit against NumPy."""

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
from bnn_compiler.schedules.popcount import code_bits
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants
from bnn_compiler.schedules.reference import binarise, pack_conv_reference, pack_dense_reference
from tests.schedules.code_cases import (
    CODES,
    Codes,
    code_activations,
    code_parameters,
    code_rule,
    conv_case,
    dense_case,
    pack_options,
)
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa

GEOMETRIES = [
    ConvGeometry(1, 64, 9, 9, 10, (3, 3), pads=(1, 1, 1, 1)),
    ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2),
    ConvGeometry(1, 70, 1, 1, 9, (1, 1)),
    ConvGeometry(1, 6, 8, 8, 6, (3, 3), pads=(1, 1, 1, 1), groups=6),
    ConvGeometry(2, 100, 5, 9, 7, (1, 1)),
    # Byte counters take 31 words of weight 1, so 15 of two planes overflow first here.
    ConvGeometry(1, 129, 7, 7, 5, (3, 3), pads=(1, 1, 1, 1)),
    # Output channels in the lanes.
    ConvGeometry(2, 130, 3, 3, 21, (3, 3), pads=(1, 1, 1, 1)),
]
DENSE_SHAPES = [(1, 70, 43), (6, 300, 17), (3, 64, 8), (1, 1025, 100)]


RULES = [
    code_rule(codes, per_channel=per_channel, affine=per_channel and index % 2 == 0, predicate=predicate)
    for index, codes in enumerate(CODES.values())
    for per_channel, predicate in ((False, "nlt" if index % 3 == 0 else "ge"), (True, "ge"))
]


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_pack(cpu: str) -> None:
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(0)
    functions, expected = {}, {}
    for i, rule in enumerate(RULES):
        geometry = GEOMETRIES[i % len(GEOMETRIES)]
        x = code_activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        parameters = code_parameters(rng, rule, geometry.in_channels)
        ring = i % len(rule.codes)
        functions[f"conv{i}"] = pack_conv_activations(geometry, isa=isa, pad_code=ring, **pack_options(rule))
        reference = pack_conv_reference(geometry, x, rule, tuple(parameters), pad_code=ring, fused=True)
        expected[f"conv{i}"] = ([x, *parameters], reference)
        rows, features, _ = DENSE_SHAPES[i % len(DENSE_SHAPES)]
        x, parameters = code_activations(rng, (rows, features)), code_parameters(rng, rule, features)
        functions[f"dense{i}"] = pack_dense_activations(rows, features, isa=isa, **pack_options(rule))
        reference = pack_dense_reference(x, rule, tuple(parameters), fused=True)
        expected[f"dense{i}"] = ([x, *parameters], reference)
    kernels = CompiledKernels(cpu, functions)
    for name, (inputs, reference) in expected.items():
        bits = kernels.run(name, inputs, reference.shape, "uint64")
        np.testing.assert_array_equal(bits, reference, err_msg=f"{name} {RULES[int(name.lstrip('convdes'))]}")


def _check(cpu: str, cases: dict[str, tuple[Any, list[Array], Array]]) -> None:
    kernels = CompiledKernels(cpu, {f"k{i}": kernel for i, (kernel, _, _) in enumerate(cases.values())})
    for i, (name, (_, inputs, expected)) in enumerate(cases.items()):
        output = kernels.run(f"k{i}", inputs, expected.shape, expected.dtype.name)
        np.testing.assert_array_equal(output, expected, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_conv(cpu: str) -> None:
    """Every code meets two geometries and every geometry several codes; the slow sweep takes the product."""
    isa = runnable_isa(cpu)
    cases = {}
    for i, (name, codes) in enumerate(CODES.items()):
        for j in (i % len(GEOMETRIES), (i + 2) % len(GEOMETRIES)):
            cases[f"{name} {GEOMETRIES[j]}"] = conv_case(codes, GEOMETRIES[j], isa, i + j)
    _check(cpu, cases)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_conv_sweep(cpu: str) -> None:
    isa = runnable_isa(cpu)
    product = itertools.product(CODES.items(), GEOMETRIES)
    _check(cpu, {f"{n} {g}": conv_case(c, g, isa, i) for i, ((n, c), g) in enumerate(product)})


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_dense(cpu: str) -> None:
    isa = runnable_isa(cpu)
    product = itertools.product(CODES.items(), DENSE_SHAPES)
    _check(cpu, {f"{n} {s}": dense_case(c, s, isa, i) for i, ((n, c), s) in enumerate(product)})


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_no_counter_overflows(cpu: str) -> None:
    """All bits of all planes disagree with all weights, on both sides of what a byte counter holds."""
    isa = runnable_isa(cpu)
    cases = {}
    for bits, depth in itertools.product((2, 3, 4), (2 * 64, 2 * 64 + 1, 10 * 64, 11 * 64, 32 * 64, 5000 * 64)):
        codes = Codes(f"unsigned{bits}", tuple(range(1 << bits)))  # type: ignore[arg-type]
        rule = code_rule(codes)
        signs = np.zeros((9, depth), np.bool_)
        packed = pack_dense_reference(np.full((1, depth), 5, np.float32), rule, (), fused=True)
        constants = popcount_dense_constants(signs, alphabet=codes.alphabet)
        kernel = popcount_dense(
            1, depth, 9, alphabet=codes.alphabet, has_scale=False, has_bias=False, out_dtype="int32", isa=isa
        )
        expected = np.full((1, 9), -depth * ((1 << bits) - 1), np.int32)
        cases[f"{bits} bits, {depth}"] = kernel, [packed, *constants], expected
    _check(cpu, cases)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 4),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=15),
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_codes_by_exclusive_or(bits: int, thresholds: list[float], x: list[float], random: Any) -> None:
    """The kernel's formula: bit p is the parity of the passed thresholds that change it."""
    ordered = tuple(sorted(thresholds)[: (1 << bits) - 1])
    codes = (0, *(random.randrange(1 << bits) for _ in ordered))
    rule = PackRule("ge", ordered, f"unsigned{bits}", codes=codes)  # type: ignore[arg-type]
    values = np.array(x, np.float32)
    planes = binarise(values, rule, (), fused=True)
    assert len(planes) == code_bits(rule.alphabet)
    for plane, expected in enumerate(planes):
        parity = np.zeros(values.shape, np.bool_)
        for i in rule.changes(plane):
            parity ^= values >= np.float32(ordered[i])
        np.testing.assert_array_equal(parity, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": ()}, "do not fit"),
        ({"codes": (1, 2, 3, 0)}, "do not fit"),
        ({"codes": (0, 1, 2, 4)}, "do not fit"),
        ({"alphabet": "unsigned"}, "do not fit"),
        ({"codes": (0, 1, 2)}, "3 codes have 2 thresholds"),
        ({"predicate": "lt"}, "'ge' or 'nlt', found 'lt'"),
    ],
)
def test_rules_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    rule = {"predicate": "ge", "threshold": (0.0, 1.0, 2.0), "alphabet": "unsigned2", "codes": (0, 1, 2, 3)}
    with pytest.raises(ValueError, match=message):
        PackRule(**{**rule, **changes})
