"""Time per image at several batch sizes and numbers of threads, through ``run()`` on NumPy arrays, in one run in turn.

    python benchmarks/batch_throughput.py MODEL.onnx [MODEL.onnx ...] [--batches 1,2,4,8] [--threads 1,2] [--rounds N]
        [--layers] [--folder FOLDER] [--json out.json]

Each model is compiled once per batch size: the first dimension of its inputs and outputs is set, and the shapes of
tensors in between that the file states are dropped. Prints, per network and number of threads, microseconds per image
(minima over the rounds) and how much more images a second the largest batch gives than the smallest. ``--layers`` adds
the kernels' times by layer, on one thread, beside what the machine's peaks (``profiling.machine_peaks``) allow for the
layer's multiply-accumulates. With ``--folder`` the libraries are kept there, and those that are there are not compiled
again: compile first, then measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

import bnn_compiler
from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.profiling.machine_peaks import measure_peaks
from bnn_compiler.profiling.profile import profile_network
from bnn_compiler.verification.reference import sample_feeds


def with_batch(path: Path, batch: int) -> onnx.ModelProto:
    """The model for ``batch`` images at a time."""
    model = onnx.load(path)
    initialisers = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in initialisers:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return model


def compile_batches(path: Path, batches: Sequence[int], folder: Path) -> dict[int, Path]:
    """One library per batch size, verified; those in ``folder`` are taken as they are."""
    libraries = {batch: folder / f"{path.stem}_{batch}.so" for batch in batches}
    for batch, library in libraries.items():
        if not library.exists():
            bnn_compiler.compile_model(with_batch(path, batch)).export(library)
    return libraries


def measure(libraries: dict[int, Path], threads: Sequence[int], rounds: int) -> dict[int, dict[int, float]]:
    """Microseconds per image by threads and batch."""
    found = {}
    # A thread's pool of workers cannot grow: the largest number comes first.
    for count in sorted(threads, reverse=True):
        models = {batch: bnn_compiler.load(path, threads=count) for batch, path in libraries.items()}
        feeds = {batch: sample_feeds(model.inputs, 0, 0) for batch, model in models.items()}
        calls = [lambda m=model, f=feeds[batch]: m.run(f) for batch, model in models.items()]
        times = time_in_turn(calls, rounds)
        found[count] = {batch: min(samples) * 1e6 / batch for batch, samples in zip(models, times, strict=True)}
    return found


def layer_times(library: Path, batch: int) -> dict[str, tuple[str, float, float]]:
    """Kind, microseconds and 10⁶ multiply-accumulates per image by layer, one thread, in the order of the run."""
    model = bnn_compiler.load(library)
    profile = profile_network(model, model.manifest["report"]["layers"], rounds=40)
    return {
        f"{layer['name']} {index if not layer['op'] else ''}".strip(): (
            layer["kind"],
            layer["us"] / batch,
            layer["macs"] / batch / 1e6,
        )
        for index, layer in enumerate(profile["layers"])
    }


def print_layers(console: Console, libraries: dict[int, Path]) -> dict[str, Any]:
    """Print the layers' times at the smallest and the largest batch, and what the peaks allow."""
    peaks = measure_peaks()
    rates = {"binary": peaks["popcount_gmacs_per_second"], "float": peaks["float_gmacs_per_second"]}
    smallest, largest = min(libraries), max(libraries)
    few, many = (layer_times(libraries[batch], batch) for batch in (smallest, largest))
    table = Table("layer", "kind", f"batch {smallest}", f"batch {largest}", "peak", box=None)
    for name in dict.fromkeys((*few, *many)):
        kind, _, macs = few.get(name) or many[name]
        times = [f"{layers[name][1]:.2f}" if name in layers else "" for layers in (few, many)]
        table.add_row(name, kind, *times, f"{macs / rates[kind] * 1e3:.2f}" if macs else "")
    console.print(table)
    return {"peaks": rates, str(smallest): few, str(largest): many}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--batches", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument("--threads", type=_numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--folder", type=Path, help="where libraries are kept")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(max(arguments.threads))

    console = Console(width=120)
    console.print(f"{cpu_name()}; microseconds per image (minima)")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        for path in arguments.models:
            libraries = compile_batches(path, arguments.batches, arguments.folder or Path(temporary))
            found = measure(libraries, arguments.threads, arguments.rounds)
            table = Table(path.stem, *(f"batch {batch}" for batch in libraries), "throughput", box=None)
            for threads in arguments.threads:
                times = found[threads]
                gain = times[min(times)] / times[max(times)]
                count = f"{threads} thread{'s' if threads > 1 else ''}"
                table.add_row(count, *(f"{time:.1f}" for time in times.values()), f"{gain:.2f}x")
            console.print(table)
            row: dict[str, Any] = {"name": path.stem, "us_per_image": found}
            if arguments.layers:
                row["layers"] = print_layers(console, libraries)
            results.append(row)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
