"""What compiling costs: ``python benchmarks/compile_cost.py MODEL.onnx … [--json out.json]``.

Each model is compiled and verified twice, in processes of their own: with an empty cache of channel trees, then with
the cache that the first run left. Printed per model: wall time of both (with the start of Python), the larger peak of
resident memory, and the library's size beside what it has to hold, two bits per weight of a binary layer and the
weights of float layers. Nothing is compared with a peer, so nothing but the times needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bnn_compiler.report import Report

ALLOWANCE = 300 * 1024  # bytes of code and tables that come with any network


def compile_once(model: Path, folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of ``bnnc compile`` in a process of its own; the tree cache is in ``folder``."""
    script = "import sys; from bnn_compiler.cli import main; sys.exit(main())"
    arguments = ["compile", str(model), "-q", "-o", str(folder / "model.so"), "--report", str(folder / "report.json")]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env={**os.environ, "BNNC_CACHE": str(folder / "cache")}
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{model}: compiling failed with status {process.returncode}")
    return seconds, _mebibytes(usage)


def _mebibytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / 1024


def stored_bytes(report: Report) -> tuple[float, int]:
    """Bytes of the weights of binary layers at two bits each, and of float layers' weights."""
    binary = sum(prod(layer["weight_shape"]) / 4 for layer in report["layers"] if layer["status"] == "binary")
    floats = sum(prod(layer["weight_shape"]) * 4 for layer in report["layers"] if layer["status"] != "binary")
    return binary, floats


def measure(model: Path) -> dict[str, Any]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (cold, first_peak), (warm, second_peak) = (compile_once(model, folder) for _ in range(2))
        size = (folder / "model.so").stat().st_size
        binary, floats = stored_bytes(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    return {
        "name": model.stem,
        "cold_seconds": round(cold, 1),
        "warm_seconds": round(warm, 1),
        "peak_mib": round(max(first_peak, second_peak)),
        "library_bytes": size,
        "allowed_bytes": round(1.1 * (binary + floats) + ALLOWANCE),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(model) for model in options.models]
    table = Table("network", "cold s", "warm s", "peak MiB", "library KB", "1.1 × weights + 300 KB", box=None)
    for row in rows:
        sizes = (f"{row[key] / 1e3:.0f}" for key in ("library_bytes", "allowed_bytes"))
        table.add_row(row["name"], str(row["cold_seconds"]), str(row["warm_seconds"]), str(row["peak_mib"]), *sizes)
    Console(width=120).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
