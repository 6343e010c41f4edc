"""What ``CompiledModel.run`` costs beyond the kernel it calls.

A network of one trivial kernel (float32[1, 1024], 4 KB, in; ten floats out) is run through ``run`` and, in the same
process and alternating with it, its kernel is called directly on the same arrays. The difference is the overhead:
checks, DLPack, virtual machine, output allocation. Exits 1 if the median is above ``--limit``. ``--derived`` gives the
network so many constants that are derived at load, which the virtual machine adds to every call (a network has one per
bit-sliced layer).

    python -m benchmarks.run_overhead [--repeat 600] [--limit 5.0] [--derived 0] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tvm import IRModule, relax, te, transform

from bnn_compiler.build import build_library
from bnn_compiler.passes.lift_derived_constants import DERIVES_ATTR, LiftDerivedConstants
from bnn_compiler.runtime import load
from bnn_compiler.target import parse_target

_CALLS = 100  # per sample: long against the clock, and short against a time slice, so few samples are interrupted


def trivial_network(derived: int = 0) -> IRModule:
    """float32[1, 1024] -> its first ten values; besides, ``derived`` constants that are made at load and not used."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 1024), "float32"))
    source = te.placeholder((16,), "float32", name="source")
    copy = te.create_prim_func([source, te.compute((16,), lambda i: source[i], name="copy")])
    with builder.function("main", [x]):
        with builder.dataflow():
            kernel = builder.add_func(copy.with_attr(DERIVES_ATTR, True).without_attr("global_symbol"), "copy")
            for i in range(derived):
                stored = relax.const(np.full(16, i, np.float32))
                builder.emit(relax.call_tir(kernel, [stored], relax.TensorType((16,), "float32")))
            result = builder.emit_output(relax.op.strided_slice(x, [1], [0], [10]))
        builder.emit_func_output(result)
    lifted: IRModule = transform.Sequential([LiftDerivedConstants()])(builder.get())
    return lifted


def microseconds(call: Callable[[], object]) -> float:
    """Mean time of one call, over ``_CALLS`` calls."""
    start = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return (time.perf_counter() - start) / _CALLS * 1e6


def measure(repeat: int, derived: int) -> dict[str, list[float]]:
    """Return ``repeat`` samples in microseconds per variant, taken in turn."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "trivial.so"
        build_library(trivial_network(derived), parse_target("native"), {}, library)
        model = load(library)
    x = np.random.default_rng(0).standard_normal((1, 1024)).astype(np.float32)
    result = np.empty((1, 10), np.float32)
    feeds, out = {"x": x}, {"output_0": result}
    kernel = model._executable.imports[0]["strided_slice"]
    variants: dict[str, Callable[[], object]] = {
        "kernel": lambda: kernel(x, result),
        "run(feeds)": lambda: model.run(feeds),
        "run(array)": lambda: model.run(x),
        "run(feeds, out)": lambda: model.run(feeds, out),
    }
    for call in variants.values():
        microseconds(call)
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeat):
        for name, call in variants.items():
            samples[name].append(microseconds(call))
    return samples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=600)
    parser.add_argument("--limit", type=float, default=5.0, help="microseconds")
    parser.add_argument("--derived", type=int, default=0, help="constants derived at load")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    samples = measure(arguments.repeat, arguments.derived)
    kernel = samples.pop("kernel")
    summary = {"kernel": {"min": min(kernel), "median": statistics.median(kernel)}}
    print(f"{'':16} {'min':>8} {'median':>8}   microseconds beyond the kernel ({min(kernel):.2f})")
    for name, times in samples.items():
        # Of minima and of medians: the least difference of single samples would be the one in which the kernel was
        # interrupted.
        summary[name] = {
            "min": min(times) - summary["kernel"]["min"],
            "median": statistics.median(times) - summary["kernel"]["median"],
        }
        print(f"{name:16} {summary[name]['min']:8.2f} {summary[name]['median']:8.2f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    worst = max(entry["median"] for name, entry in summary.items() if name != "kernel")
    if worst > arguments.limit:
        print(f"above the limit of {arguments.limit} microseconds", file=sys.stderr)
    return int(worst > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
