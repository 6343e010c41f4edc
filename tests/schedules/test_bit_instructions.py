"""The steps of the bit-sliced kernels against their semantics in NumPy: logic, adders, counters, transpositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_counter import BitSlicedCounter, full_adder, full_adder_semantics
from bnn_compiler.schedules.bit_matrix import butterfly, butterfly_semantics, low_mask
from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.bit_unslice import make_unslicer
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.intrinsics import (
    affine_transpose,
    affine_transpose_semantics,
    ternary_logic,
    ternary_logic_semantics,
)
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import Argument, bind, build_kernel, load, store
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa

TRUTH_TABLES = (0x96, 0xE8, 0x8E)


def _kernel(inputs: int, results: int, size: int, compute: Callable[[list[Any]], Sequence[Any]]) -> Any:
    """A kernel that applies ``compute`` to ``inputs`` vectors of ``size`` words and stores the results in order."""
    arguments = [Argument("x", (inputs * size,), "uint64"), Argument("y", (results * size,), "uint64")]

    def emit(buffers: Mapping[str, Any]) -> None:
        operands = [bind(load(buffers["x"], i * size, size)) for i in range(inputs)]
        for i, result in enumerate(compute(operands)):
            store(buffers["y"], i * size, result, size)

    return build_kernel("kernel", "kernel", arguments, emit)


def _ternary_logic(table: int, lanes: int, isa: Isa) -> Callable[[list[Any]], Sequence[Any]]:
    return lambda x: [ternary_logic(x[0], x[1], x[2], table, lanes, isa)]


def _full_adder(lanes: int, isa: Isa, subtract: bool) -> Callable[[list[Any]], Sequence[Any]]:
    return lambda x: full_adder(x[0], x[1], x[2], lanes, isa, subtract=subtract)


def _planes_from(buffer: Any, first: int, lanes: int) -> Callable[[int], Any]:
    return lambda i: bind(load(buffer, (first + i) * lanes, lanes))


def _lanes(isa: Isa) -> list[int]:
    return [lanes for lanes in (8, 4, 2) if lanes * 64 <= isa.vector_bits]


def _random(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 1 << 64, shape, np.uint64)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_ternary_logic(cpu: str) -> None:
    isa = runnable_isa(cpu)
    names = [(lanes, table) for lanes in _lanes(isa) for table in TRUTH_TABLES]
    kernels = CompiledKernels(
        cpu,
        {f"k{lanes}_{table}": _kernel(3, 1, lanes, _ternary_logic(table, lanes, isa)) for lanes, table in names},
    )
    for lanes, table in names:
        x = _random(np.random.default_rng(0), 3, lanes)
        result = kernels.run(f"k{lanes}_{table}", [x.reshape(-1)], (lanes,), "uint64")
        np.testing.assert_array_equal(result, ternary_logic_semantics(x[0], x[1], x[2], table))


def test_ternary_logic_semantics_are_the_table() -> None:
    """Bit 4·a + 2·b + c: vpternlog's own numbering, whose inputs are 0xF0, 0xCC and 0xAA."""
    a, b, c = (np.array([value], np.uint64) for value in (0xF0, 0xCC, 0xAA))
    for table in range(256):
        assert ternary_logic_semantics(a, b, c, table)[0] & np.uint64(0xFF) == table


def test_unknown_tables_are_refused_without_ternary_logic() -> None:
    isa = runnable_isa("x86-64")
    with pytest.raises(ValueError, match="0x12"):
        _kernel(3, 1, 2, lambda x: [ternary_logic(x[0], x[1], x[2], 0x12, 2, isa)])


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_full_adder(cpu: str) -> None:
    isa = runnable_isa(cpu)
    for subtract in (False, True):
        for lanes in _lanes(isa):
            kernel = _kernel(3, 2, lanes, _full_adder(lanes, isa, subtract))
            x = _random(np.random.default_rng(1), 3, lanes)
            result = CompiledKernels(cpu, {"adder": kernel}).run("adder", [x.reshape(-1)], (2 * lanes,), "uint64")
            expected = full_adder_semantics(x[0], x[1], x[2], subtract=subtract)
            np.testing.assert_array_equal(result.reshape(2, lanes), expected)


@pytest.mark.parametrize("subtract", [False, True])
def test_full_adder_semantics_are_arithmetic(subtract: bool) -> None:
    a, b, c = (np.array([sum((case >> shift & 1) << case for case in range(8))], np.uint64) for shift in (2, 1, 0))
    total, carry = full_adder_semantics(a, b, c, subtract=subtract)
    for case in range(8):
        x, y, z = case >> 2 & 1, case >> 1 & 1, case & 1
        bit, out = int(total[0]) >> case & 1, int(carry[0]) >> case & 1
        assert x - y - z == bit - 2 * out if subtract else x + y + z == bit + 2 * out


