"""``bnnc tree``: how cheaply the channels of each binary layer can be computed from one another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, Literal

import click

from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import UsageError

from .arguments import InputShape, shapes_by_name
from .context import Context, pass_context, quiet_and_verbose
from .destinations import check_destinations
from .tree_table import print_trees

if TYPE_CHECKING:
    from bnn_compiler.recognition.layer_signs import LayerSigns
    from bnn_compiler.trees.channel_tree import ChannelTree

Effort = Literal["fast", "default", "thorough"]


@click.command("tree")
@click.argument("model", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="Only this layer; repeat for further ones.")
@click.option("--max-depth", type=click.IntRange(1, 4096), default=8, show_default=True, help="Most edges from a root.")
@click.option(
    "--overhead", type=click.FloatRange(0, 2**20, max_open=True), default=24.0, show_default=True,
    help="Planes that a synthetic node must save beyond its own edge.",
)  # fmt: skip
@click.option("--synthetic/--plain", default=True, show_default=True, help="Allow nodes that are no output channels.")
@click.option(
    "--effort", type=click.Choice(["fast", "default", "thorough"]), default="default", show_default=True,
    help="How many steps are spent.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same trees.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the trees to this file.")
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path),
    help="Draw the tree as SVG; of several layers each gets a file, its name before the suffix.",
)  # fmt: skip
@click.option("--cache/--no-cache", default=True, show_default=True, help="Keep solved trees in the user's cache.")
@click.option(
    "--input-shape", "input_shapes", type=InputShape(), multiple=True,
    help="Fix the shape of an input; repeat for further inputs.",
)  # fmt: skip
@quiet_and_verbose
@pass_context
def tree_command(  # noqa: PLR0917 - click passes keywords
    context: Context,
    /,
    model: Path,
    layers: tuple[str, ...],
    max_depth: int,
    overhead: float,
    synthetic: bool,
    effort: Effort,
    seed: int,
    json_path: Path | None,
    plot_path: Path | None,
    cache: bool,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
) -> None:
    """Find channel trees for the binary layers of MODEL.onnx; nothing is compiled.

    Costs are fractions of computing every output channel in full. "paper" is a minimum spanning tree below one channel
    that is computed in full, without a depth limit (MST-compression, ICCV 2023).
    """
    context.subject = str(model)
    shapes = shapes_by_name(input_shapes)
    check_destinations({"--json": json_path, "--plot": plot_path}, [model])

    import numpy as np  # noqa: PLC0415

    from bnn_compiler.cache_folder import cache_folder  # noqa: PLC0415
    from bnn_compiler.recognition.layer_signs import binary_layer_signs  # noqa: PLC0415
    from bnn_compiler.report import to_json  # noqa: PLC0415
    from bnn_compiler.trees.drawing import draw_tree  # noqa: PLC0415
    from bnn_compiler.trees.solve import solve_channel_tree  # noqa: PLC0415

    folder = cache_folder("trees") if cache else None

    def solve(signs: Any, progress: Callable[[float], None]) -> ChannelTree:
        return solve_channel_tree(
            signs, max_depth=max_depth, node_overhead=overhead, synthetic=synthetic, effort=effort, seed=seed,
            cache=folder, progress=progress,
        )  # fmt: skip

    def solve_paper(signs: Any) -> ChannelTree:
        return solve_channel_tree(signs, max_depth=max(2, len(signs)), synthetic=False, single_root=True, effort="fast")

    with context.progress(model.name) as progress:
        progress("reading", 0.0)
        chosen = _choose(binary_layer_signs(model, shapes), layers)
        # On its first run ever the solver is compiled, which is no time of any layer.
        progress("preparing the solver", 0.0)
        solve_channel_tree(np.eye(4, dtype=np.uint8), max_depth=2, synthetic=synthetic)
        solved = list(_solve_layers(chosen, solve, solve_paper, progress))
    if json_path is not None:
        with atomic_write(json_path) as file:
            file.write(to_json({"model": model.name, "layers": [entry.to_report() for entry in solved]}).encode())
    if plot_path is not None:
        paths = _plot_paths(plot_path, solved)
        check_destinations({f"--plot {number + 1}:": path for number, path in enumerate(paths)}, [model, json_path])
        for path, entry in zip(paths, solved, strict=True):
            with atomic_write(path) as file:
                # Groups have trees of a kind: the first stands for all.
                file.write(draw_tree(entry.trees[0], f"{model.name}: {entry.name}").encode())
    if context.quiet:
        return
    print_trees(context.streams, [entry.to_report() for entry in solved])
    _summarise(context, solved)


@dataclass(frozen=True, eq=False)
class SolvedLayer:
    """A layer's trees, one per group; ``paper_cost`` is that of the paper's trees, in planes; ``seconds`` CPU time."""

    name: str
    trees: tuple[ChannelTree, ...]
    paper_cost: float
    seconds: float

    @property
    def cost(self) -> float:
        """Planes and overheads of all groups."""
        return sum(tree.cost for tree in self.trees)

    @property
    def size(self) -> int:
        """Weights of the layer: what computing every channel in full costs."""
        return sum(tree.channels * int(tree.vectors.shape[1]) for tree in self.trees)

    def to_report(self) -> dict[str, Any]:
        """The layer's entry in ``--json``; the trees' vectors are left out where they are the layer's own weights."""
        bound = sum(tree.lower_bound for tree in self.trees)
        return {
            "name": self.name,
            "groups": len(self.trees),
            "channels": sum(tree.channels for tree in self.trees),
            "weights": int(self.trees[0].vectors.shape[1]),
            "paper_ratio": self.paper_cost / self.size,
            "ratio": self.cost / self.size,
            "edge_cost": sum(tree.edge_cost for tree in self.trees),
            "shared_sum_cost": sum(int(tree.vectors.shape[1]) for tree in self.trees),
            "depth": max(tree.depth for tree in self.trees),
            "synthetic_nodes": sum(tree.synthetic_nodes for tree in self.trees),
            "lower_bound": bound,
            "bound_problem": self.trees[0].bound_problem,
            "gap": (self.cost - bound) / self.cost if self.cost else 0.0,
            "method": self.trees[0].method,
            "seconds": round(self.seconds, 3),
            "trees": [
                {
                    "parents": tree.rooted_parents.tolist(),
                    "edge_costs": tree.edge_costs.tolist(),
                    "synthetic_vectors": ["".join(map(str, row)) for row in tree.vectors[tree.channels :].tolist()],
                }
                for tree in self.trees
            ],
        }


