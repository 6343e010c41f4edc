"""The report's schema, its page in docs/, and its JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bnn_compiler.report import REASONS, LayerReport, MemoryReport, make_report, to_json

DOCS = Path(__file__).resolve().parent.parent / "docs" / "report.md"


def layer(**changes: object) -> LayerReport:
    entry: dict[str, object] = {
        "name": "conv",
        "op": "Conv",
        "status": "binary",
        "reason": "",
        "detail": "",
        "macs": 64,
        "algorithm": "popcount",
        "kernel": "conv",
        "weight_shape": [1, 64, 1, 1],
        "weight_bytes": 8,
        "resident_bytes": 8,
        "choice": {
            "source": "predicted",
            "popcount_us": 2.5,
            "bitsliced_us": 1.5,
            "tree": {
                "nodes": 3,
                "differing_weights": 30,
                "planes": 30,
                "cost_ratio": 0.2,
                "synthetic_nodes": 1,
                "depth": 2,
            },
        },
        "gives_bits": False,
        "fused": ["add", "relu"],
        "packs_for": ["next"],
        "function": "layer_0",
        "input": "x",
        "output": "y",
        "input_axes": [0, 3, 1, 2],
        "output_axes": None,
    }
    return {**entry, **changes}  # type: ignore[typeddict-item]


def test_docs_list_every_reason_and_no_other() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Reasons")[1].split("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` ", section, re.MULTILINE))
    assert documented == {reason for reason in REASONS if reason}


def test_docs_describe_every_field() -> None:
    text = DOCS.read_text(encoding="utf-8")
    report = make_report("m", "native", {}, [layer()])
    choice = report["layers"][0]["choice"]
    fields = {*report, *report["layers"][0], *choice, *choice["tree"], *MemoryReport.__annotations__}
    assert {field for field in fields if f"`{field}`" not in text} == set()


def test_same_report_same_text() -> None:
    versions = {"tvm": "1", "bnnc": "2"}
    first = make_report("m", "native", versions, [layer()])
    assert to_json(first) == to_json(json.loads(to_json(first)))
    assert to_json(first).endswith("}\n")


def test_undocumented_reason_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="no_such_reason"):
        make_report("m", "native", {}, [layer(status="float", reason="no_such_reason")])


def test_binary_layers_have_no_reason() -> None:
    with pytest.raises(AssertionError):
        make_report("m", "native", {}, [layer(reason="activations_float")])


def test_reports_of_older_libraries_are_read() -> None:
    old = layer()
    del old["input_axes"], old["output_axes"]
    assert make_report("m", "native", {}, [old])["layers"][0]["input_axes"] is None
