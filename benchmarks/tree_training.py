"""Accuracy, cost of channel trees and latency against λ, on cluttered digits.

    python benchmarks/tree_training.py run --folder runs --csv docs/training.csv [--seeds 0 1 2] [--methods none …]
    python benchmarks/tree_training.py latency --folder runs --csv docs/training-latency.csv
    python benchmarks/tree_training.py cost --folder runs
    python benchmarks/tree_training.py summary docs/training.csv
    python benchmarks/tree_training.py plot docs/training.csv docs/training-latency.csv docs/training.svg

``run`` trains every method (``METHODS``) with every seed and appends a row to the CSV when a run ends; rows that are
there are not run again, and a run that was interrupted continues from its checkpoint in FOLDER. With ``--validation``
accuracy is that on validation images, for choosing among set-ups (docs/training.md says what was chosen how).
``latency`` compiles the trained networks of seed 0 and times their binary layers alone, all in turn in one run, with
bit-sliced kernels and with the kernels that the compiler would choose. ``cost`` prints what every method that continues
``none`` takes of its CPU time, solving trees and the teacher included. ``summary`` prints means and deviations over the
seeds. One thread throughout.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cluttered_digits import Split, make_splits
from cluttered_network import ClutteredNet, Epochs, accuracy
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.nn.functional import cross_entropy

import bnn_compiler
from bnn_compiler.bench import cpu_name
from bnn_compiler.profiling.profile import profile_network
from bnn_compiler.report import from_json
from bnn_compiler.train import (
    FINE_TUNING,
    ChannelTreeLoss,
    Distillation,
    PullOptions,
    Trainer,
    TrainingOptions,
    TreeShape,
    TreeSigns,
    TreeSignsOptions,
    binary_layers,
    cost_ratios,
    export,
    shorten,
    total_ratio,
)
from bnn_compiler.train.forest import solve_fast
from bnn_compiler.train.sign_matrices import sign_matrices
from bnn_compiler.train.trainer import Batches, Loss

#: So many test images that the sampling of a loss against ``none``, which a few per cent of them decide, adds no more
#: than about .15 points of deviation.
TRAIN_IMAGES, TEST_IMAGES = 12_000, 20_000
IMAGES_PER_EPOCH = 4_000
LEARNING_RATE = 16e-3
ROUNDS = 24


@dataclass(frozen=True)
class Method:
    """One way to train.

    ``weight`` (λ) or ``ratio`` are those of ``TreeSigns``, with ``options``; ``penalty`` is λ of ``ChannelTreeLoss``.
    ``start`` names the method whose result training starts from, for ``part`` of its epochs more, at a learning rate
    times ``rate``, towards its own scores if ``distil``; ``cut`` shortens that network at once, and ``calibrate``
    measures batch-norms anew behind it.
    """

    weight: float | None = None
    ratio: float | None = None
    options: TreeSignsOptions = field(default_factory=TreeSignsOptions)
    penalty: float | None = None
    cut: float | None = None
    calibrate: bool = False
    distil: bool = False
    start: str | None = None
    part: float = 1.0
    rate: float = 1.0


METHODS = {
    "none": Method(),
    "signs-0.25": Method(weight=0.25),
    "signs-0.5": Method(weight=0.5),
    "signs-1": Method(weight=1.0),
    "signs-2": Method(weight=2.0),
    "signs-4": Method(weight=4.0),
    "signs-8": Method(weight=8.0),
    "ratio-0.12": Method(ratio=0.12),
    "ratio-0.07": Method(ratio=0.07),
    "shorten-0.18": Method(ratio=0.18, options=FINE_TUNING, start="none", part=0.15, rate=0.125, distil=True),
    # The teacher and solving trees included, this takes less than a fifth of the CPU time of training ``none``.
    "quick-0.18": Method(ratio=0.18, options=FINE_TUNING, start="none", part=0.1, rate=0.125, distil=True),
    # No training at all: forward passes.
    "calibrate-0.18": Method(cut=0.18, calibrate=True, start="none"),
    # What lost, or could have.
    "edges-1": Method(weight=1.0, options=TreeSignsOptions("edges")),
    "centres-1": Method(weight=1.0, options=TreeSignsOptions("centres")),
    "deep-1": Method(weight=1.0, options=TreeSignsOptions(depth_weight=1.0)),
    "penalty-0.001": Method(penalty=0.001),
    "penalty-0.002": Method(penalty=0.002),
    "labels-0.18": Method(ratio=0.18, options=FINE_TUNING, start="none", part=0.2, rate=0.125),
    "cut-0.18": Method(cut=0.18, start="none"),
}

#: The methods that differ in λ alone, be it given or what reaches a ratio.
LAMBDA_SWEEP = [name for name, each in METHODS.items() if each == Method(weight=each.weight, ratio=each.ratio)]

COLUMNS = ["method", "lambda", "seed", "width", "epochs", "accuracy", "ratio", "depth"]
LAYER_COLUMNS = ["ratio_conv1", "ratio_conv2", "ratio_conv3"]


def train(
    name: str, seed: int, images: Split, width: int, all_epochs: int, folder: Path
) -> tuple[ClutteredNet, int, float]:
    """Train one network, continuing from its checkpoint if there is one; also its epochs and (last) λ."""
    method = METHODS[name]
    torch.manual_seed(seed)
    model = ClutteredNet(width)
    if method.start is not None:
        begun = folder / f"{method.start}-{seed}.pt"
        if not begun.exists():
            raise SystemExit(f"{name} continues {method.start}, and {begun} is not there: run that first")
        model.load_state_dict(torch.load(begun, weights_only=True)["model"])
    epochs = Epochs(images, seed + 1000 * (method.start is not None), IMAGES_PER_EPOCH)
    if method.cut is not None:
        calibration = (inputs for inputs, _ in epochs(0)) if method.calibrate else None
        shorten(model, method.cut, together=True, calibration=calibration)
        return model, 0, 0.0
    count = max(1, round(method.part * all_epochs))
    steps = count * epochs.steps
    options = TrainingOptions(count, method.rate * LEARNING_RATE, steps)
    strength = method.penalty or 0.0
    checkpoint = folder / f"{name}-{seed}.pt"
    tree_loss, tree_signs = None, None
    if method.penalty is not None:
        pull = PullOptions(warm_up=steps // 8, solve_every=TreeSignsOptions().solve_every)
        tree_loss = ChannelTreeLoss(model, method.penalty, pull)
    if method.weight is not None or method.ratio is not None:
        tree_signs = TreeSigns(model, steps, weight=method.weight, ratio=method.ratio, options=method.options)
    batches: Batches = epochs
    loss: Loss = cross_entropy
    if method.distil:
        distillation = Distillation(model)
        batches, loss = distillation.batches(epochs), distillation.loss
    trainer = Trainer(
        model, batches, options, tree_loss=tree_loss, tree_signs=tree_signs, loss=loss, checkpoint=checkpoint
    )
    if checkpoint.exists():
        trainer.resume()
    with Progress() as bar:
        task = bar.add_task(f"{name}, seed {seed}", total=options.epochs * epochs.steps, completed=trainer.step)
        trainer.run(lambda _epoch, step, _loss: bar.update(task, completed=step))
    if tree_signs is not None:
        strength = tree_signs.coupling
    return model, options.epochs, strength


def measure(name: str, seed: int, model: ClutteredNet, split: Split, epochs: int, strength: float) -> dict[str, Any]:
    """The CSV's row; ``strength`` is λ."""
    ratios = cost_ratios(model)
    signs = [group for layer in binary_layers(model).values() for group in sign_matrices(layer)]
    return {
        "method": name,
        "lambda": round(strength, 4),
        "seed": seed,
        "width": model.stem.out_channels,
        "epochs": epochs,
        "accuracy": round(accuracy(model, split), 3),
        "ratio": round(total_ratio(model), 5),
        "depth": max(solve_fast(group, TreeShape()).depth for group in signs),
        **{f"ratio_{layer}": round(ratio, 5) for layer, ratio in ratios.items()},
    }


