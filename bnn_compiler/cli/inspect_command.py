"""``bnnc inspect``: what is binary in a model or a compiled library, why the rest is not, and where the time goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bnn_compiler.regular_file import UnreadableFileError, open_regular

from .arguments import TargetCommand, shapes_by_name
from .context import Context, pass_context, quiet_and_verbose
from .destinations import check_destinations
from .options import compile_options, threads_option
from .profile_tables import print_profile, write_page
from .tables import print_layers, print_notes, print_trees, summarise_layers, summarise_memory
from .verification_sentences import describe_verification

if TYPE_CHECKING:
    from bnn_compiler.limits import Limits
    from bnn_compiler.profiling.profile import ProfileReport
    from bnn_compiler.report import Report

_ELF_MAGIC = b"\x7fELF"


@click.command("inspect", cls=TargetCommand)
@click.argument("path", metavar="MODEL.onnx|MODEL.so", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write the report as JSON to stdout.")
@click.option("--profile", "profiled", is_flag=True, help="Run it, too, and show the time of each layer and kernel.")
@click.option(
    "--html", "html_path", type=click.Path(path_type=Path), help="Write the profile as a page (so: --profile)."
)
@click.option(
    "--onnx", "model_path", type=click.Path(path_type=Path),
    help="The model that MODEL.so was compiled from: the profile then has ONNX Runtime's times beside it.",
)  # fmt: skip
@threads_option
@compile_options
@quiet_and_verbose
@pass_context
def inspect_command(
    context: Context,
    /,
    path: Path,
    as_json: bool,
    profiled: bool,
    html_path: Path | None,
    model_path: Path | None,
    threads: int,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Show MODEL.onnx or MODEL.so layer by layer; without --profile or --html, no code is generated or run."""
    context.subject = str(path)
    shapes = shapes_by_name(input_shapes)
    profiled = profiled or html_path is not None
    check_destinations({"--html": html_path}, [path, model_path])
    if model_path is not None and not (profiled and _is_library(path)):
        raise click.UsageError("--onnx goes with --profile or --html, and with a library")

    from bnn_compiler import driver  # noqa: PLC0415
    from bnn_compiler.artifact import read_manifest  # noqa: PLC0415
    from bnn_compiler.report import from_json, to_json  # noqa: PLC0415

    profile: ProfileReport | None = None
    if profiled:
        peaks = html_path is not None
        if _is_library(path):
            report, profile = _profile_library(context, path, model_path, threads, peaks, options["limits"])
        else:
            report, profile = _profile_model(context, path, shapes, threads, peaks, options)
    elif _is_library(path):
        report = from_json(read_manifest(path)["report"])
    else:
        with context.progress(f"reading {path.name}") as progress:
            report = driver.inspect_model(path, input_shapes=shapes, progress=progress, **options)
    if html_path is not None and profile is not None:
        write_page(html_path, path.name, report, profile)
    if as_json:
        context.streams.out.write(to_json(report if profile is None else {**report, "profile": profile}))
        return
    if context.quiet:
        return
    print_layers(context.streams, report)
    print_trees(context.streams, report)
    context.say(f"{path.name}: {summarise_layers(report)}; target {report['target']}")
    if report["memory"] is not None:
        context.say(summarise_memory(report["memory"]))
    print_notes(context.streams, report)
    if _is_library(path):
        context.say(f"when it was compiled: {describe_verification(report)}")
    if profile is not None:
        print_profile(context.streams, profile)


def _profile_library(
    context: Context, path: Path, model_path: Path | None, threads: int, peaks: bool, limits: Limits
) -> tuple[Report, ProfileReport]:
    """Run a library; beside ONNX Runtime where its model is given."""
    import bnn_compiler  # noqa: PLC0415
    from bnn_compiler.bench import ROUNDS  # noqa: PLC0415
    from bnn_compiler.errors import UsageError  # noqa: PLC0415
    from bnn_compiler.frontend import import_onnx  # noqa: PLC0415
    from bnn_compiler.profiling.profile import profile_network  # noqa: PLC0415
    from bnn_compiler.report import from_json  # noqa: PLC0415

    with context.progress(f"measuring {path.name}", live=False) as progress:
        compiled = bnn_compiler.load(path, threads)
        report = from_json(compiled.manifest["report"])
        model = None
        if model_path is not None:
            inputs = {spec.name: spec.shape for spec in compiled.inputs}
            imported = import_onnx(model_path, input_shapes=inputs, limits=limits)
            if imported.inputs != compiled.inputs or imported.outputs != compiled.outputs:
                raise UsageError(f"{model_path} has other inputs or outputs than the model it was compiled from")
            model = imported.onnx_model
        profile = profile_network(
            compiled, report["layers"], model, rounds=ROUNDS, peaks=peaks, progress=lambda part: progress("", part)
        )
    return report, profile


def _profile_model(
    context: Context,
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    threads: int,
    peaks: bool,
    options: Mapping[str, Any],
) -> tuple[Report, ProfileReport]:
    """Compile a model, unverified, and run it beside ONNX Runtime."""
    import bnn_compiler  # noqa: PLC0415
    from bnn_compiler.bench import ROUNDS  # noqa: PLC0415
    from bnn_compiler.errors import TargetError  # noqa: PLC0415
    from bnn_compiler.frontend import import_onnx  # noqa: PLC0415
    from bnn_compiler.profiling.profile import profile_network  # noqa: PLC0415
    from bnn_compiler.target import parse_target  # noqa: PLC0415

    if not parse_target(options["target"]).is_host:
        raise TargetError(f"target {options['target']!r} cannot run on this machine, so it cannot be profiled here")
    with context.progress(f"measuring {path.name}", live=False) as progress:
        compiled = bnn_compiler.compile_model(
            path, input_shapes=shapes, verify=False, progress=lambda stage, part: progress(stage, part / 2), **options
        )
        compiled.model.set_num_threads(threads)
        imported = import_onnx(path, input_shapes=shapes, limits=options["limits"])
        profile = profile_network(
            compiled.model, compiled.report["layers"], imported.onnx_model, rounds=ROUNDS, peaks=peaks,
            progress=lambda part: progress("kernels", 0.5 + 0.5 * part),
        )  # fmt: skip
    return compiled.report, profile


def _is_library(path: Path) -> bool:
    """An ELF file by content, else by suffix: a broken library must not be taken for a broken model."""
    try:
        descriptor = open_regular(path, largest=sys.maxsize)
    except UnreadableFileError:
        return path.suffix == ".so"
    with os.fdopen(descriptor, "rb") as file:
        return file.read(4) == _ELF_MAGIC or path.suffix == ".so"
