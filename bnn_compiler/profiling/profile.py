"""A network's profile: its kernels and layers with their times, and the same work in ONNX Runtime.

Shares are of the kernels' times plus the overhead. The overhead is what a whole ``run()`` takes beyond its kernels:
argument checks, allocation, the machinery between calls. Both are minima over rounds, of different runs: where the
sum of the kernels is the larger one, the overhead counts as nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

from onnx import ModelProto

from bnn_compiler.report import LayerReport
from bnn_compiler.runtime import CompiledModel
from bnn_compiler.verification.reference import sample_feeds

from .kernel_table import KernelEntry, Kind
from .kernel_timing import KernelCall, NetworkTimes, time_kernels
from .machine_peaks import PeaksReport, measure_peaks
from .onnxruntime_nodes import NodeTimes, time_nodes

#: Of a kernel: what the hook costs around it is reported for such a one.
TYPICAL_ARGUMENTS = 4
#: What is shorter has no rate and no ratio to ONNX Runtime: the hook's cost, which is subtracted, is known to about so
#: much.
LEAST_COMPARED_US = 0.1


class KernelProfile(TypedDict):
    """One kernel call; times in microseconds; ``onnxruntime_us`` is of the nodes that the call computes.

    ``macs`` is 0 for calls that compute no layer. Bytes are those of the arguments, constants included.
    """

    kernel: str
    layer: str
    nodes: list[str]
    kind: Kind
    us_min: float
    us_median: float
    share: float
    macs: int
    gmacs_per_second: float
    bytes_read: int
    bytes_written: int
    gbytes_per_second: float
    onnxruntime_us: float | None


class LayerProfile(TypedDict):
    """All calls that work for one layer, or one call that works for none (``op`` is empty; named after its last node).

    ``onnxruntime_us`` and ``speedup`` are null where ONNX Runtime was not asked, ``speedup`` also where it ran no such
    node, or ours are too short.
    """

    name: str
    op: str
    kind: Kind
    kernels: int
    us: float
    share: float
    macs: int
    bytes: int
    onnxruntime_us: float | None
    speedup: float | None


class Shares(TypedDict):
    """Parts of the whole that add up to 1."""

    binary: float
    float: float
    glue: float
    overhead: float


class OnnxRuntimeProfile(TypedDict):
    """ONNX Runtime on the same network: the whole run, its nodes, and those of them that have no counterpart."""

    run_us: float
    nodes_us: float
    unmatched_us: float


class ProfileReport(TypedDict):
    """What ``bnnc bench`` and ``bnnc inspect --profile`` measure; docs/report.md describes it."""

    threads: int
    rounds: int
    run_us: float
    kernels_us: float
    overhead_us: float
    subtracted_us_per_kernel: float
    shares: Shares
    layers: list[LayerProfile]
    kernels: list[KernelProfile]
    onnxruntime: OnnxRuntimeProfile | None
    peaks: PeaksReport | None


def profile_network(
    compiled: CompiledModel,
    layers: Sequence[LayerReport],
    model: ModelProto | None = None,
    *,
    rounds: int,
    seed: int = 0,
    peaks: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> ProfileReport:
    """Profile ``compiled`` on a random input, with the threads it is set to.

    ``model``, where there is one, is what ONNX Runtime runs beside it, with as many threads. ``peaks`` measures the
    machine, too.
    """
    threads = compiled.num_threads
    feeds = sample_feeds(compiled.inputs, seed, 0)
    times = time_kernels(compiled, feeds, rounds)
    progress(0.4)
    nodes = None
    if model is not None:
        nodes = time_nodes(model, feeds, threads)
        progress(0.7)
    table: list[KernelEntry] = compiled.manifest.get("kernels", [])
    profile = make_profile(threads, times, table, layers, nodes)
    if peaks:
        profile["peaks"] = measure_peaks()
    progress(1.0)
    return profile


def make_profile(
    threads: int,
    times: NetworkTimes,
    table: Sequence[KernelEntry],
    layers: Sequence[LayerReport],
    nodes: NodeTimes | None,
) -> ProfileReport:
    """Put measurements together."""
    run_us = min(times.runs) * 1e6
    kernels_us = sum(min(call.seconds) for call in times.calls) * 1e6
    overhead_us = max(run_us - kernels_us, 0.0)
    whole = kernels_us + overhead_us
    macs = {layer["name"]: layer["macs"] for layer in layers}
    entries = match_table(times.calls, table)
    kernels = [_kernel(call, entry, macs, whole, nodes) for call, entry in zip(times.calls, entries, strict=True)]
    shares: Shares = {"binary": 0.0, "float": 0.0, "glue": 0.0, "overhead": overhead_us / whole if whole else 0.0}
    for kernel in kernels:
        shares[kernel["kind"]] += kernel["share"]
    return {
        "threads": threads,
        "rounds": len(times.runs),
        "run_us": round(run_us, 3),
        "kernels_us": round(kernels_us, 3),
        "overhead_us": round(overhead_us, 3),
        "subtracted_us_per_kernel": round(times.cost.of(TYPICAL_ARGUMENTS) * 1e6, 3),
        "shares": shares,
        "layers": group_layers(kernels, {layer["name"]: layer["op"] for layer in layers}),
        "kernels": kernels,
        "onnxruntime": None if nodes is None else _onnxruntime(nodes, kernels),
        "peaks": None,
    }


def match_table(calls: Sequence[KernelCall], table: Sequence[KernelEntry]) -> list[KernelEntry]:
    """The table's entry of each call. Both are in the order of the run, but either may have calls that the other lacks.

    The table has reshapes that became views of memory, the run copies of results. What has no entry is glue.
    """
    found: list[KernelEntry] = []
    position = 0
    for call in calls:
        following = range(position, len(table))
        index = next((i for i in following if table[i]["kernel"] == call.kernel), None)
        if index is None:
            found.append({"kernel": call.kernel, "nodes": [], "layer": "", "kind": "glue", "results": 1})
        else:
            found.append(table[index])
            position = index + 1
    return found


def _kernel(
    call: KernelCall, entry: KernelEntry, macs: Mapping[str, int], whole_us: float, nodes: NodeTimes | None
) -> KernelProfile:
    seconds = min(call.seconds)
    # Convolutions of one tensor may run as one.
    operations = sum(macs.get(node, 0) for node in entry["nodes"])
    inputs = len(call.argument_bytes) - entry.get("results", 1)  # not in the first libraries that had a table
    bytes_read, bytes_written = sum(call.argument_bytes[:inputs]), sum(call.argument_bytes[inputs:])
    theirs = None if nodes is None else sum(nodes.seconds.get(node, 0.0) for node in entry["nodes"])
    return {
        "kernel": call.kernel,
        "layer": entry["layer"],
        "nodes": entry["nodes"],
        "kind": entry["kind"],
        "us_min": round(seconds * 1e6, 3),
        "us_median": round(statistics.median(call.seconds) * 1e6, 3),
        "share": seconds * 1e6 / whole_us if whole_us else 0.0,
        "macs": operations,
        "gmacs_per_second": _rate(operations, seconds),
        "bytes_read": bytes_read,
        "bytes_written": bytes_written,
        "gbytes_per_second": _rate(bytes_read + bytes_written, seconds),
        "onnxruntime_us": None if theirs is None else round(theirs * 1e6, 3),
    }


def _rate(amount: float, seconds: float) -> float:
    """In 10⁹ per second; 0 where the kernel is too short to be measured."""
    return round(amount / seconds / 1e9, 3) if seconds * 1e6 >= LEAST_COMPARED_US else 0.0


def group_layers(kernels: Sequence[KernelProfile], operators: Mapping[str, str]) -> list[LayerProfile]:
    """The kernels' sums by layer, in the order of the run; ``operators`` are ONNX's by layer."""
    groups: dict[tuple[str, int], list[KernelProfile]] = {}
    for index, kernel in enumerate(kernels):
        groups.setdefault((kernel["layer"], 0 if kernel["layer"] else index), []).append(kernel)
    return [_layer(layer, group, operators) for (layer, _), group in groups.items()]


def _layer(layer: str, group: Sequence[KernelProfile], operators: Mapping[str, str]) -> LayerProfile:
    ours = sum(kernel["us_min"] for kernel in group)
    times = [kernel["onnxruntime_us"] for kernel in group]
    theirs = None if times[0] is None else sum(time for time in times if time is not None)
    kinds: dict[Kind, None] = dict.fromkeys(kernel["kind"] for kernel in group if kernel["kind"] != "glue")
    return {
        "name": layer or nodes_label(group[0]["nodes"]) or group[0]["kernel"],
        "op": operators.get(layer, ""),
        "kind": next(iter(kinds), "glue"),
        "kernels": len(group),
        "us": round(ours, 3),
        "share": sum(kernel["share"] for kernel in group),
        "macs": sum(kernel["macs"] for kernel in group),
        "bytes": sum(kernel["bytes_read"] + kernel["bytes_written"] for kernel in group),
        "onnxruntime_us": None if theirs is None else round(theirs, 3),
        "speedup": round(theirs / ours, 3) if theirs and ours >= LEAST_COMPARED_US else None,
    }


def nodes_label(nodes: Sequence[str]) -> str:
    """The last of ``nodes`` and how many more there are; empty for none."""
    return f"{nodes[-1]} + {len(nodes) - 1}" if len(nodes) > 1 else "".join(nodes)


def _onnxruntime(nodes: NodeTimes, kernels: Sequence[KernelProfile]) -> OnnxRuntimeProfile:
    listed = {node for kernel in kernels for node in kernel["nodes"]}
    rest = sum(seconds for node, seconds in nodes.seconds.items() if node not in listed)
    return {
        "run_us": round(nodes.run * 1e6, 3),
        "nodes_us": round((sum(nodes.seconds.values()) + nodes.unmatched) * 1e6, 3),
        "unmatched_us": round((nodes.unmatched + rest) * 1e6, 3),
    }