def run(options: argparse.Namespace) -> None:
    """Train what is missing in the CSV."""
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(options.csv) if options.csv.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    data = make_splits(TRAIN_IMAGES, TEST_IMAGES, validation=options.validation)
    for seed in options.seeds:
        for name in options.methods or METHODS:
            if (name, str(seed)) in done:
                continue
            model, epochs, strength = train(name, seed, data[0], options.width, options.epochs, options.folder)
            row = measure(name, seed, model, data[1], epochs, strength)
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
    """Time the binary layers of all networks of seed 0 as they run in the network, all networks in turn."""
    networks = {
        (path.stem[:-2], algorithm): bnn_compiler.load(compiled_library(path, algorithm))
        for path in sorted(options.folder.glob("*-0.pt"))
        for algorithm in ("bitsliced", "auto")
    }
    if not networks:
        raise SystemExit(f"{options.folder}: no trained network of seed 0; run first")
    least: dict[tuple[str, str, str], float] = {}
    for _ in range(ROUNDS):
        for (method, algorithm), network in networks.items():
            profile = profile_network(network, from_json(network.manifest["report"])["layers"], rounds=1)
            times = {layer["name"]: layer["us"] for layer in profile["layers"] if layer["kind"] == "binary"}
            for name, microseconds in {**times, "network": profile["run_us"]}.items():
                key = (method, algorithm, name)
                least[key] = min(microseconds, least.get(key, microseconds))
    with options.csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "kernels", "layer", "microseconds"])
        writer.writerows([*key, round(microseconds, 2)] for key, microseconds in least.items())
    print(f"{cpu_name()}, one thread, minima of {ROUNDS} rounds: {options.csv}")


