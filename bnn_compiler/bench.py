"""Latency of a compiled network beside ONNX Runtime fp32, in one process, whole and layer by layer.

Both sides run on the same ordinary NumPy arrays through their public ``run``, in turn: a slow moment of the machine
hits both. The numbers are the minimum and the median over the rounds; a round times enough calls in a row to fill
``ROUND_SECONDS``, so that the clock's resolution does not matter.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from onnx import ModelProto

from bnn_compiler.report import LayerReport
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.inner_tensors import Runnable
from bnn_compiler.verification.reference import Array, Reference, expose, extract, sample_feeds

if TYPE_CHECKING:
    from bnn_compiler.profiling.profile import ProfileReport

ROUNDS = 15
ROUND_SECONDS = 0.005
WARM_UP_SECONDS = 0.02

Call = Callable[[], object]


class TimingReport(TypedDict):
    """Times in microseconds; ``speedup`` is the ratio of the minima, ``speedup_median`` that of the medians."""

    name: str
    macs: int
    bnnc_us_min: float
    bnnc_us_median: float
    onnxruntime_us_min: float
    onnxruntime_us_median: float
    speedup: float
    speedup_median: float
    gmacs_per_second: float


class BenchReport(TypedDict):
    """What ``bnnc bench --json`` writes."""

    schema: int
    model: str
    machine: str
    threads: int
    rounds: int
    versions: dict[str, str]
    network: TimingReport
    layers: list[TimingReport]
    profile: ProfileReport


@dataclass(frozen=True)
class Timing:
    """Seconds per call of both sides, one value per round."""

    name: str
    macs: int
    bnnc: tuple[float, ...]
    onnxruntime: tuple[float, ...]

    def to_report(self) -> TimingReport:
        """Return the JSON entry."""
        ours, theirs = min(self.bnnc), min(self.onnxruntime)
        our_median, their_median = statistics.median(self.bnnc), statistics.median(self.onnxruntime)
        return {
            "name": self.name,
            "macs": self.macs,
            "bnnc_us_min": round(ours * 1e6, 3),
            "bnnc_us_median": round(our_median * 1e6, 3),
            "onnxruntime_us_min": round(theirs * 1e6, 3),
            "onnxruntime_us_median": round(their_median * 1e6, 3),
            "speedup": round(theirs / ours, 3),
            "speedup_median": round(their_median / our_median, 3),
            "gmacs_per_second": round(self.macs / ours / 1e9, 3),
        }


def time_in_turn(
    calls: Sequence[Call], rounds: int = ROUNDS, round_seconds: float = ROUND_SECONDS
) -> list[tuple[float, ...]]:
    """Seconds per call of each of ``calls``, measured in turn, ``rounds`` values each, over ``round_seconds``."""
    counts = [_calibrate(call, round_seconds) for call in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, times in zip(calls, counts, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - start) / count)
    return [tuple(times) for times in seconds]


def _calibrate(call: Call, round_seconds: float) -> int:
    """Warm up, and return how many calls fill a round."""
    start = time.perf_counter()
    calls = 0
    while calls < 3 or time.perf_counter() - start < WARM_UP_SECONDS:
        call()
        calls += 1
    per_call = (time.perf_counter() - start) / calls
    return max(1, int(round_seconds / per_call))


def bench_network(
    compiled: Runnable,
    model: ModelProto,
    inputs: Sequence[TensorSpec],
    *,
    macs: int,
    threads: int = 1,
    rounds: int = ROUNDS,
    seed: int = 0,
) -> Timing:
    """Time the whole network; ``model`` is what ONNX Runtime runs, optimised, with ``threads`` threads."""
    reference = Reference(model, threads=threads)
    feeds = sample_feeds(inputs, seed, 0)
    ours, theirs = time_in_turn([lambda: compiled.run(feeds), lambda: reference.run(feeds)], rounds)
    return Timing("whole network", macs, ours, theirs)


def bench_layers(
    compiled: Runnable,
    model: ModelProto,
    inputs: Sequence[TensorSpec],
    layers: Sequence[LayerReport],
    *,
    threads: int = 1,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Timing]:
    """Time each binary layer alone, float in and float out, binarisation included on both sides.

    ONNX Runtime runs the part of ``model`` from the layer's ``input`` tensor to its ``output`` tensor; both sides get
    the values that the network itself puts there.
    """
    wanted = []
    for layer in layers:
        function, source, target = layer.get("function"), layer.get("input"), layer.get("output")
        if function and source and target:
            wanted.append((layer, function, source, target))
    values: dict[str, Array] = dict(sample_feeds(inputs, seed, 0))
    values |= Reference(expose(model, [source for _, _, source, _ in wanted]), optimise=False).run(values)
    timings = []
    for index, (layer, function, source, target) in enumerate(wanted):
        value = np.ascontiguousarray(values[source])
        reference = Reference(extract(model, source, target, value.shape), threads=threads)
        axes = layer.get("input_axes")
        ours_takes = value if axes is None else np.ascontiguousarray(value.transpose(axes))
        calls: list[Call] = [
            partial(compiled.run_function, function, ours_takes),
            partial(reference.run, {source: value}),
        ]
        ours, theirs = time_in_turn(calls, rounds)
        timings.append(Timing(layer["name"], layer["macs"], ours, theirs))
        progress((index + 1) / len(wanted))
    return timings


def bench_report(
    model: str,
    threads: int,
    rounds: int,
    versions: Mapping[str, str],
    network: Timing,
    layers: Sequence[Timing],
    profile: ProfileReport,
) -> BenchReport:
    """Assemble the JSON report."""
    return {
        "schema": 1,
        "model": model,
        "machine": machine_name(),
        "threads": threads,
        "rounds": rounds,
        "versions": dict(versions),
        "network": network.to_report(),
        "layers": [layer.to_report() for layer in layers],
        "profile": profile,
    }


def machine_name() -> str:
    """Return the processor and how many of it this machine has."""
    return f"{cpu_name()}, {os.cpu_count()} CPUs"


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
