"""Tables of a profile, and its page."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.report import Report

from .streams import Streams
from .tables import count, make_table, print_table

if TYPE_CHECKING:
    from bnn_compiler.profiling.profile import ProfileReport


def print_profile(streams: Streams, profile: ProfileReport) -> None:
    """Where the time goes: shares by kind, layers beside ONNX Runtime, kernels."""
    shares = profile["shares"]
    streams.write(
        f"\n{profile['run_us']:,.1f} µs per run: binary {100 * shares['binary']:.1f} %, float "
        f"{100 * shares['float']:.1f} %, glue {100 * shares['glue']:.1f} %, overhead {100 * shares['overhead']:.1f} %\n"
    )
    if profile["onnxruntime"] is not None:
        streams.write("in the network: kernels by layer, ONNX Runtime's nodes by its own profiler\n")
    _print_layers(streams, profile)
    streams.write("\n")
    _print_kernels(streams, profile)
    theirs = profile["onnxruntime"]
    if theirs is not None:
        streams.write(
            f"ONNX Runtime: {theirs['run_us']:,.1f} µs per run; {theirs['unmatched_us']:,.1f} of "
            f"{theirs['nodes_us']:,.1f} µs of its nodes have no counterpart here\n"
        )


def _print_layers(streams: Streams, profile: ProfileReport) -> None:
    compared = profile["onnxruntime"] is not None
    table = make_table(streams)
    table.add_column("layer", overflow="fold")
    table.add_column("kind", no_wrap=True)
    headings = ["MACs", "moved", "µs", "share", *(["ONNX Runtime µs", "speed-up"] if compared else [])]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in profile["layers"]:
        row = [
            count(layer["macs"]) if layer["macs"] else "",
            f"{count(layer['bytes'])}B",
            f"{layer['us']:,.1f}",
            f"{100 * layer['share']:.1f} %",
        ]
        if compared:
            row.append(f"{layer['onnxruntime_us'] or 0.0:,.1f}")
            row.append(f"{layer['speedup']:.1f}×" if layer["speedup"] else "")
        table.add_row(layer["name"], layer["kind"], *row)
    print_table(streams, table)


def _print_kernels(streams: Streams, profile: ProfileReport) -> None:
    from bnn_compiler.profiling.profile import LEAST_COMPARED_US, nodes_label  # noqa: PLC0415

    table = make_table(streams)
    table.add_column("kernel", overflow="fold")
    table.add_column("nodes", overflow="fold")
    for heading in ("µs", "(median)", "share", "read", "written", "GB/s", "GMAC/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kernel in profile["kernels"]:
        table.add_row(
            kernel["kernel"],
            nodes_label(kernel["nodes"]) or (f"for {kernel['layer']}" if kernel["layer"] else ""),
            f"{kernel['us_min']:,.2f}" if kernel["us_min"] >= LEAST_COMPARED_US else f"< {LEAST_COMPARED_US}",
            f"({kernel['us_median']:,.2f})",
            f"{100 * kernel['share']:.1f} %",
            f"{count(kernel['bytes_read'])}B",
            f"{count(kernel['bytes_written'])}B",
            f"{kernel['gbytes_per_second']:.1f}" if kernel["gbytes_per_second"] else "",
            f"{kernel['gmacs_per_second']:.0f}" if kernel["gmacs_per_second"] else "",
        )
    print_table(streams, table)


def write_page(path: Path, model: str, report: Report, profile: ProfileReport) -> None:
    """Write the profile as an HTML page, whole or not at all.

    Raises:
        ArtifactError: ``path`` cannot be written.
    """
    from bnn_compiler.bench import machine_name  # noqa: PLC0415
    from bnn_compiler.profiling.html_report import Subject, html_report  # noqa: PLC0415

    version = metadata.version("onnxruntime") if profile["onnxruntime"] is not None else ""
    page = html_report(Subject(model, machine_name(), version), report, profile)
    with atomic_write(path) as file:
        file.write(page.encode())
