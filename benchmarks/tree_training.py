"""Accuracy, cost of channel trees and latency against λ, on cluttered digits.

    python benchmarks/tree_training.py run --folder runs --csv docs/training.csv [--seeds 0 1 2] [--methods none pull …]
    python benchmarks/tree_training.py latency --folder runs --csv docs/training-latency.csv
    python benchmarks/tree_training.py plot docs/training.csv docs/training-latency.csv docs/training.svg

``run`` trains every method (``METHODS``) with every seed and appends a row to the CSV when a run ends; rows that are
there are not run again, and a run that was interrupted continues from its checkpoint in FOLDER. ``latency`` compiles
the trained networks of seed 0 and times their binary layers alone, all in turn in one run, with bit-sliced kernels and
with the kernels that the compiler would choose. One thread throughout.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cluttered_digits import Split, make_splits
from cluttered_network import ClutteredNet, Epochs, accuracy
from rich.progress import Progress

import bnn_compiler
from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.train import (
    ChannelTreeLoss,
    PullOptions,
    Trainer,
    TrainingOptions,
    Variant,
    binary_layers,
    cost_ratios,
    export,
    total_ratio,
)
from bnn_compiler.train.sign_matrices import sign_matrices
from bnn_compiler.train.tree_pull import TreeShape, solve_fast

TRAIN_IMAGES, TEST_IMAGES = 12_000, 4_000
IMAGES_PER_EPOCH = 4_000
LEARNING_RATE = 2e-3
ROUNDS = 30


@dataclass(frozen=True)
class Method:
    """One way to train; parts are fractions of the run's epochs.

    ``weight`` is λ. Trees are held from the part ``hold`` on (0: from the first epoch), shortened to ``ratio`` before
    if given, epoch by epoch until the part ``until`` if given. ``start`` names the method whose result training starts
    from, for ``part`` of its epochs more, at a learning rate times ``rate``.
    """

    weight: float = 0.0
    variant: Variant = "synthetic"
    depth_weight: float = 0.0
    hold: float | None = None
    ratio: float | None = None
    until: float | None = None
    pull_held: bool = False
    start: str | None = None
    part: float = 1.0
    rate: float = 1.0

    def options(self, epochs: int) -> TrainingOptions:
        """The trainer's options for a run of so many epochs."""
        epochs = int(self.part * epochs)
        hold = None if self.hold is None else 1 + int(self.hold * (epochs - 1))
        until = None if self.until is None or hold is None else max(hold, int(self.until * epochs))
        return TrainingOptions(epochs, self.rate * LEARNING_RATE, hold, self.ratio, until, self.pull_held)


METHODS = {
    "none": Method(),
    # λ alone, and the trees held in the last quarter, so that weights settle.
    "pull-0.0005": Method(0.0005, hold=0.75),
    "pull-0.001": Method(0.001, hold=0.75),
    "pull-0.002": Method(0.002, hold=0.75),
    "pull-0.004": Method(0.004, hold=0.75),
    "edges-0.001": Method(0.001, "edges", hold=0.75),
    "centres-0.001": Method(0.001, "centres", hold=0.75),
    "deep-0.001": Method(0.001, depth_weight=1.0, hold=0.75),
    # Trees held from early on and shortened as training goes.
    "gradual-0.12": Method(hold=0.2, ratio=0.12, until=0.75),
    "gradual-0.07": Method(hold=0.2, ratio=0.07, until=0.75),
    "late-0.12": Method(hold=0.5, ratio=0.12, until=0.75),
    "late-0.07": Method(hold=0.5, ratio=0.07, until=0.75),
    # Trees held from the first epoch: as random weights have them, pulled; and shortened, blindly.
    "pull-held-0.002": Method(0.002, hold=0.0, pull_held=True),
    "held-0.2": Method(hold=0.0, ratio=0.2),
    "held-0.118": Method(hold=0.0, ratio=0.118),
    # Both.
    "pull-gradual-0.12": Method(0.001, hold=0.2, ratio=0.12, until=0.75, pull_held=True),
    "pull-gradual-0.07": Method(0.001, hold=0.2, ratio=0.07, until=0.75, pull_held=True),
    # A trained network, shortened, with a fifth of the training more.
    "shorten-0.18": Method(hold=0.0, ratio=0.18, start="none", part=0.2, rate=0.25),
}

