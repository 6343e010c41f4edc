"""The table of ``bnnc tree``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .streams import Streams
from .tables import make_table, print_table


def print_trees(streams: Streams, layers: Sequence[Mapping[str, Any]]) -> None:
    """One row per layer: its size, what the paper's trees and ours cost, and how good ours are known to be."""
    table = make_table(streams)
    table.add_column("layer", no_wrap=True)
    for heading in ("channels", "weights", "paper", "ours", "depth", "synthetic", "gap", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        groups = "" if layer["groups"] == 1 else f" in {layer['groups']} groups"
        table.add_row(
            layer["name"],
            f"{layer['channels']}{groups}",
            str(layer["weights"]),
            f"{layer['paper_ratio']:.3f}",
            f"{layer['ratio']:.3f}",
            str(layer["depth"]),
            str(layer["synthetic_nodes"]),
            f"{100 * layer['gap']:.2f} %",
            f"{layer['seconds']:.2f}",
        )
    print_table(streams, table)
