"""The report: what was decided for each layer, and how verification went, as JSON.

The schema is a promise: fields are added, never renamed or removed, without a new ``SCHEMA`` number. docs/report.md
describes it for readers; a test keeps that page and :data:`REASONS` the same.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from bnn_compiler.plain_text import prints

SCHEMA = 1

Status = Literal["binary", "binary_weight", "float"]

REASONS: Mapping[str, str] = {
    "": "the layer is binary",
    "weights_not_constant": "the weights are computed from the network's inputs",
    "weights_contain_zero": "a weight is zero (ternary), where all others are +α or -α",
    "weights_not_two_valued": "the weights of an output channel have more than one magnitude",
    "weights_scaled_per_input": "the magnitude of the weights varies along the input, so it is no scale of the output",
    "weights_constant": "all weights have the same sign: the layer is a sum, not a binary layer",
    "activations_float": "the activations are not known to take two values only",
    "activations_not_two_valued": "the activations are known to take a few values, but more than two",
    "activations_not_symmetric": "the activations take two values, but neither {-s, +s} nor another supported pair",
    "padding_not_in_alphabet": "the layer is padded with a value that the activations do not take",
    "unsupported_form": "no binary kernel takes this form of the operator (control flow, rank, layout, …)",
    "algorithm_forced": "the layer qualifies, but --algorithm float was given",
}
"""Every value of ``LayerReport["reason"]``, and what it says."""


class _Layer(TypedDict):
    name: str
    op: str
    status: Status
    reason: str
    detail: str
    macs: int
    algorithm: Literal["popcount", "bitsliced", "float"]
    kernel: str | None
    weight_shape: list[int]
    weight_bytes: int
    resident_bytes: int


class TreeReport(TypedDict):
    """The channel tree of a layer, all groups together: planes added per pixel vector, and ÷ the number of weights.

    ``differing_weights`` is what the paper counts: Hamming distances summed over the edges of the tree. ``nodes`` are
    channels and synthetic nodes.
    """

    nodes: int
    differing_weights: int
    planes: int
    cost_ratio: float
    synthetic_nodes: int
    depth: int


class _Candidate(TypedDict):
    name: Literal["popcount", "star", "tree"]
    predicted_us: float


class CandidateReport(_Candidate, total=False):
    """One way to compute a layer; ``measured_us`` is there where it was measured."""

    measured_us: float


class ChoiceReport(TypedDict, total=False):
    """Why a layer has its algorithm; ``tree`` is there when one was solved."""

    source: Literal["forced", "only", "predicted", "measured"]
    chosen: Literal["popcount", "star", "tree"]
    candidates: list[CandidateReport]
    popcount_us: float
    bitsliced_us: float
    tree: TreeReport


class LayerReport(_Layer, total=False):
    """One convolution or dense layer, in the order of the graph.

    ``choice`` and what follows are there unless ``algorithm`` is ``float``: how the algorithm was chosen, whether the
    layer hands bits to its readers, the ONNX nodes that run in its kernel and the layers it packs its result for, the
    artifact's function of this layer alone, the ONNX tensor it takes and the one it gives (null where a tensor has no
    name in the model), and the order it has their axes in (null: as in the model).
    """

    choice: ChoiceReport
    gives_bits: bool
    fused: list[str]
    packs_for: list[str]
    function: str
    input: str | None
    output: str | None
    input_axes: list[int] | None
    output_axes: list[int] | None


class SignReport(TypedDict):
    """A ``Sign`` in front of a layer with binary weights: what becomes of 0 there.

    ``zero``: ``never`` (impossible), ``plus`` (taken as +1), ``kept``, or ``checked``: looked for in each run, and kept
    in those that have it. ``input`` and ``output`` are its tensors, null
    without a name in the model; ``padded``: whether a constant pad made the input, whose zeros stay zeros. ``source``
    is the tensor in which 0 becomes common, with its operator; null where it does not.
    """

    node: str
    input: str | None
    output: str | None
    padded: bool
    zero: Literal["never", "plus", "checked", "kept"]
    source: str | None
    source_op: str | None


class NoteReport(TypedDict):
    """A decision taken where the model left a choice; ``node`` may be empty."""

    code: str
    node: str
    detail: str


class LayerCheckReport(TypedDict):
    """One binary layer against ONNX Runtime, fed ONNX Runtime's own input of that layer."""

    name: str
    exact: bool
    elements: int
    mismatches: int
    max_abs_error: float
    bound: float


class OutputCheckReport(TypedDict):
    """One output of the network against ONNX Runtime; ``tolerance`` 0 means that equality was required."""

    name: str
    max_abs_error: float
    tolerance: float
    inputs_beyond_tolerance: int


ComparedWith = Literal["model", "standard_form", "sign_zero_plus", "single_precision", "exact_sums"]
"""What decides whether outputs are right; docs/report.md says when which."""


