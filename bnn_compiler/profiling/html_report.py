"""The profile as one HTML page that needs nothing else: no script, no font, no image, no network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bnn_compiler.plain_text import plain
from bnn_compiler.report import REASONS, LayerReport, Report

from .profile import ProfileReport
from .roofline import make_roofline


@dataclass(frozen=True)
class Subject:
    """What was profiled: the model's name, the machine, and ONNX Runtime's version (empty: it was not run)."""

    model: str
    machine: str
    onnxruntime_version: str = ""


def html_report(subject: Subject, report: Report, profile: ProfileReport) -> str:
    """The page, UTF-8 text. Names from the model are escaped wherever they stand."""
    environment = Environment(
        loader=PackageLoader("bnn_compiler.profiling"),
        autoescape=True,
        finalize=lambda value: plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"us": _microseconds, "count": _count, "percent": _percent, "size": _size}
    layers = profile["layers"]
    return environment.get_template("report.html.jinja").render(
        subject=subject,
        report=report,
        profile=profile,
        kinds=list(profile["shares"].items()),
        longest=max((layer["us"] for layer in layers), default=0.0),
        longest_theirs=max((layer["onnxruntime_us"] or 0.0 for layer in layers), default=0.0),
        roofline=make_roofline(profile["kernels"], profile["peaks"]) if profile["peaks"] else None,
        trees=[_tree_row(layer) for layer in report["layers"] if "tree" in layer.get("choice", {})],
        not_binary=[layer for layer in report["layers"] if layer["algorithm"] == "float"],
        reasons=REASONS,
        binary_macs=sum(layer["macs"] for layer in report["layers"] if layer["algorithm"] != "float"),
        all_macs=sum(layer["macs"] for layer in report["layers"]),
    )


def _tree_row(layer: LayerReport) -> dict[str, Any]:
    tree = layer["choice"]["tree"]
    weights = math.prod(layer["weight_shape"])
    channels = tree["nodes"] - tree["synthetic_nodes"]
    return {
        "name": layer["name"],
        "used": layer["algorithm"] == "bitsliced",
        "channels": channels,
        "weights": weights,
        "planes_per_weight": tree["planes"] / weights if weights else 0.0,
        **tree,
    }


def _microseconds(value: float | None) -> str:
    """Three significant digits or whole microseconds."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _size(value: float) -> str:
    return f"{_count(value)}B" if value >= 1000 else f"{value:.0f} B"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
