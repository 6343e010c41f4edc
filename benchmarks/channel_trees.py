"""Channel trees: cost, gap, time and memory on trained layers; cost against depth and effort; time against channels.

    python benchmarks/channel_trees.py quality [--effort default] [--only SUBSTRING] [--json out.json]
    python benchmarks/channel_trees.py scaling [--most 4096]     # each size in a process of its own, for its memory
    python benchmarks/channel_trees.py depth  --json docs/channel-trees-depth.json
    python benchmarks/channel_trees.py effort
    python benchmarks/channel_trees.py plot docs/channel-trees-depth.json docs/channel-trees-depth.svg

Layers and the costs to reach are in channel_trees.json. Models are looked for in $BNNC_MODELS and ~/.cache/bnnc-models.
Seconds are CPU time of one thread, which other processes disturb less than wall clock; machine code is compiled before.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnn_compiler.recognition.layer_signs import binary_layer_signs
from bnn_compiler.trees.channel_tree import ChannelTree
from bnn_compiler.trees.problem import EFFORTS
from bnn_compiler.trees.solve import solve_channel_tree

CASES = Path(__file__).with_suffix(".json")
DEPTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
Signs = npt.NDArray[np.uint8]


def find_model(name: str) -> Path | None:
    folders = [os.environ.get("BNNC_MODELS", ""), str(Path.home() / ".cache" / "bnnc-models")]
    paths = (Path(folder) / f"{name}.onnx" for folder in folders if folder)
    return next((path for path in paths if path.is_file()), None)


def load_case(case: dict[str, Any]) -> list[tuple[str, Signs]]:
    """Sign matrices of a case, named; of several layers of one size the first is meant."""
    if "random" in case:
        return [("random", np.random.default_rng(0).integers(0, 2, case["random"], dtype=np.uint8))]
    path = find_model(case["model"])
    if path is None:
        print(f"{case['name']}: no {case['model']}.onnx; set BNNC_MODELS")
        return []
    named = [(f"{layer.name} {len(g)}x{layer.weights}", g) for layer in binary_layer_signs(path) for g in layer.groups]
    return [next(pair for pair in named if pair[0].endswith(case["only"]))] if "only" in case else named


def cases(only: str) -> Iterator[tuple[dict[str, Any], list[tuple[str, Signs]]]]:
    for case in json.loads(CASES.read_text(encoding="utf-8")):
        if only in case["name"]:
            layers = load_case(case)
            if layers:
                yield case, layers


def solve_timed(signs: Signs, **options: Any) -> tuple[ChannelTree, float]:
    start = time.process_time()
    tree = solve_channel_tree(signs, **options)
    return tree, time.process_time() - start


def compile_first() -> None:
    small = np.random.default_rng(1).integers(0, 2, (9, 40), dtype=np.uint8)
    for depth in (2, 3):
        solve_channel_tree(small, max_depth=depth)
        solve_channel_tree(small, max_depth=depth, synthetic=False)
        solve_channel_tree(small, max_depth=depth, synthetic=False, effort="thorough")


def measure_quality(only: str, effort: str, seed: int) -> list[dict[str, Any]]:
    """Ratios of each layer and of each case as a whole, beside the ratio to reach."""
    rows = []
    for case, layers in cases(only):
        print(f"\n{case['name']}, effort {effort}")
        for kind, depth in (("plain", 4), ("synthetic", 8)):
            cost, edges, nodes, bound, seconds = 0.0, 0, 0, 0.0, 0.0
            for name, signs in layers:
                tree, took = solve_timed(
                    signs, max_depth=depth, synthetic=kind == "synthetic", effort=effort, seed=seed
                )
                cost, edges, nodes = cost + tree.cost, edges + tree.edge_cost, nodes + tree.synthetic_nodes
                bound, seconds = bound + tree.lower_bound, seconds + took
                print(
                    f"  {kind:9} D={depth} {name:28} {tree.ratio:.4f} edges {tree.edge_cost:8} nodes "
                    f"{tree.synthetic_nodes:4} gap {100 * tree.gap:6.3f} % {took:6.2f} s  {tree.method}",
                    flush=True,
                )
            size = sum(signs.size for _, signs in layers)
            print(
                f"  {kind:9} D={depth} {'together':28} {cost / size:.4f} (to reach {case[kind]}), gap "
                f"{100 * (cost - bound) / cost:.3f} %, {seconds:.2f} s"
            )
            rows.append(
                {
                    "case": case["name"], "kind": kind, "depth": depth, "effort": effort, "seed": seed,
                    "ratio": cost / size, "to_reach": case[kind], "edges": edges, "synthetic_nodes": nodes,
                    "gap": (cost - bound) / cost, "seconds": seconds,
                }
            )  # fmt: skip
    return rows


def _scale_once(channels: int) -> tuple[float, float, float, float, int]:
    compile_first()
    # Descendants of 16 prototypes, which is nearer to trained layers than coins are.
    random = np.random.default_rng(channels)
    prototypes = random.integers(0, 2, (16, 1024), dtype=np.uint8)
    flips = (random.random((channels, 1024)) < 0.3).astype(np.uint8)
    signs = prototypes[random.integers(0, 16, channels)] ^ flips
    synthetic, synthetic_seconds = solve_timed(signs, max_depth=8)
    plain, plain_seconds = solve_timed(signs, max_depth=4, synthetic=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return synthetic.ratio, synthetic_seconds, plain.ratio, plain_seconds, peak


def measure_scaling(most: int) -> list[dict[str, Any]]:
    rows = []
    print("channels  synthetic D=8          plain D=4              peak MiB (with interpreter and libraries)")
    for channels in (64, 128, 256, 512, 1024, 2048, 4096):
        if channels > most:
            break
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            ratio, seconds, plain_ratio, plain_seconds, peak = pool.apply(_scale_once, (channels,))
        print(f"{channels:8}  {ratio:.4f} {seconds:8.2f} s      {plain_ratio:.4f} {plain_seconds:8.2f} s      {peak}")
        rows.append(
            {"channels": channels, "synthetic_ratio": ratio, "synthetic_seconds": seconds, "plain_ratio": plain_ratio,
             "plain_seconds": plain_seconds, "peak_mib": peak}
        )  # fmt: skip
    return rows


def measure_depth(only: str) -> list[dict[str, Any]]:
    """Cost against depth; of a network the last layer stands for all."""
    rows = []
    for case, layers in cases(only):
        name, signs = layers[-1]
        for depth in DEPTHS:
            for synthetic in (False, True):
                tree, _ = solve_timed(signs, max_depth=depth, synthetic=synthetic)
                rows.append(
                    {"layer": f"{case['name'].split(',')[0]} {name}", "max_depth": depth, "synthetic": synthetic,
                     "ratio": tree.ratio, "bound": tree.lower_bound / signs.size}
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def measure_effort(only: str) -> list[dict[str, Any]]:
    """Cost against search effort; of a network the last layer stands for all."""
    rows = []
    for case, layers in cases(only):
        name, signs = layers[-1]
        for effort in EFFORTS:
            for synthetic, depth in ((False, 4), (True, 8)):
                tree, seconds = solve_timed(signs, max_depth=depth, synthetic=synthetic, effort=effort)
                rows.append(
                    {"layer": f"{case['name'].split(',')[0]} {name}", "effort": effort, "synthetic": synthetic,
                     "ratio": tree.ratio, "gap": tree.gap, "seconds": seconds}
                )  # fmt: skip
                print(rows[-1], flush=True)
    return rows


def plot_depth(source: Path, target: Path) -> None:
    """Draw cost against depth, one panel per layer: plain trees and their bound, trees with synthetic nodes."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("svg")
    from matplotlib import pyplot  # noqa: PLC0415

    # The same data give the same file.
    mpl.rcParams["svg.hashsalt"] = "bnnc"
    rows = json.loads(source.read_text(encoding="utf-8"))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure, panels = pyplot.subplots(1, len(layers), figsize=(3.6 * len(layers), 3.6), squeeze=False, sharey=True)
    for panel, layer in zip(panels[0], layers, strict=True):
        for synthetic, colour, label in ((False, "#14507a", "plain"), (True, "#d9480f", "with synthetic nodes")):
            points = [row for row in rows if row["layer"] == layer and row["synthetic"] is synthetic]
            depths = [row["max_depth"] for row in points]
            panel.plot(depths, [row["ratio"] for row in points], "o-", color=colour, label=label, markersize=4)
            if not synthetic:
                panel.plot(depths, [row["bound"] for row in points], ":", color=colour, label="lower bound, plain")
        panel.set_title(layer, fontsize=9)
        panel.set_xlabel("largest depth")
        panel.set_xticks([1, 2, 4, 6, 8, 12, 16])
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("cost / (M·N)")
    panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "scaling", "depth", "effort", "plot"])
    parser.add_argument("files", nargs="*", type=Path, help="plot: the measurements, the picture")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--effort", default="default", choices=EFFORTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=4096, help="scaling: the largest number of channels")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.what == "plot":
        plot_depth(*options.files)
        return
    compile_first()
    match options.what:
        case "quality":
            rows = measure_quality(options.only, options.effort, options.seed)
        case "scaling":
            rows = measure_scaling(options.most)
        case "depth":
            rows = measure_depth(options.only)
        case _:
            rows = measure_effort(options.only)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()
