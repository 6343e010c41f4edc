"""Tables and sentences for people; JSON is for programs. Plain when piped: no boxes, no cut columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box

from bnn_compiler.report import REASONS, LayerReport, MemoryReport, Report

from .streams import Streams, Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bnn_compiler.bench import BenchReport, TimingReport


#: Median by minimum: quiet machines have below 1.2.
_NOISY = 1.5


def print_layers(streams: Streams, report: Report) -> None:
    """Layer by layer: binary or why not, MACs, bytes of weights, kernel. Fits a terminal of 80 columns."""
    table = make_table(streams)
    table.add_column("layer", overflow="fold")
    for heading in ("op", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MACs", "bytes"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("kernel, or why not", overflow="fold")
    for layer in report["layers"]:
        table.add_row(
            layer["name"],
            layer["op"],
            layer["status"],
            count(layer["macs"]),
            f"{layer['weight_bytes']:,}",
            _kernel_or_reason(layer),
        )
    print_table(streams, table)


def print_trees(streams: Streams, report: Report) -> None:
    """The layers that count along channel trees: weights, how many differ along the tree, bytes; or nothing."""
    rows = [(layer["name"], _tree_row(layer)) for layer in report["layers"] if layer["algorithm"] == "bitsliced"]
    if not rows:
        return
    if len(rows) > 1:
        rows.append(("all", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    table = make_table(streams)
    table.add_column("channel trees", overflow="fold")
    for heading in ("weights", "that differ", "channels", "nodes", "bytes stored", "in memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows:
        table.add_row(name, *(f"{number:,}" for number in row))
    streams.write("\n")
    print_table(streams, table)


def summarise_layers(report: Report) -> str:
    """One sentence on how much of the network is binary."""
    layers = report["layers"]
    binary = [layer for layer in layers if layer["status"] == "binary"]
    weight_only = sum(layer["status"] == "binary_weight" for layer in layers)
    total = sum(layer["macs"] for layer in layers)
    share = 100 * sum(layer["macs"] for layer in binary) / total if total else 0.0
    rest = len(layers) - len(binary) - weight_only
    text = f"{len(binary)} of {len(layers)} layers binary ({share:.1f} % of {count(total)} MACs)"
    if weight_only:
        text += f", {weight_only} with binary weights only"
    return text + (f", {rest} float" if rest else "")


def summarise_memory(memory: MemoryReport) -> str:
    """One sentence on what a run takes."""
    return (
        f"memory: {memory['constants_bytes']:,} bytes of constants, a workspace of {memory['workspace_bytes']:,} per "
        f"thread (activations: at most {memory['activations_peak_bytes']:,} at once), "
        f"{memory['scratch_bytes']:,} inside kernels"
    )


def print_notes(streams: Streams, report: Report) -> None:
    """Decisions that the model left open; the same decision at several nodes is one line."""
    nodes: dict[str, list[str]] = {}
    for note in report["notes"]:
        nodes.setdefault(note["detail"], []).append(note["node"])
    for detail, where in nodes.items():
        place = where[0] if len(where) == 1 else f"{len(where)} layers"
        streams.write(f"note: {place}: {detail}\n" if place else f"note: {detail}\n")


def print_bench(streams: Streams, report: BenchReport) -> None:
    """Latency beside ONNX Runtime, whole network and per binary layer; and whether the machine was quiet."""
    streams.write(f"{report['machine']}, threads: {report['threads']}; microseconds, minimum (median)\n")
    table = make_table(streams)
    for heading in ("", "MACs", "bnnc µs", "ONNX Runtime µs", "speed-up", "GMAC/s"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for timing in (report["network"], *report["layers"]):
        table.add_row(*_timing_row(timing))
    print_table(streams, table)
    if report["layers"]:
        streams.write(
            "each layer alone: floats in and floats out, beside ONNX Runtime on that part of the model. In the network "
            "bits pass between layers, so that its own table below gives other ratios\n"
        )
    spread, name, side = max(_spreads(report))
    if spread >= _NOISY:
        streams.write(
            f"note: {side}'s median of {name} is {spread:.1f} times its minimum: something else uses this machine; "
            "trust the minima, or measure again when it is quiet\n"
        )


def _spreads(report: BenchReport) -> Iterator[tuple[float, str, str]]:
    """Median by minimum, of what, and whose."""
    for timing in (report["network"], *report["layers"]):
        for side, low, middle in (
            ("bnnc", timing["bnnc_us_min"], timing["bnnc_us_median"]),
            ("ONNX Runtime", timing["onnxruntime_us_min"], timing["onnxruntime_us_median"]),
        ):
            yield middle / low if low else 1.0, timing["name"], side


def print_outputs(streams: Streams, outputs: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Name, dtype, shape and first values of a network's outputs."""
    table = make_table(streams)
    for heading in ("output", "dtype", "shape", "first values"):
        table.add_column(heading, no_wrap=heading != "first values")
    for name, value in outputs.items():
        first = " ".join(f"{item:.6g}" for item in value.reshape(-1)[:10].tolist())
        table.add_row(name, str(value.dtype), "×".join(map(str, value.shape)) or "scalar", first)
    print_table(streams, table)


def count(number: int) -> str:
    """Write a count with three digits and a unit: 1.8 G, 57.8 M, 640 k."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _tree_row(layer: LayerReport) -> Sequence[int]:
    tree = layer["choice"]["tree"]
    channels = tree["nodes"] - tree["synthetic_nodes"]
    weights = math.prod(layer["weight_shape"])
    return weights, tree["differing_weights"], channels, tree["nodes"], layer["weight_bytes"], layer["resident_bytes"]


def _timing_row(timing: TimingReport) -> Sequence[str]:
    return (
        timing["name"],
        count(timing["macs"]),
        f"{timing['bnnc_us_min']:,.1f} ({timing['bnnc_us_median']:,.1f})",
        f"{timing['onnxruntime_us_min']:,.1f} ({timing['onnxruntime_us_median']:,.1f})",
        f"{timing['speedup']:.1f}× ({timing['speedup_median']:.1f}×)",
        f"{timing['gmacs_per_second']:.0f}",
    )


def _kernel_or_reason(layer: LayerReport) -> str:
    reason = layer["reason"] and f"{layer['reason']}: {layer['detail'] or REASONS[layer['reason']]}"
    kernel = layer["kernel"] if layer["algorithm"] != "float" else None
    fused = ", ".join(layer.get("fused", ()))
    parts = (kernel, fused and f"then {fused}", reason or layer["detail"])
    return "; ".join(part for part in parts if part)


def print_table(streams: Streams, table: Table) -> None:
    """Print a table: as it is on a terminal, without padding elsewhere."""
    console = streams.console
    if streams.out.isatty():
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    # Cells are padded to the column's width; in a file or a pipe that is only noise at the end of lines.
    streams.out.writelines(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def make_table(streams: Streams) -> Table:
    """An empty table in the style of the command line."""
    return Table(box=box.SIMPLE_HEAD if streams.out.isatty() else None, pad_edge=False, header_style="bold")