def cost(options: argparse.Namespace) -> None:
    """Print the CPU time of continuing ``none`` over that of training it, of which two epochs are timed."""
    data = make_splits(TRAIN_IMAGES, TEST_IMAGES)
    torch.manual_seed(0)
    epochs = Epochs(data[0], 0, IMAGES_PER_EPOCH)
    model = ClutteredNet(options.width)
    trainer = Trainer(model, epochs, TrainingOptions(2, LEARNING_RATE))
    total_ratio(model)  # loads the solver, which takes seconds
    began = time.process_time()
    trainer.run()
    whole = (time.process_time() - began) / 2 * options.epochs
    for name in options.methods or METHODS:
        method = METHODS[name]
        if method.start is None:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            start = f"{method.start}-0.pt"
            shutil.copy(options.folder / start, scratch)
            began = time.process_time()
            train(name, 0, data[0], options.width, options.epochs, Path(scratch))
            print(
                f"{name}: {100 * (time.process_time() - began) / whole:.1f} % of the training of {method.start}",
                flush=True,
            )


def summary(options: argparse.Namespace) -> None:
    """Print each method's mean and sample deviation, and what it loses against ``none`` of the same seeds."""
    rows = {(row["method"], row["seed"]): row for row in read_rows(options.csv)}
    table = Table("method", "seeds", "accuracy, %", "loss, points", "cost ratio", "deepest")
    for name in dict.fromkeys(method for method, _ in rows):
        of_method = [row for (method, _), row in rows.items() if method == name]
        losses = [
            float(rows["none", row["seed"]]["accuracy"]) - float(row["accuracy"])
            for row in of_method
            if ("none", row["seed"]) in rows
        ]
        table.add_row(
            name,
            str(len(of_method)),
            _spread([float(row["accuracy"]) for row in of_method], 2),
            _spread(losses, 2),
            _spread([float(row["ratio"]) for row in of_method], 4),
            max(row["depth"] for row in of_method),
        )
    Console().print(table)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{deviation}"


def plot(options: argparse.Namespace) -> None:
    """Draw accuracy, cost ratio and latency against λ: means over seeds, bars of a standard deviation."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    by_method: dict[str, list[dict[str, str]]] = {}
    for row in read_rows(options.csv):
        by_method.setdefault(row["method"], []).append(row)
    strengths = {name: float(np.mean([float(row["lambda"]) for row in rows])) for name, rows in by_method.items()}
    swept = sorted((name for name in by_method if name in LAMBDA_SWEEP), key=lambda name: strengths[name])
    weights = [strengths[name] for name in swept]
    times: dict[str, float] = {}
    for row in read_rows(options.latency):
        if row["kernels"] == "bitsliced" and row["layer"] != "network":
            times[row["method"]] = times.get(row["method"], 0.0) + float(row["microseconds"])
    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, column, title in zip(axes, ("accuracy", "ratio"), ("test accuracy, %", "cost ratio"), strict=False):
        values = [[float(row[column]) for row in by_method[name]] for name in swept]
        axis.errorbar(weights, [np.mean(v) for v in values], [np.std(v) for v in values], marker="o", capsize=3)
        axis.set_title(title)
    timed = [(strengths[name], times[name]) for name in swept if name in times]
    axes[2].plot(*zip(*timed, strict=True), marker="o")
    axes[2].set_title("binary layers, bit-sliced, µs (seed 0)")
    for axis in axes:
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
    command.add_argument("--epochs", type=int, default=20, help="of all methods but those that continue another")
    command.add_argument("--width", type=int, default=64, help="channels of the first binary layer")
    command.add_argument("--validation", action="store_true", help="leave the test images alone")
    command.set_defaults(call=run)
    command = commands.add_parser("latency")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--csv", type=Path, required=True)
    command.set_defaults(call=latency)
    command = commands.add_parser("cost")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--methods", nargs="+", choices=list(METHODS))
    command.add_argument("--epochs", type=int, default=20)
    command.add_argument("--width", type=int, default=64)
    command.set_defaults(call=cost)
    command = commands.add_parser("summary")
    command.add_argument("csv", type=Path)
    command.set_defaults(call=summary)
    command = commands.add_parser("plot")
    command.add_argument("csv", type=Path)
    command.add_argument("latency", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(call=plot)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # It would fill every new tensor with NaN, a sixth of the time; nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    options.call(options)


if __name__ == "__main__":
    main()
