"""``bnnc bench``: latency beside ONNX Runtime fp32, and where it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bnn_compiler.atomic_file import atomic_write

from .arguments import TargetCommand, shapes_by_name
from .context import Context, pass_context, quiet_and_verbose
from .destinations import check_destinations
from .options import compile_options, threads_option, verify_option
from .profile_tables import print_profile, write_page
from .tables import print_bench, summarise_layers
from .verification_sentences import describe_verification


@click.command("bench", cls=TargetCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the measurements to this file, too.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write the measurements as a page, too.")
@click.option(
    "--rounds", type=click.IntRange(3, 1000), default=15, show_default=True, help="Measurements of each side."
)
@threads_option
@compile_options
@verify_option
@quiet_and_verbose
@pass_context
def bench_command(
    context: Context,
    /,
    model: Path,
    json_path: Path | None,
    html_path: Path | None,
    rounds: int,
    threads: int,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Compile MODEL for this machine and time it beside ONNX Runtime: whole, by layer and by kernel."""
    context.subject = str(model)
    shapes = shapes_by_name(input_shapes)
    check_destinations({"--json": json_path, "--html": html_path}, [model])

    import bnn_compiler  # noqa: PLC0415
    from bnn_compiler.bench import bench_layers, bench_network, bench_report  # noqa: PLC0415
    from bnn_compiler.frontend import import_onnx  # noqa: PLC0415
    from bnn_compiler.profiling.profile import profile_network  # noqa: PLC0415
    from bnn_compiler.report import to_json  # noqa: PLC0415

    with context.progress(f"measuring {model.name}", live=False) as progress:
        compiled = bnn_compiler.compile_model(
            model, input_shapes=shapes, progress=lambda stage, part: progress(stage, part / 2), **options
        )
        compiled.model.set_num_threads(threads)
        imported = import_onnx(model, input_shapes=shapes, limits=options["limits"])
        report = compiled.report
        macs = sum(layer["macs"] for layer in report["layers"])
        progress("whole network", 0.5)
        network = bench_network(
            compiled, imported.onnx_model, imported.inputs, macs=macs, threads=threads, rounds=rounds
        )
        layers = bench_layers(
            compiled, imported.onnx_model, imported.inputs, report["layers"], threads=threads, rounds=rounds,
            progress=lambda part: progress("layers", 0.55 + 0.35 * part),
        )  # fmt: skip
        profile = profile_network(
            compiled.model, report["layers"], imported.onnx_model, rounds=rounds, peaks=html_path is not None,
            progress=lambda part: progress("kernels", 0.9 + 0.1 * part),
        )  # fmt: skip
    result = bench_report(model.name, threads, rounds, report["versions"], network, layers, profile)
    if json_path is not None:
        with atomic_write(json_path) as file:
            file.write(to_json(result).encode())
    if html_path is not None:
        write_page(html_path, model.name, report, profile)
    if context.quiet:
        return
    context.say(f"{model.name}: {summarise_layers(report)}")
    if report["verification"] is not None:
        context.say(describe_verification(report))
    print_bench(context.streams, result)
    print_profile(context.streams, profile)
