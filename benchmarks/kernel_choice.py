"""What the choice of kernels is worth: every binary convolution of networks with each algorithm, in one run.

    python benchmarks/kernel_choice.py MODEL.onnx [MODEL.onnx ...] [--measure] [--target TARGET] [--markdown out.md]

Compiles each network with ``popcount``, ``bitsliced`` and ``auto`` (and with ``--measure``), and times each layer's
function through ``run_function`` on NumPy arrays, float in and float out, one thread, all compilations in turn. Times
are microseconds, minimum (median). Layers of a network with the same shape share a row: times are means over them,
``auto ÷ best`` is the largest of them, best being the faster of the first two. A layer whose ratio exceeds the limit is
timed again, up to ``RETRIES`` times, and all rounds count. Layers without a choice (dense ones) are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import bnn_compiler
from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.report import LayerReport

ROUNDS = 20
ROUND_SECONDS = 0.0015
RETRIES = 3
LIMIT = 1.05
SINGLE = ("popcount", "bitsliced")


@dataclass(frozen=True)
class Row:
    """One layer; seconds per call of each compilation, one value per round."""

    shape: str
    chosen: str
    tree: str
    seconds: dict[str, list[float]]

    def best(self, name: str) -> float:
        """The minimum, in microseconds."""
        return min(self.seconds[name]) * 1e6

    def median(self, name: str) -> float:
        """The median, in microseconds."""
        return statistics.median(self.seconds[name]) * 1e6

    def ratio(self, name: str = "auto") -> float:
        """Time ÷ that of the best single algorithm, of the minima."""
        return self.best(name) / min(map(self.best, SINGLE))


def compile_all(model: Path, target: str, *, measure: bool) -> dict[str, CompiledNetwork]:
    """The network with each algorithm."""
    compiled = {
        algorithm: bnn_compiler.compile_model(model, target=target, algorithm=algorithm, verify=False)
        for algorithm in (*SINGLE, "auto")
    }
    if measure:
        compiled["measured"] = bnn_compiler.compile_model(model, target=target, measure=True, verify=False)
    return compiled


def measure_layers(compiled: dict[str, CompiledNetwork]) -> list[Row]:
    """Time every layer that has a choice."""
    rows = []
    for layer in compiled["auto"].report["layers"]:
        if "function" not in layer or "candidates" not in layer["choice"]:
            continue
        name = layer["function"]
        (entry,) = compiled["auto"].model.manifest["functions"][name]["inputs"]
        shape = tuple(entry["shape"])
        value = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        calls: list[Callable[[], object]] = [
            partial(network.run_function, name, value) for network in compiled.values()
        ]
        row = Row(_shape(layer, shape), layer["choice"]["chosen"], _tree(layer), {key: [] for key in compiled})
        for _ in range(1 + RETRIES):
            for key, seconds in zip(compiled, time_in_turn(calls, ROUNDS, ROUND_SECONDS), strict=True):
                row.seconds[key].extend(seconds)
            if all(row.ratio(key) <= LIMIT for key in compiled if key not in SINGLE):
                break
        rows.append(row)
    return rows


def _shape(layer: LayerReport, shape: Sequence[int]) -> str:
    out_channels, _, *kernel = layer["weight_shape"]
    return f"{shape[1]}→{out_channels} {'x'.join(map(str, kernel))} of {shape[2]}x{shape[3]}"


def _tree(layer: LayerReport) -> str:
    tree = layer["choice"].get("tree")
    return f"{tree['cost_ratio']:.2f}" if tree else ""


def markdown(name: str, rows: Sequence[Row]) -> list[str]:
    """The lines of a network's table."""
    groups: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.shape, row.chosen].append(row)
    lines = []
    for (shape, chosen), group in groups.items():
        keys = list(group[0].seconds)
        bests = [statistics.mean(row.best(key) for row in group) for key in keys]
        medians = [statistics.mean(row.median(key) for row in group) for key in keys]
        times = [f"{best:.1f} ({median:.1f})" for best, median in zip(bests, medians, strict=True)]
        ratios = [f"{max(row.ratio(key) for row in group):.2f}" for key in keys if key not in SINGLE]
        lines.append(f"| {name} | {shape} | {len(group)} | {' | '.join(times)} | {chosen} | {' | '.join(ratios)} |")
    return lines


def header(keys: Sequence[str]) -> list[str]:
    """The head of the table."""
    ratios = [f"{key} ÷ best" for key in keys if key not in SINGLE]
    cells = ["network", "layer", "layers", *(f"{key} µs" for key in keys), "auto takes", *ratios]
    return [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--measure", action="store_true", help="also compile with measured times")
    parser.add_argument("--target", default="native")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args()
    keys = [*SINGLE, "auto", *(["measured"] if options.measure else [])]
    lines = header(keys)
    print("\n".join(lines), flush=True)
    everything: list[Row] = []
    start = time.perf_counter()
    for model in options.models:
        rows = measure_layers(compile_all(model, options.target, measure=options.measure))
        table = markdown(model.stem, rows)
        print("\n".join(table), flush=True)
        lines += table
        everything += rows
    for key in keys[len(SINGLE) :]:
        ratios: Any = [row.ratio(key) for row in everything]
        print(
            f"{cpu_name()}, target {options.target}: {key} on {len(ratios)} layers: at most {max(ratios):.3f}"
            f" of the best single algorithm's time, {sum(ratio > LIMIT for ratio in ratios)} layers above {LIMIT};"
            f" {time.perf_counter() - start:.0f} s"
        )
    if options.markdown is not None:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
