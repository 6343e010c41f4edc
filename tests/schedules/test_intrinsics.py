"""Each intrinsic against its NumPy semantics, and in the assembly of its CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.intrinsics import (
    fused_multiply_add,
    lookup_int32,
    lookup_semantics,
    narrow_pair,
    narrow_pair_semantics,
    vector_popcount,
)
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.kernel_builder import Argument, build_kernel, load, store, tile_starts, typed
from bnn_compiler.schedules.reference import multiply_add
from tests.schedules.kernel_harness import X86_CPUS, CompiledKernels, cpu_target, runnable_isa

_WORDS = 4


def _count_kernel(isa: Isa) -> Any:
    """Totals of ``_WORDS`` pairs of vectors."""
    unit = vector_popcount(isa)

    def emit(buffers: Mapping[str, Any]) -> None:
        partial = load(buffers["start"], 0, unit.partial_lanes)
        for word in range(_WORDS):
            a, b = (unit.prepare(load(buffers[name], word * unit.lanes, unit.lanes)) for name in "ab")
            partial = unit.accumulate(partial, a, b)
        store(buffers["totals"], 0, unit.widen(partial), unit.lanes)

    arguments = [
        Argument("a", (_WORDS, unit.lanes), "uint64"),
        Argument("b", (_WORDS, unit.lanes), "uint64"),
        Argument("start", (unit.partial_lanes,), unit.partial_dtype),
        Argument("totals", (unit.lanes,), "uint64"),
    ]
    return build_kernel("count", "count", arguments, emit)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_counts_bits_as_its_semantics(cpu: str) -> None:
    isa = runnable_isa(cpu)
    unit = vector_popcount(isa)
    kernels = CompiledKernels(cpu, {"count": _count_kernel(isa)})
    rng = np.random.default_rng(0)
    full = np.full((_WORDS, unit.lanes), np.iinfo(np.uint64).max, np.uint64)
    random = [rng.integers(0, 1 << 64, (_WORDS, unit.lanes), np.uint64) for _ in range(2)]
    for a, b in [random, (full, ~full), (full, full), (random[0], full)]:
        start = rng.integers(0, 100, unit.partial_lanes).astype(unit.partial_dtype)
        partial = start
        for word in range(_WORDS):
            partial = unit.accumulate_semantics(partial, a[word], b[word])
        expected = unit.widen_semantics(partial)
        assert expected.sum() == start.sum(dtype=np.uint64) + np.bitwise_count(a ^ b).sum(dtype=np.uint64)
        np.testing.assert_array_equal(kernels.run("count", [a, b, start], (unit.lanes,), "uint64"), expected)


@pytest.mark.parametrize("cpu", [*X86_CPUS, "cortex-a72"])
def test_partial_counts_hold_as_many_words_as_claimed(cpu: str) -> None:
    unit = vector_popcount(detect_isa(cpu_target(cpu).tvm_target))
    if unit.partial_words is None:
        assert unit.partial_dtype == "uint64"
        return
    bits = 8 * np.dtype(unit.partial_dtype).itemsize
    largest = np.iinfo(unit.partial_dtype).max
    assert bits * unit.partial_words <= largest < bits * (unit.partial_words + 1)


@pytest.mark.parametrize(
    ("cpu", "present", "absent"),
    [
        ("znver4", ["vpopcntq\t", "%zmm"], ["vpshufb"]),
        ("skylake-avx512", ["vpshufb\t", "vpsadbw\t", "%zmm"], ["vpopcntq"]),
        ("haswell", ["vpshufb\t", "vpsadbw\t", "%ymm"], ["vpopcntq", "%zmm"]),
        ("x86-64", ["%xmm"], ["vpopcntq", "pshufb", "%ymm"]),
        ("cortex-a72", ["cnt\tv", "uadalp\tv"], []),
    ],
)
def test_instructions(cpu: str, present: list[str], absent: list[str]) -> None:
    isa = detect_isa(cpu_target(cpu).tvm_target)
    assembly = CompiledKernels(cpu, {"count": _count_kernel(isa)}).assembly()
    assert [text for text in present if text not in assembly] == []
    assert [text for text in absent if text in assembly] == []


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("entries", [16, 32, 48, 64])
@pytest.mark.parametrize("cpu", ["znver4", "skylake-avx512"])
def test_table_lookup(cpu: str, entries: int, lanes: int) -> None:
    runnable_isa(cpu)

    def emit(buffers: Mapping[str, Any]) -> None:
        table = [load(buffers["table"], start, lanes) for start in range(0, entries, lanes)]
        for start in range(0, 64, lanes):
            found = lookup_int32(table, load(buffers["index"], start, lanes), lanes)
            store(buffers["found"], start, found, lanes)

    arguments = [
        Argument("table", (entries,), "int32"),
        Argument("index", (64,), "int32"),
        Argument("found", (64,), "int32"),
    ]
    kernels = CompiledKernels(cpu, {"lookup": build_kernel("lookup", "lookup", arguments, emit)})
    table = np.random.default_rng(entries).integers(-(1 << 31), 1 << 31, entries).astype(np.int32)
    index = (np.arange(64) * 7 % entries).astype(np.int32)
    found = kernels.run("lookup", [table, index], (64,), "int32")
    np.testing.assert_array_equal(found, lookup_semantics(table, index))


@pytest.mark.parametrize("cpu", ["znver4", "skylake-avx512"])
def test_narrow_pair(cpu: str) -> None:
    runnable_isa(cpu)

    def emit(buffers: Mapping[str, Any]) -> None:
        store(buffers["narrow"], 0, narrow_pair(load(buffers["low"], 0, 8), load(buffers["high"], 0, 8)), 16)

    arguments = [Argument("low", (8,), "uint64"), Argument("high", (8,), "uint64"), Argument("narrow", (16,), "int32")]
    kernels = CompiledKernels(cpu, {"narrow": build_kernel("narrow", "narrow", arguments, emit)})
    low, high = np.random.default_rng(0).integers(0, 1 << 64, (2, 8), np.uint64)
    narrow = kernels.run("narrow", [low, high], (16,), "int32")
    np.testing.assert_array_equal(narrow, narrow_pair_semantics(low, high))


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_multiply_add_rounds_as_its_semantics(cpu: str) -> None:
    isa = runnable_isa(cpu)
    count, lanes = 4096, isa.vector_bits // 32

    def emit(buffers: Mapping[str, Any]) -> None:
        full, rest = tile_starts(count, lanes, 1)
        assert not rest
        for vector in range(full):
            a, b, c = (load(buffers[name], vector * lanes, lanes) for name in "abc")
            store(buffers["y"], vector * lanes, fused_multiply_add(a, b, c, typed("float32", lanes), isa), lanes)

    arguments = [Argument(name, (count,), "float32") for name in "abcy"]
    kernels = CompiledKernels(cpu, {"fma": build_kernel("fma", "fma", arguments, emit)})
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, count)).astype(np.float32)
    c = -a * b + rng.choice([0, 2.0**-26, 2.0**-40, 1], count).astype(np.float32) * rng.standard_normal(count).astype(
        np.float32
    )
    expected = multiply_add(a, b, c, fused=isa.fused_multiply_add)
    np.testing.assert_array_equal(kernels.run("fma", [a, b, c], (count,), "float32"), expected)
    # The two roundings differ on such operands, else this test would prove nothing.
    assert np.any(expected != multiply_add(a, b, c, fused=not isa.fused_multiply_add))


def test_fused_reference_survives_halfway_cases() -> None:
    """A sum that lands between two float32 in float64 must not be rounded twice."""
    # a·a lies halfway between two float32; c decides, and is too small to survive in float64.
    a = np.array([1 + 2.0**-12], np.float32)
    for c, expected in [(2.0**-60, 1 + 2.0**-11 + 2.0**-23), (-(2.0**-60), 1 + 2.0**-11)]:
        assert np.float64(a[0]) ** 2 + c == np.float64(a[0]) ** 2
        assert multiply_add(a, a, np.array([c], np.float32), fused=True)[0] == np.float32(expected)