#: The methods that differ in λ alone.
LAMBDA_SWEEP = ("none", "pull-0.0005", "pull-0.001", "pull-0.002", "pull-0.004")

COLUMNS = ["method", "lambda", "seed", "width", "epochs", "accuracy", "ratio", "depth"]
LAYER_COLUMNS = ["ratio_conv1", "ratio_conv2", "ratio_conv3"]


def train(name: str, seed: int, data: tuple[Split, Split], width: int, all_epochs: int, folder: Path) -> dict[str, Any]:
    """Train one network, continuing from its checkpoint if there is one, and measure it."""
    method = METHODS[name]
    torch.manual_seed(seed)
    model = ClutteredNet(width)
    if method.start is not None:
        begun = folder / f"{method.start}-{seed}.pt"
        if not begun.exists():
            raise SystemExit(f"{name} continues {method.start}, and {begun} is not there: run that first")
        model.load_state_dict(torch.load(begun, weights_only=True)["model"])
    epochs = Epochs(data[0], seed + 1000 * (method.start is not None), IMAGES_PER_EPOCH)
    options = method.options(all_epochs)
    pull = PullOptions(
        variant=method.variant,
        warm_up=epochs.steps * max(1, all_epochs // 8),
        solve_every=-(-epochs.steps // 2),
        depth_weight=method.depth_weight,
    )
    checkpoint = folder / f"{name}-{seed}.pt"
    tree_loss = ChannelTreeLoss(model, method.weight, pull) if method.weight else None
    trainer = Trainer(model, epochs, options, tree_loss=tree_loss, checkpoint=checkpoint)
    if checkpoint.exists():
        trainer.resume()
    with Progress() as bar:
        task = bar.add_task(f"{name}, seed {seed}", total=options.epochs * epochs.steps, completed=trainer.step)
        trainer.run(lambda _epoch, step, _loss: bar.update(task, completed=step))
    ratios = cost_ratios(model)
    signs = [group for layer in binary_layers(model).values() for group in sign_matrices(layer)]
    return {
        "method": name,
        "lambda": method.weight,
        "seed": seed,
        "width": width,
        "epochs": options.epochs,
        "accuracy": round(accuracy(model, data[1]), 3),
        "ratio": round(total_ratio(model), 5),
        "depth": max(solve_fast(group, TreeShape()).depth for group in signs),
        **{f"ratio_{layer}": round(ratio, 5) for layer, ratio in ratios.items()},
    }


def run(options: argparse.Namespace) -> None:
    """Train what is missing in the CSV."""
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.csv) if options.csv.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    data = make_splits(TRAIN_IMAGES, TEST_IMAGES)
    for seed in options.seeds:
        for name in options.methods or METHODS:
            if (name, str(seed)) in done:
                continue
            row = train(name, seed, data, options.width, options.epochs, options.folder)
            fresh = not options.csv.exists()
            with options.csv.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, COLUMNS + LAYER_COLUMNS, lineterminator="\n")
                if fresh:
                    writer.writeheader()
                writer.writerow(row)
            print(f"{name}, seed {seed}: {row['accuracy']:.2f} % right, cost ratio {row['ratio']:.4f}", flush=True)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV by column."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def trained_network(checkpoint: Path) -> ClutteredNet:
    """The network of a checkpoint."""
    state = torch.load(checkpoint, weights_only=True)["model"]
    model = ClutteredNet(len(state["stem.weight"]))
    model.load_state_dict(state)
    return model


