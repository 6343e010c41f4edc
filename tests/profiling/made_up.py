"""A profile of made-up measurements, with names that a model should not have."""

from __future__ import annotations

import math

from bnn_compiler.profiling.kernel_table import KernelEntry
from bnn_compiler.profiling.kernel_timing import HookCost, KernelCall, NetworkTimes
from bnn_compiler.profiling.onnxruntime_nodes import NodeTimes
from bnn_compiler.profiling.profile import ProfileReport, make_profile
from bnn_compiler.report import LayerReport, Report, make_report

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;\"'"
HOST = "https://example.com/x.js"

TABLE: list[KernelEntry] = [
    {"kernel": "float_conv", "nodes": ["stem", "relu"], "layer": "stem", "kind": "float", "results": 1},
    {"kernel": "view", "nodes": ["flat"], "layer": "", "kind": "glue", "results": 1},
    {"kernel": "pack", "nodes": [], "layer": HOSTILE, "kind": "glue", "results": 1},
    {"kernel": "popcount", "nodes": ["sign", HOSTILE], "layer": HOSTILE, "kind": "binary", "results": 2},
    {"kernel": "pool", "nodes": ["pool", HOST], "layer": "", "kind": "glue", "results": 1},
]
CALLS = (
    KernelCall("float_conv", (20e-6, 22e-6, 30e-6), (2000, 1000, 1000)),
    KernelCall("pack", (2e-6, 3e-6, 4e-6), (1000, 32)),
    KernelCall("popcount", (10e-6, 11e-6, 12e-6), (100, 500, 3900, 100)),
    KernelCall("pool", (5e-6, 5e-6, 9e-6), (4000, 1000)),
    KernelCall("copy", (1e-6, 1e-6, 1e-6), (1000, 1000)),
)


def layers() -> list[LayerReport]:
    """A float layer and a binary one with a tree."""
    shape = [64, 64, 3, 3]
    tree = {
        "nodes": 70, "differing_weights": 9000, "planes": 9100, "cost_ratio": 0.25, "synthetic_nodes": 6, "depth": 5,
    }  # fmt: skip
    common: dict[str, object] = {"op": "Conv", "kernel": None, "weight_shape": shape, "detail": f"found {HOSTILE}"}
    stem = {**common, "name": "stem", "status": "float", "reason": "weights_not_two_valued", "algorithm": "float"}
    binary = {
        **common, "name": HOSTILE, "status": "binary", "reason": "", "algorithm": "bitsliced", "gives_bits": False,
        "function": "layer_0", "input": "x", "output": "y", "input_axes": None, "output_axes": None,
        "weight_bytes": math.prod(shape) // 8,
        "choice": {"source": "predicted", "chosen": "tree", "candidates": [], "tree": tree},
    }  # fmt: skip
    report = make_report("m", "native", {}, [{**stem, "macs": 400_000}, {**binary, "macs": 8_000_000}])
    return report["layers"]


def report() -> Report:
    """The report of the same network."""
    note = {"code": "model", "node": HOSTILE, "detail": f"see {HOST}"}
    made = make_report("m", "native", {"tvm": "1"}, layers(), [note])  # type: ignore[list-item]
    made["memory"] = {
        "activations_peak_bytes": 4000, "workspace_bytes": 4096, "scratch_bytes": 64, "constants_bytes": 5_000_000,
    }  # fmt: skip
    return made


def profile(*, compared: bool = True, peaks: bool = True) -> ProfileReport:
    """The profile, with or without ONNX Runtime and the machine's peaks."""
    times = NetworkTimes(CALLS, (50e-6, 45e-6, 60e-6), HookCost(0.5e-6, 0.1e-6))
    nodes = NodeTimes({"stem": 30e-6, "relu": 2e-6, HOSTILE: 200e-6, "pool": 4e-6, "unlisted": 1e-6}, 8e-6, 250e-6)
    made = make_profile(1, times, TABLE, layers(), nodes if compared else None)
    if peaks:
        made["peaks"] = {
            "popcount_gmacs_per_second": 1000.0,
            "float_gmacs_per_second": 60.0,
            "bandwidth": [
                {"level": "L1", "bytes": 16384, "gbytes_per_second": 400.0},
                {"level": "memory", "bytes": 1 << 27, "gbytes_per_second": 20.0},
            ],
        }
    return made
