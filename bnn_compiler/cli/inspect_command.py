"""``bnnc inspect``: what is binary in a model or a compiled library, and why the rest is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .arguments import TargetCommand, shapes_by_name
from .context import Context, pass_context, quiet_and_verbose
from .options import compile_options
from .tables import print_layers, print_notes, print_trees, summarise_layers

_ELF_MAGIC = b"\x7fELF"


@click.command("inspect", cls=TargetCommand)
@click.argument("path", metavar="MODEL.onnx|MODEL.so", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@compile_options
@quiet_and_verbose
@pass_context
def inspect_command(
    context: Context,
    /,
    path: Path,
    as_json: bool,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Show MODEL.onnx or MODEL.so layer by layer; no code is generated or run."""
    context.subject = str(path)
    shapes = shapes_by_name(input_shapes)

    from bnn_compiler import driver  # noqa: PLC0415
    from bnn_compiler.artifact import read_manifest  # noqa: PLC0415
    from bnn_compiler.report import from_json, to_json  # noqa: PLC0415

    if _is_library(path):
        report = from_json(read_manifest(path)["report"])
    else:
        with context.progress(f"reading {path.name}") as progress:
            report = driver.inspect_model(path, input_shapes=shapes, progress=progress, **options)
    if as_json:
        context.streams.out.write(to_json(report))
        return
    print_layers(context.streams, report)
    print_trees(context.streams, report)
    context.say(f"{path.name}: {summarise_layers(report)}; target {report['target']}")
    print_notes(context.streams, report)


def _is_library(path: Path) -> bool:
    """An ELF file by content, else by suffix: a broken library must not be taken for a broken model."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _ELF_MAGIC or path.suffix == ".so"
    except OSError:
        return path.suffix == ".so"
