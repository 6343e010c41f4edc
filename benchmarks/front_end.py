"""Time and memory of the front end alone: ``python benchmarks/front_end.py MODEL.onnx … [--shape INPUT=1,3,224,224]``.

``--generated`` measures made graphs instead (``tests/hostile/scaled.py``), of 10^3, 10^4 and 10^5 nodes, with limits
raised, and ``--inspect`` what follows the front end, too, up to the report. What is linear takes ten times as long for
ten times as many nodes.

Each model is imported in a process of its own. Printed per model: wall time of the import (without that of starting
Python and loading TVM and ONNX Runtime) and the peak of the process' resident memory (with it; the first line says what
that alone takes). Nothing is compared, so nothing needs a quiet machine but the times themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hostile.scaled import SCALED

GENERATED = ("chain", "fan", "diamonds", "sign diamonds")
SIZES = (1_000, 10_000, 100_000)

_CHILD = """
import json, resource, sys, time
from bnn_compiler.driver import inspect_model
from bnn_compiler.frontend import import_onnx
from bnn_compiler.limits import Limits
import onnxruntime
work = inspect_model if "inspect" in sys.argv[3:] else import_onnx
limits = Limits(**dict.fromkeys(("nodes", "layers", "work"), 10**15)) if "raised" in sys.argv[3:] else Limits()
start = time.perf_counter()
if len(sys.argv) > 1:
    work(sys.argv[1], input_shapes=json.loads(sys.argv[2]), limits=limits)
seconds = time.perf_counter() - start
print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def measure(*arguments: str) -> tuple[float, float]:
    """Seconds and MiB of one import."""
    command = [sys.executable, "-c", _CHILD, *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, kibibytes = json.loads(result.stdout.splitlines()[-1])
    return float(seconds), float(kibibytes) / 1024


def measure_generated(work: str) -> None:
    """Print a table of generated graphs: time and memory by size."""
    print(f"{'':20} {'nodes':>7} {'seconds':>8} {'µs a node':>10} {'MiB peak':>9}")
    print(f"{'(libraries alone)':20} {'':7} {'':8} {'':10} {measure()[1]:9.0f}")
    for name in GENERATED:
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(SCALED[name](size).SerializeToString())
                seconds, peak = measure(str(path), "{}", "raised", work)
            print(f"{name:20} {size:7} {seconds:8.2f} {seconds / size * 1e6:10.0f} {peak:9.0f}", flush=True)


def main() -> None:
    """Print one line per model, and the worst of each column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--generated", action="store_true", help="chains, fans and diamonds")
    parser.add_argument("--inspect", action="store_true", help="of them, the report, too")
    parser.add_argument("--shape", action="append", default=[], metavar="INPUT=1,3,224,224", help="an open input shape")
    options = parser.parse_args()
    if options.generated:
        measure_generated("inspect" if options.inspect else "import")
        return
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