def compiled_library(checkpoint: Path, algorithm: str) -> Path:
    """The library of a trained network, compiled now or by an earlier call."""
    library = checkpoint.with_suffix(f".{algorithm}.so")
    if library.exists() and library.stat().st_mtime > checkpoint.stat().st_mtime:
        return library
    model = trained_network(checkpoint)
    onnx_path = checkpoint.with_suffix(".onnx")
    export(model, onnx_path, torch.zeros(1, *ClutteredNet.input_shape), dynamic_batch=False)
    compiled = bnn_compiler.compile_model(onnx_path, algorithm=algorithm)
    names = [layer["name"].split("/")[0] for layer in compiled.report["layers"] if "function" in layer]
    assert names == list(binary_layers(model)), names
    compiled.export(library)
    return library


def latency(options: argparse.Namespace) -> None:
    """Time the binary layers of all networks of seed 0, in turn."""
    calls: list[Callable[[], object]] = []
    labels = []
    x = make_splits(1, 1)[1].images
    random = np.random.default_rng(0)
    for path in sorted(options.folder.glob("*-0.pt")):
        values = {
            name: random.standard_normal((1, layer.weight.shape[1], 14, 14)).astype(np.float32)
            for name, layer in binary_layers(trained_network(path)).items()
        }
        for algorithm in ("bitsliced", "auto"):
            network = bnn_compiler.load(compiled_library(path, algorithm))
            labels.append([path.stem[:-2], algorithm, "network"])
            calls.append(partial(network.run, {"input": x}))
            for index, (name, value) in enumerate(values.items()):
                labels.append([path.stem[:-2], algorithm, name])
                calls.append(partial(network.run_function, f"layer_{index}", [value]))
    if not calls:
        raise SystemExit(f"{options.folder}: no trained network of seed 0; run first")
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "kernels", "layer", "microseconds"])
        for label, times in zip(labels, time_in_turn(calls, ROUNDS, 0.002), strict=True):
            writer.writerow([*label, round(min(times) * 1e6, 2)])
    print(f"{cpu_name()}, one thread, minima of {ROUNDS} rounds: {options.csv}")


def plot(options: argparse.Namespace) -> None:
    """Draw accuracy, cost ratio and latency against λ: means over seeds, bars of a standard deviation."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    by_method: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(options.csv):
        by_method.setdefault(row["method"], []).append(row)
    pulled = sorted((name for name in by_method if name in LAMBDA_SWEEP), key=lambda name: METHODS[name].weight)
    weights = [METHODS[name].weight for name in pulled]
    times: dict[str, float] = {}
    for row in read_rows(options.latency):
        if row["kernels"] == "bitsliced" and row["layer"] != "network":
            times[row["method"]] = times.get(row["method"], 0.0) + float(row["microseconds"])
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, column, title in zip(axes, ("accuracy", "ratio"), ("test accuracy, %", "cost ratio"), strict=False):
        values = [[float(row[column]) for row in by_method[name]] for name in pulled]
        axis.errorbar(weights, [np.mean(v) for v in values], [np.std(v) for v in values], marker="o", capsize=3)
        axis.set_title(title)
    timed = [(METHODS[name].weight, times[name]) for name in pulled if name in times]
    axes[2].plot(*zip(*timed, strict=True), marker="o")
    axes[2].set_title("binary layers, bit-sliced, µs (seed 0)")
    smallest = min((weight for weight in weights if weight), default=1.0)
    for axis in axes:
        axis.set_xscale("symlog", linthresh=smallest)
        axis.set_xlabel("λ")
        axis.set_ylim(bottom=0 if axis is not axes[0] else None)
        axis.grid(alpha=0.3)
    figure.savefig(options.out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--csv", type=Path, required=True)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--methods", nargs="+", choices=list(METHODS))
    command.add_argument("--epochs", type=int, default=16, help="of all methods but those that continue another")
    command.add_argument("--width", type=int, default=64, help="channels of the first binary layer")
    command.set_defaults(call=run)
    command = commands.add_parser("latency")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--csv", type=Path, required=True)
    command.set_defaults(call=latency)
    command = commands.add_parser("plot")
    command.add_argument("csv", type=Path)
    command.add_argument("latency", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(call=plot)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    options.call(options)


if __name__ == "__main__":
    main()
