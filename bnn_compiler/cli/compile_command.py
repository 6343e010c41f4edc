"""``bnnc compile``: a model to one shared library, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnn_compiler.atomic_file import atomic_write

from .arguments import TargetCommand, shapes_by_name
from .context import Context, pass_context, quiet_and_verbose
from .destinations import check_destinations
from .options import compile_options, verify_option
from .tables import print_notes, summarise_layers, summarise_memory
from .verification_sentences import describe_verification


@click.command("compile", cls=TargetCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The library to write.  [default: MODEL.so, here]"
)
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write decisions and checks as JSON.")
@click.option(
    "--dump-dir", type=click.Path(path_type=Path), help="Write the module after every phase into this folder."
)
@click.option(
    "--measure", is_flag=True, help="Time each layer's kernels on this machine and take the fastest (remembered)."
)
@compile_options
@verify_option
@quiet_and_verbose
@pass_context
def compile_command(
    context: Context,
    /,
    model: Path,
    output: Path | None,
    report_path: Path | None,
    dump_dir: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Compile MODEL (ONNX) to a shared library and verify it against ONNX Runtime."""
    context.subject = str(model)
    output = output or Path(f"{model.stem}.so")
    shapes = shapes_by_name(input_shapes)
    check_destinations({"-o": output, "--report": report_path}, [model])

    import bnn_compiler  # noqa: PLC0415
    from bnn_compiler.report import to_json  # noqa: PLC0415

    with context.progress(f"compiling {model.name}") as progress:
        compiled = bnn_compiler.compile_model(
            model, input_shapes=shapes, dump_dir=dump_dir, progress=progress, **options
        )
    compiled.export(output)
    report = compiled.report
    if report_path is not None:
        with atomic_write(report_path) as file:
            file.write(to_json(report).encode())
    if context.quiet:
        return
    context.say(f"{model.name}: {summarise_layers(report)}")
    if report["memory"] is not None:
        context.say(summarise_memory(report["memory"]))
    print_notes(context.streams, report)
    if report["verification"] is not None:
        context.say(describe_verification(report))
    context.say(f"wrote {output} ({output.stat().st_size / 1024:.0f} KiB)")
