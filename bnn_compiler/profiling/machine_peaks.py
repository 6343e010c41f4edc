"""What one core of this machine can do, measured: binary and float multiply-accumulates, bytes read from each memory.

The compute kernels are the innermost loops of this project's own layers on operands that stay in the first-level
cache: a register tile of vectors times broadcast words, with the instructions that ``vector_popcount`` and
``fused_multiply_add`` choose. They bound what any layer of this compiler reaches, which is what a roofline is for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import tvm

from bnn_compiler.code_generation import code_generation
from bnn_compiler.schedules.float_vector import float_vector
from bnn_compiler.schedules.intrinsics import fused_multiply_add, vector_popcount
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    load,
    register,
    serial,
    splat,
    store,
    typed,
)
from bnn_compiler.target import parse_target

#: Words (floats) of the inner loop: no partial counter of ``VectorPopcount`` overflows in fewer.
_DEPTH = 28
_TILES = 2000
_ACCUMULATORS = 8
_SECONDS = 0.15
_LEAST_BYTES_READ = 1 << 24
_LARGEST_BUFFER = 1 << 28
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


class BandwidthReport(TypedDict):
    """Bytes read per second by one core over and over a buffer of ``bytes``, which lies in ``level``."""

    level: str
    bytes: int
    gbytes_per_second: float


class PeaksReport(TypedDict):
    """Of one core; a multiply-accumulate is one bit pair or one float32 pair."""

    popcount_gmacs_per_second: float
    float_gmacs_per_second: float
    bandwidth: list[BandwidthReport]


@dataclass(frozen=True)
class _Probe:
    """A kernel of arguments ``shapes``, the last one written; ``work`` per call, in MACs or bytes."""

    function: PrimFunc
    arguments: tuple[Argument, ...]
    work: float


def measure_peaks() -> PeaksReport:
    """Measure; takes about two seconds and up to 256 MiB, on one thread."""
    target = parse_target("native").tvm_target
    isa = detect_isa(target)
    levels = memory_levels()
    probes = {"popcount": _popcount_probe(isa), "float": _float_probe(isa)}
    probes |= {level: _read_probe(size, isa) for level, size in levels.items()}
    functions = {name: probe.function.with_attr("global_symbol", name) for name, probe in probes.items()}
    with target, code_generation():
        library = tvm.compile(tvm.IRModule(functions), target=target)
    rates = {name: probe.work / _least_seconds(library[name], probe) / 1e9 for name, probe in probes.items()}
    return {
        "popcount_gmacs_per_second": round(rates["popcount"], 1),
        "float_gmacs_per_second": round(rates["float"], 1),
        "bandwidth": [
            {"level": level, "bytes": size, "gbytes_per_second": round(rates[level], 1)}
            for level, size in levels.items()
        ],
    }


def memory_levels(caches: Path = _CACHES) -> dict[str, int]:
    """Bytes of a buffer that lies in each cache of the first core, and of one that lies in none (``memory``)."""
    sizes: dict[str, int] = {}
    for entry in sorted(caches.glob("index*")):
        try:
            kind, level, size = ((entry / name).read_text().strip() for name in ("type", "level", "size"))
            if kind in ("Data", "Unified"):
                sizes[f"L{int(level)}"] = int(size.removesuffix("K")) * 1024
        except (OSError, ValueError):
            continue  # a file of another kernel's making
    largest = max(sizes.values(), default=1 << 25)
    # Half of a cache, so that what else runs does not push the buffer out.
    levels = {level: size // 2 for level, size in sizes.items() if size // 2 <= _LARGEST_BUFFER // 4}
    return {**levels, "memory": min(4 * largest, _LARGEST_BUFFER)}


def _popcount_probe(isa: Isa) -> _Probe:
    unit = vector_popcount(isa)
    vectors, words = unit.tile
    lanes = unit.lanes
    arguments = (
        Argument("x", (_DEPTH, vectors, lanes), "uint64"),
        Argument("w", (_DEPTH, words), "uint64"),
        Argument("y", (vectors, words, lanes), "uint64"),
    )

    def emit(buffers: Mapping[str, Buffer]) -> None:
        x, w, y = (buffers[argument.name] for argument in arguments)
        tile = range(vectors * words)
        totals = [register(lanes, "uint64") for _ in tile]
        partials = [register(unit.partial_lanes, unit.partial_dtype) for _ in tile]
        for total in totals:
            store(total, 0, constant(0, "uint64", lanes), lanes)
        with serial(_TILES):
            for partial in partials:
                store(partial, 0, constant(0, unit.partial_dtype, unit.partial_lanes), unit.partial_lanes)
            with serial(_DEPTH) as depth:
                a = [unit.prepare(bind(load(x, (depth * vectors + i) * lanes, lanes))) for i in range(vectors)]
                b = [unit.prepare(bind(splat(load(w, depth * words + j), lanes))) for j in range(words)]
                for index in tile:
                    current = load(partials[index], 0, unit.partial_lanes)
                    counted = unit.accumulate(current, a[index // words], b[index % words])
                    store(partials[index], 0, counted, unit.partial_lanes)
            for total, partial in zip(totals, partials, strict=True):
                widened = unit.widen(load(partial, 0, unit.partial_lanes))
                store(total, 0, load(total, 0, lanes) + widened, lanes)
        for index, total in enumerate(totals):
            store(y, index * lanes, load(total, 0, lanes), lanes)

    function = build_kernel("popcount_peak", "popcount_peak", arguments, emit)
    return _Probe(function, arguments, _TILES * _DEPTH * vectors * words * lanes * 64)


def _float_probe(isa: Isa) -> _Probe:
    vector = float_vector(isa)
    lanes = vector.lanes
    vectors, words = (4, 6) if vector.registers == 32 else (2, 5)
    arguments = (
        Argument("x", (_DEPTH, vectors, lanes), "float32"),
        Argument("w", (_DEPTH, words), "float32"),
        Argument("y", (vectors, words, lanes), "float32"),
    )

    def emit(buffers: Mapping[str, Buffer]) -> None:
        x, w, y = (buffers[argument.name] for argument in arguments)
        totals = [register(lanes, "float32") for _ in range(vectors * words)]
        dtype = typed("float32", lanes)
        for total in totals:
            store(total, 0, constant(0.0, "float32", lanes), lanes)
        with serial(_TILES), serial(_DEPTH) as depth:
            a = [bind(load(x, (depth * vectors + i) * lanes, lanes)) for i in range(vectors)]
            b = [bind(splat(load(w, depth * words + j), lanes)) for j in range(words)]
            for index, total in enumerate(totals):
                value = fused_multiply_add(a[index // words], b[index % words], load(total, 0, lanes), dtype, isa)
                store(total, 0, value, lanes)
        for index, total in enumerate(totals):
            store(y, index * lanes, load(total, 0, lanes), lanes)

    function = build_kernel("float_peak", "float_peak", arguments, emit)
    return _Probe(function, arguments, _TILES * _DEPTH * vectors * words * lanes)


def _read_probe(size: int, isa: Isa) -> _Probe:
    lanes = isa.vector_bits // 64
    block = lanes * _ACCUMULATORS
    blocks = size // (8 * block)
    repeats = -(-_LEAST_BYTES_READ // size)
    arguments = (Argument("x", (blocks * block,), "uint64"), Argument("y", (lanes,), "uint64"))

    def emit(buffers: Mapping[str, Buffer]) -> None:
        totals = [register(lanes, "uint64") for _ in range(_ACCUMULATORS)]
        for total in totals:
            store(total, 0, constant(0, "uint64", lanes), lanes)
        with serial(repeats), serial(blocks) as index:
            for number, total in enumerate(totals):
                value = load(buffers["x"], index * block + number * lanes, lanes)
                store(total, 0, load(total, 0, lanes) + value, lanes)
        result = load(totals[0], 0, lanes)
        for total in totals[1:]:
            result = result + load(total, 0, lanes)
        store(buffers["y"], 0, result, lanes)

    function = build_kernel("read_peak", "read_peak", arguments, emit)
    return _Probe(function, arguments, repeats * blocks * block * 8)


def _least_seconds(call: Callable[..., object], probe: _Probe) -> float:
    arrays = [tvm.runtime.tensor(np.zeros(argument.shape, argument.dtype)) for argument in probe.arguments]
    least = float("inf")
    end = time.perf_counter() + _SECONDS
    for round_ in range(1000):
        start = time.perf_counter()
        call(*arrays)
        now = time.perf_counter()
        # The first call touches the pages.
        least = min(least, now - start) if round_ else least
        if now > end and round_ >= 2:
            break
    return least
