"""The report: what was decided for each layer, and how verification went, as JSON.

The schema is a promise: fields are added, never renamed or removed, without a new ``SCHEMA`` number. docs/report.md
describes it for readers; a test keeps that page and :data:`REASONS` the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

SCHEMA = 1

Status = Literal["binary", "binary_weight", "float"]

REASONS: Mapping[str, str] = {
    "": "the layer is binary",
    "weights_not_constant": "the weights are computed from the network's inputs",
    "weights_contain_zero": "a weight is zero (pruned or ternary): it is neither +α nor -α",
    "weights_not_two_valued": "the weights of an output channel have more than one magnitude",
    "weights_scaled_per_input": "the magnitude of the weights varies along the input, so it is no scale of the output",
    "weights_constant": "all weights have the same sign: the layer is a sum, not a binary layer",
    "activations_float": "the activations are not known to take two values only",
    "activations_not_two_valued": "the activations are known to take a few values, but more than two",
    "activations_not_symmetric": "the activations take two values, but neither {-s, +s} nor another supported pair",
    "padding_not_in_alphabet": "the layer is padded with a value that the activations do not take",
    "unsupported_form": "no kernel takes this form of the operator (control flow, rank, layout, …)",
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
    algorithm: Literal["popcount", "float"]
    kernel: str | None
    weight_shape: list[int]
    weight_bytes: int


class LayerReport(_Layer, total=False):
    """One convolution or dense layer, in the order of the graph.

    ``function``, ``input`` and ``output`` are there when ``algorithm`` is ``popcount``: the artifact's function of
    this layer alone, the ONNX tensor it takes and the ONNX tensor it gives.
    """

    function: str
    input: str
    output: str


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


class VerificationReport(TypedDict):
    """What verification ran and found; absent (``null``) when it was switched off or the target is not the host."""

    passed: bool
    seed: int
    inputs: int
    integer_only: bool
    sign_flips: int | None
    reference_sign_flips: int
    layers: list[LayerCheckReport]
    outputs: list[OutputCheckReport]


class Report(TypedDict):
    """The whole report, as ``--report`` and ``inspect --json`` write it."""

    schema: int
    model: str
    target: str
    versions: dict[str, str]
    notes: list[NoteReport]
    layers: list[LayerReport]
    verification: VerificationReport | None


def make_report(
    model: str,
    target: str,
    versions: Mapping[str, str],
    layers: Sequence[LayerReport],
    notes: Sequence[NoteReport] = (),
    verification: VerificationReport | None = None,
) -> Report:
    """Assemble a report; checks that every reason is one of :data:`REASONS` and agrees with the status."""
    for layer in layers:
        assert layer["reason"] in REASONS, f"undocumented reason {layer['reason']!r} at layer {layer['name']!r}"
        assert (layer["status"] == "binary") <= (layer["reason"] in ("", "algorithm_forced")), layer
    return {
        "schema": SCHEMA,
        "model": model,
        "target": target,
        "versions": dict(versions),
        "notes": list(notes),
        "layers": list(layers),
        "verification": verification,
    }


def to_json(value: Mapping[str, Any]) -> str:
    """Serialise with the schema's key order, one trailing newline; the same report gives the same text."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
