"""Whole networks beside ONNX Runtime fp32, in turn in one run, through ``run()`` on NumPy arrays.

    python benchmarks/networks.py MODEL.onnx [MODEL.onnx ...] [--threads N] [--rounds N] [--json out.json]

Prints, per network, the seconds that compiling and verifying took, the latency of both sides (minimum and median over
the rounds) and their ratios. ONNX Runtime runs with all its graph optimisations.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import bnn_compiler
from bnn_compiler.bench import bench_network, cpu_name
from bnn_compiler.frontend import import_onnx


def measure(model: Path, threads: int, rounds: int) -> dict[str, Any]:
    start = time.perf_counter()
    compiled = bnn_compiler.compile_model(model)
    seconds = time.perf_counter() - start
    imported = import_onnx(model)
    layers = compiled.report["layers"]
    macs = sum(layer["macs"] for layer in layers)
    timing = bench_network(
        compiled, imported.onnx_model, imported.inputs, macs=macs, threads=threads, rounds=rounds
    ).to_report()
    binary = sum(layer["status"] == "binary" for layer in layers)
    return {**timing, "name": model.stem, "binary_layers": binary, "compile_seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)

    table = Table("network", "binary layers", "compile s", "bnnc ms", "ONNX Runtime ms", "ratio (median)", box=None)
    rows = []
    for model in arguments.models:
        row = measure(model, arguments.threads, arguments.rounds)
        rows.append(row)
        table.add_row(
            row["name"],
            str(row["binary_layers"]),
            f"{row['compile_seconds']:.1f}",
            f"{row['bnnc_us_min'] / 1e3:.3f} ({row['bnnc_us_median'] / 1e3:.3f})",
            f"{row['onnxruntime_us_min'] / 1e3:.3f} ({row['onnxruntime_us_median'] / 1e3:.3f})",
            f"{row['speedup']:.1f}x ({row['speedup_median']:.1f}x)",
        )
    console = Console(width=120)
    console.print(f"{cpu_name()}, threads: {arguments.threads}; milliseconds, minimum (median)")
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