class OwnOutputReport(TypedDict):
    """One output beside the user's own model: share of its elements beyond the tolerance, and the largest error."""

    name: str
    differing: float
    max_abs_error: float


class OwnKindReport(TypedDict):
    """The outputs on the inputs of one kind."""

    kind: Literal["ordinary", "integers", "half zeros", "zeros"]
    inputs: int
    outputs: list[OwnOutputReport]


class OwnModelReport(TypedDict):
    """The compiled network beside the model as the user gave it, in ONNX Runtime with its default options.

    Where that cannot load the file, ``refusal`` says why, and the front end's standard form of it stands in.
    """

    loaded: bool
    refusal: str
    agrees: bool
    by_kind: list[OwnKindReport]


class SignZeroReport(TypedDict):
    """A tensor whose ``Sign`` was compiled with Sign(0) = +1, and the share of zeros in it on verification's inputs."""

    tensor: str
    share: float


class VerificationReport(TypedDict):
    """What verification ran and found; absent (``null``) when it was switched off."""

    passed: bool
    seed: int
    inputs: int
    integer_only: bool
    exact_sums: bool
    sign_flips: int | None
    reference_sign_flips: int
    layers: list[LayerCheckReport]
    layers_not_compared: list[str]
    outputs: list[OutputCheckReport]
    compared_with: ComparedWith
    own_model: OwnModelReport | None
    sign_zeros: list[SignZeroReport]
    decided_in_float64: int | None
    target: str


class MemoryReport(TypedDict):
    """What one run takes, in bytes; docs/report.md has the definitions."""

    activations_peak_bytes: int
    workspace_bytes: int
    scratch_bytes: int
    constants_bytes: int


class Report(TypedDict):
    """The whole report, as ``--report`` and ``inspect --json`` write it."""

    schema: int
    model: str
    target: str
    versions: dict[str, str]
    notes: list[NoteReport]
    signs: list[SignReport]
    layers: list[LayerReport]
    memory: MemoryReport | None
    verification: VerificationReport | None


def make_report(
    model: str,
    target: str,
    versions: Mapping[str, str],
    layers: Sequence[Mapping[str, Any]],
    notes: Sequence[NoteReport] = (),
    verification: VerificationReport | None = None,
    memory: MemoryReport | None = None,
    signs: Sequence[SignReport] = (),
) -> Report:
    """Assemble a report from the entries that passes made; float layers may lack ``kernel`` and bytes."""
    return {
        "schema": SCHEMA,
        "model": model,
        "target": target,
        "versions": dict(versions),
        "notes": list(notes),
        "signs": list(signs),
        "layers": [_layer_report(layer) for layer in layers],
        "memory": memory,
        "verification": verification,
    }


def from_json(value: Mapping[str, Any]) -> Report:
    """The report that :func:`to_json` or a compiled library holds, with its keys in the schema's order."""
    return make_report(
        value["model"],
        value["target"],
        value["versions"],
        value["layers"],
        value["notes"],
        value["verification"],
        value.get("memory"),  # added later, as the next one
        value.get("signs", ()),
    )


def _layer_report(entry: Mapping[str, Any]) -> LayerReport:
    """The entry with every field of the schema, in its order."""
    status, reason = entry["status"], entry["reason"]
    assert reason in REASONS, f"undocumented reason {reason!r} at layer {entry['name']!r}"
    allowed = ("", "algorithm_forced", "unsupported_form")
    assert status != "binary" or reason in allowed, f"binary layer with a reason: {entry}"
    # A float layer stores its weights as float32.
    weight_bytes = entry.get("weight_bytes", 4 * math.prod(entry["weight_shape"]))
    report: LayerReport = {
        "name": entry["name"],
        "op": entry["op"],
        "status": status,
        "reason": reason,
        "detail": entry["detail"],
        "macs": entry["macs"],
        "algorithm": entry["algorithm"],
        "kernel": entry.get("kernel"),
        "weight_shape": list(entry["weight_shape"]),
        "weight_bytes": weight_bytes,
        "resident_bytes": entry.get("resident_bytes", weight_bytes),
    }
    if entry["algorithm"] != "float":
        report["choice"] = entry["choice"]
        report["gives_bits"] = entry["gives_bits"]
        report["fused"], report["packs_for"] = list(entry.get("fused", [])), list(entry.get("packs_for", []))
        report["function"], report["input"], report["output"] = entry["function"], entry["input"], entry["output"]
        # Libraries compiled before there were such orders have none.
        report["input_axes"], report["output_axes"] = entry.get("input_axes"), entry.get("output_axes")
    return report


def to_json(value: Mapping[str, Any]) -> str:
    """Serialise with the schema's key order, one trailing newline; the same report gives the same text."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[^\x00-\x7f]", _json_character, text) + "\n"


def _json_character(match: re.Match[str]) -> str:
    """A terminal that shows a report must not obey what is in its strings; JSON itself escapes ASCII's controls."""
    character = match.group()
    return character if prints(character) else json.dumps(character)[1:-1]
