"""Popcount dense layers bit for bit against the integer product of NumPy."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import Alphabet, OutDtype
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants
from bnn_compiler.schedules.popcount_dense_bits import popcount_dense_bits, popcount_dense_bits_constants
from bnn_compiler.schedules.reference import (
    binarise,
    dense_reference,
    epilogue_reference,
    pack_dense_reference,
    values_of,
)
from tests.schedules.bitsliced_harness import random_thresholds
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, cpu_target, misaligned, runnable_isa

ALPHABETS: list[Alphabet] = ["bipolar", "unsigned", "ternary"]
#: (M, K, N): edges of the row tile, of the word, of the vectors and of their tile.
SHAPES = [
    (1, 1, 1),
    (1, 64, 8),
    (1, 784, 10),
    (1, 1024, 1024),
    (2, 65, 7),
    (3, 100, 17),
    (4, 63, 40),
    (5, 129, 41),
    (7, 2048, 33),
    (8, 4100, 80),
    (64, 256, 100),
    (1, 9216, 96),
]


@dataclass(frozen=True)
class Case:
    shape: tuple[int, int, int]
    alphabet: Alphabet
    has_scale: bool = False
    has_bias: bool = False
    out_dtype: OutDtype = "int32"


def _kernel(case: Case, isa: Isa) -> Any:
    return popcount_dense(
        *case.shape,
        alphabet=case.alphabet,
        has_scale=case.has_scale,
        has_bias=case.has_bias,
        out_dtype=case.out_dtype,
        isa=isa,
    )


def _inputs_and_output(case: Case, isa: Isa, seed: int) -> tuple[list[Array], Array]:
    rng = np.random.default_rng(seed)
    rows, in_features, out_features = case.shape
    rule = PackRule("gt", alphabet=case.alphabet)
    x = rng.choice([-1.5, 0.0, 2.0], (rows, in_features)).astype(np.float32)
    signs = rng.random((out_features, in_features)) < 0.5
    scale = rng.standard_normal(out_features).astype(np.float32) if case.has_scale else None
    bias = rng.standard_normal(out_features).astype(np.float32) if case.has_bias else None
    bits = pack_dense_reference(x, rule, (), fused=True)
    constants = popcount_dense_constants(signs, alphabet=case.alphabet)
    z = dense_reference(values_of(binarise(x, rule, (), fused=True), case.alphabet), signs)
    inputs = [bits, *constants, *(array for array in (scale, bias) if array is not None)]
    if case.out_dtype == "int32":
        return inputs, z
    return inputs, epilogue_reference(z, scale, bias, fused=isa.fused_multiply_add)


def _check(cpu: str, cases: list[Case]) -> None:
    isa = runnable_isa(cpu)
    kernels = CompiledKernels(cpu, {f"k{i}": _kernel(case, isa) for i, case in enumerate(cases)})
    for i, case in enumerate(cases):
        inputs, expected = _inputs_and_output(case, isa, i)
        output = kernels.run(f"k{i}", inputs, expected.shape, case.out_dtype)
        np.testing.assert_array_equal(output, expected, err_msg=f"{case}")


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_shapes(cpu: str, alphabet: Alphabet) -> None:
    _check(cpu, [Case(shape, alphabet) for shape in SHAPES])


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_epilogues(cpu: str) -> None:
    flags = [(False, False), (True, False), (False, True), (True, True)]
    product = itertools.product([(1, 70, 43), (6, 70, 43)], ALPHABETS, flags)
    _check(cpu, [Case(shape, alphabet, *flag, "float32") for shape, alphabet, flag in product])


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_bits(cpu: str, alphabet: Alphabet) -> None:
    """Thresholds on the integers, packed as the next layer reads them."""
    isa = runnable_isa(cpu)
    shapes = [*SHAPES, (2, 70, 64), (3, 70, 130), (1, 128, 1025)]
    kernels = CompiledKernels(
        cpu, {f"k{i}": popcount_dense_bits(*shape, alphabet=alphabet, isa=isa) for i, shape in enumerate(shapes)}
    )
    for i, shape in enumerate(shapes):
        (bits, *constants), z = _inputs_and_output(Case(shape, alphabet), isa, i)
        rng = np.random.default_rng(i)
        thresholds, inverted = random_thresholds(z, rng), rng.random(shape[2]) < 0.3
        bounds = popcount_dense_bits_constants(shape[1], constants, thresholds, inverted, alphabet=alphabet)
        reached = (z >= thresholds) ^ inverted
        expected = pack_dense_reference(reached.astype(np.float32), PackRule("gt"), (), fused=True)
        output = kernels.run(f"k{i}", [bits, *bounds], expected.shape, "uint64")
        np.testing.assert_array_equal(output, expected, err_msg=f"{shape}")


@pytest.mark.slow
@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("cpu", X86_CPUS)
def test_sweep(cpu: str, alphabet: Alphabet) -> None:
    rows, depths, features = [1, 2, 3, 4, 5, 9], [7, 64, 130, 2100], [1, 7, 8, 9, 31, 32, 33, 64, 81]
    product = itertools.product(rows, depths, features)
    _check(cpu, [Case(shape, alphabet, True, True, "float32") for shape in product])


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_no_accumulator_overflows(cpu: str) -> None:
    """All weights disagree with all activations, just past the reach of byte counters and far past it."""
    isa = runnable_isa(cpu)
    depths = [31 * 64, 32 * 64, 62 * 64 + 1, 76_800, 4_200 * 64]
    cases = [Case((2, depth, 9), "bipolar") for depth in depths]
    kernels = CompiledKernels(cpu, {f"k{i}": _kernel(case, isa) for i, case in enumerate(cases)})
    for i, depth in enumerate(depths):
        signs = np.zeros((9, depth), np.bool_)
        signs[8] = True
        bits = pack_dense_reference(np.ones((2, depth), np.float32), PackRule("gt"), (), fused=True)
        z = kernels.run(f"k{i}", [bits, *popcount_dense_constants(signs, alphabet="bipolar")], (2, 9), "int32")
        np.testing.assert_array_equal(z, np.broadcast_to(np.where(signs[:, 0], depth, -depth), (2, 9)))


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_arguments_may_lie_anywhere(cpu: str) -> None:
    isa = runnable_isa(cpu)
    case = Case((5, 300, 50), "unsigned", True, True, "float32")
    inputs, expected = _inputs_and_output(case, isa, 0)
    output = misaligned(np.zeros_like(expected))
    kernels = CompiledKernels(cpu, {"dense": _kernel(case, isa)})
    kernels.run_in_place("dense", [misaligned(array) for array in inputs], output)
    np.testing.assert_array_equal(output, expected)


def test_an_integer_result_takes_no_scale() -> None:
    isa = detect_isa(cpu_target("x86-64").tvm_target)
    with pytest.raises(ValueError, match="neither scale nor bias"):
        _kernel(Case((1, 64, 8), "bipolar", has_bias=True), isa)