@pytest.mark.parametrize("cpu", X86_CPUS)
@pytest.mark.parametrize("distance", [1, 2, 4, 8, 16, 32])
def test_butterfly(cpu: str, distance: int) -> None:
    lanes = _lanes(runnable_isa(cpu))[0]

    def compute(x: list[Any]) -> list[Any]:
        pairs = [butterfly(x[0], x[1], distance, lanes), butterfly(x[0], None, distance, lanes)]
        pairs.append(butterfly(None, x[1], distance, lanes))
        return [word for pair in pairs for word in pair]

    x = _random(np.random.default_rng(distance), 2, lanes)
    kernels = CompiledKernels(cpu, {"butterfly": _kernel(2, 6, lanes, compute)})
    result = kernels.run("butterfly", [x.reshape(-1)], (6 * lanes,), "uint64").reshape(3, 2, lanes)
    zero = np.zeros_like(x[0])
    for found, pair in zip(result, [(x[0], x[1]), (x[0], zero), (zero, x[1])], strict=True):
        np.testing.assert_array_equal(found, butterfly_semantics(pair[0], pair[1], distance))


def test_butterflies_transpose() -> None:
    """Six stages on 64 words are the transposition of a 64 x 64 matrix."""
    words = _random(np.random.default_rng(2), 64)
    matrix = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(64, 64)
    for distance in (32, 16, 8, 4, 2, 1):
        for first in range(64):
            if not first & distance:
                pair = butterfly_semantics(words[first : first + 1], words[first + distance :][:1], distance)
                words[first], words[first + distance] = pair[0][0], pair[1][0]
    np.testing.assert_array_equal(np.unpackbits(words.view(np.uint8), bitorder="little").reshape(64, 64), matrix.T)
    assert low_mask(8) == 0x00FF00FF00FF00FF


@pytest.mark.parametrize("lanes", [8, 4, 2])
def test_affine_transpose(lanes: int) -> None:
    runnable_isa("znver4")

    def emit(buffers: Mapping[str, Any]) -> None:
        store(buffers["y"], 0, affine_transpose(load(buffers["x"], 0, 8 * lanes), lanes), 8 * lanes)

    arguments = [Argument(name, (8 * lanes,), "uint8") for name in "xy"]
    x = np.random.default_rng(3).integers(0, 256, 8 * lanes).astype(np.uint8)
    kernels = CompiledKernels("znver4", {"transpose": build_kernel("k", "k", arguments, emit)})
    y = np.zeros_like(x)
    kernels.run_in_place("transpose", [x], y)
    np.testing.assert_array_equal(y, affine_transpose_semantics(x))
    for lane in range(lanes):
        for i in range(8):
            for j in range(8):
                assert y[8 * lane + j] >> i & 1 == x[8 * lane + 7 - i] >> j & 1


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_counter_and_unslicing(cpu: str) -> None:
    """Add 64 planes, take 8, add 16: the numbers come out as floats in the order of pixels that the layout states."""
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(4)
    for lanes in _lanes(isa):
        for bits in (7, 9, 13):
            unslicer = make_unslicer(bits, lanes, isa)
            pixels = 64 * lanes

            def emit(
                buffers: Mapping[str, Any], lanes: int = lanes, bits: int = bits, unslicer: Any = unslicer
            ) -> None:
                counter = BitSlicedCounter(bits, lanes, isa)
                for level in range(bits):
                    counter.set_plane(level, load(buffers["start"], level * lanes, lanes))
                first = 0
                for count, subtract in ((64, False), (8, True), (16, False)):
                    counter.count(count, _planes_from(buffers["planes"], first, lanes), subtract=subtract)
                    first += count
                planes = [counter.plane(level) for level in range(bits)]
                for start, floats in unslicer.floats(planes, 64 * lanes):
                    store(buffers["counts"], start, floats, unslicer.width)

            arguments = [
                Argument("start", (bits * lanes,), "uint64"),
                Argument("planes", (88 * lanes,), "uint64"),
                Argument("counts", (pixels,), "float32"),
            ]
            kernels = CompiledKernels(cpu, {"count": build_kernel("k", "k", arguments, emit)})
            layout = PlaneLayout(ConvGeometry(1, 1, 1, 1, 1, (1, 1)), "bipolar", lanes, unslicer.order)
            start, planes = rng.integers(0, 40, pixels), rng.integers(0, 2, (88, pixels))
            start[:8] += 8
            start = np.where(planes[:64].sum(0) + start < 8, 8, start)
            by_bit = [start >> level & 1 for level in range(bits)]
            inputs = [_as_words(by_bit, layout, lanes), _as_words(list(planes), layout, lanes)]
            floats = kernels.run("count", inputs, (pixels,), "float32")
            expected = start + planes[:64].sum(0) - planes[64:72].sum(0) + planes[72:].sum(0)
            np.testing.assert_array_equal((floats - unslicer.offset) * unslicer.step, expected % (1 << bits))


def _as_words(by_pixel: Sequence[Array], layout: PlaneLayout, lanes: int) -> Array:
    """Planes of one block, from the bit of each pixel."""
    words = np.zeros((len(by_pixel), lanes), np.uint64)
    for bit in range(64):
        for lane in range(lanes):
            pixel = layout.pixel_of_bit(bit, lanes) + lane
            words[:, lane] |= np.array([plane[pixel] for plane in by_pixel], np.uint64) << np.uint64(bit)
    return words.reshape(-1)
