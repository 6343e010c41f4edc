"""Time and memory of the front end alone: ``python benchmarks/front_end.py MODEL.onnx … [--shape INPUT=1,3,224,224]``.

Each model is imported in a process of its own. Printed per model: wall time of the import (without that of starting
Python and loading TVM and ONNX Runtime) and the peak of the process' resident memory (with it; the first line says what
that alone takes). Nothing is compared, so nothing needs a quiet machine but the times themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

_CHILD = """
import json, resource, sys, time
from bnn_compiler.frontend import import_onnx
import onnxruntime
start = time.perf_counter()
if len(sys.argv) > 1:
    import_onnx(sys.argv[1], input_shapes=json.loads(sys.argv[2]))
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def measure(*arguments: str) -> tuple[float, float]:
    """Seconds and MiB of one import."""
    command = [sys.executable, "-c", _CHILD, *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, kibibytes = json.loads(result.stdout.splitlines()[-1])
    return float(seconds), float(kibibytes) / 1024


def main() -> None:
    """Print one line per model, and the worst of each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--shape", action="append", default=[], metavar="INPUT=1,3,224,224", help="an open input shape")
    options = parser.parse_args()
    shapes = {
        name: [int(size) for size in sizes.split(",")] for name, _, sizes in (s.partition("=") for s in options.shape)
    }
    print(f"{'':32} {'MB':>7} {'seconds':>8} {'MiB peak':>9}")
    print(f"{'(libraries alone)':32} {'':7} {'':8} {measure()[1]:9.0f}")
    worst = [0.0, 0.0]
    for model in options.models:
        seconds, peak = measure(str(model), json.dumps(shapes))
        worst = [max(worst[0], seconds), max(worst[1], peak)]
        print(f"{model.stem:32} {model.stat().st_size / 1e6:7.1f} {seconds:8.2f} {peak:9.0f}")
    print(f"{'worst':32} {'':7} {worst[0]:8.2f} {worst[1]:9.0f}")


if __name__ == "__main__":
    main()