def _choose(found: Sequence[LayerSigns], names: Sequence[str]) -> list[LayerSigns]:
    known = {layer.name for layer in found}
    for name in names:
        if name not in known:
            raise UsageError(f"no binary layer {name!r}; there are: {', '.join(sorted(known)) or 'none'}")
    return [layer for layer in found if not names or layer.name in names]


def _solve_layers(
    layers: Sequence[LayerSigns],
    solve: Callable[[Any, Callable[[float], None]], ChannelTree],
    solve_paper: Callable[[Any], ChannelTree],
    progress: Callable[[str, float], None],
) -> Iterator[SolvedLayer]:
    # Time grows with the square of the channels, so the bar does too.
    total = sum(len(group) ** 2 * group.shape[1] for layer in layers for group in layer.groups)
    done = 0
    for layer in layers:
        start = process_time()
        trees, paper = [], 0.0
        for group in layer.groups:
            size = len(group) ** 2 * group.shape[1]

            def report(part: float, base: int = done, size: int = size, name: str = layer.name) -> None:
                progress(name, (base + part * size) / total)

            trees.append(solve(group, report))
            done += size
        seconds = process_time() - start
        for group in layer.groups:
            paper += solve_paper(group).cost
        yield SolvedLayer(layer.name, tuple(trees), paper, seconds)


def _plot_paths(path: Path, solved: Sequence[SolvedLayer]) -> list[Path]:
    if len(solved) == 1:
        return [path]
    plain = [re.sub(r"[^\w.-]+", "_", entry.name).strip("_") for entry in solved]
    return [path.with_name(f"{path.stem}-{at:02d}-{name}{path.suffix}") for at, name in enumerate(plain)]


def _summarise(context: Context, solved: Sequence[SolvedLayer]) -> None:
    size = sum(entry.size for entry in solved)
    if not size:
        context.say("no binary layers")
        return
    ours, paper = sum(entry.cost for entry in solved) / size, sum(entry.paper_cost for entry in solved) / size
    layers = "1 layer" if len(solved) == 1 else f"{len(solved)} layers"
    context.say(
        f"{layers}: {ours:.3f} of all weights, the paper's trees {paper:.3f}; the shared sum of all planes (N per "
        "layer and group, which the epilogue needs in any case) is not in either"
    )
    problems = sorted({entry.trees[0].bound_problem for entry in solved})
    context.say(f"gap: to a lower bound on: {'; '.join(problems)}")
