"""Which kernels a binary layer gets: popcount, or bit-sliced, with or without a channel tree.

The candidates of a convolution are

    popcount   channels packed into words
    star       bit-sliced, every channel counted from the nearer root
    tree       bit-sliced along a solved channel tree

``popcount`` and ``bitsliced`` restrict them (where the kernels take the layer), ``auto`` does not. The one that the
cost model predicts to be fastest is taken, or with a ``Measurement`` the one that is fastest on this machine. Trees are
only solved, and candidates only measured, where the model says that they might win.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bnn_compiler.kernels.bitsliced_layer import (
    BitslicedPlan,
    TreePlanning,
    bitsliced_kernels,
    can_be_bitsliced,
    optimistic_lists,
    plan_bitsliced,
    star_plan,
)
from bnn_compiler.kernels.cost_model import CostModel, load_cost_model
from bnn_compiler.kernels.kernel_measurement import Measurement, measured_nanoseconds
from bnn_compiler.kernels.layer_kernels import LayerKernels, alphabet_of, needs_correction
from bnn_compiler.kernels.popcount_layer import popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.options import Algorithm
from bnn_compiler.report import CandidateReport, ChoiceReport, TreeReport
from bnn_compiler.schedules.isa import Isa

CandidateName = Literal["popcount", "star", "tree"]

#: The root of the mean square error of the counting kernels' predictions (``benchmarks/calibrate_cost_model.py`` prints
#: it). Bit-sliced kernels take more memory, so they have to be predicted faster by more.
_MODEL_ERROR = 1.1
#: What is predicted slower than the fastest by more than this is not measured: the model may be of another machine.
_WORTH_MEASURING = 3.0

LayerProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class ChoiceOptions:
    """What the choice may consider. ``progress`` is told, before each layer, its index and how many there are."""

    algorithm: Algorithm = "auto"
    planning: TreePlanning = field(default_factory=TreePlanning)
    measurement: Measurement | None = None
    progress: LayerProgress = lambda _index, _layers: None


@dataclass(frozen=True, eq=False)
class Choice:
    """The kernels of a layer, and what the report says of how they were chosen."""

    kernels: LayerKernels
    details: ChoiceReport


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One way to compute a layer; ``nanoseconds`` are predicted, packing included."""

    name: CandidateName
    nanoseconds: float
    plan: BitslicedPlan | None
    build: Callable[[], LayerKernels]


def choose_kernels(spec: BinarySpec, isa: Isa, options: ChoiceOptions) -> Choice:
    """Choose and build the kernels of one layer."""
    forced = options.algorithm in ("popcount", "bitsliced")
    if options.algorithm == "popcount" or not can_be_bitsliced(spec, isa):
        source: Literal["forced", "only"] = "forced" if options.algorithm == "popcount" else "only"
        return Choice(popcount_kernels(spec, isa), {"source": source})
    model = load_cost_model(isa)
    candidates = _candidates(spec, isa, model, options)
    details: ChoiceReport = {"source": "forced" if forced else "predicted"}
    measured: dict[str, float] = {}
    if options.measurement is not None:
        fastest = min(candidate.nanoseconds for candidate in candidates)
        candidates = [each for each in candidates if each.nanoseconds <= _WORTH_MEASURING * fastest]
        builders: dict[str, Callable[[], LayerKernels]] = {each.name: each.build for each in candidates}
        measured = measured_nanoseconds(spec, isa, options.planning, builders, options.measurement)
        details["source"] = "measured"
        chosen = min(candidates, key=lambda candidate: measured[candidate.name])
    else:
        chosen = min(candidates, key=_predicted_cost)
    details |= _report(candidates, measured, chosen)
    return Choice(chosen.build(), details)


def _candidates(spec: BinarySpec, isa: Isa, model: CostModel, options: ChoiceOptions) -> list[_Candidate]:
    """The candidates that might win."""
    zero_padded = needs_correction(spec)

    def bitsliced(name: CandidateName, plan: BitslicedPlan) -> _Candidate:
        predicted = model.bitsliced_ns(plan.layout, plan.lists, zero_padded=zero_padded)
        return _Candidate(name, predicted, plan, lambda: bitsliced_kernels(spec, isa, plan))

    star = bitsliced("star", star_plan(spec, isa))
    candidates = [star]
    if options.algorithm != "bitsliced":
        assert spec.geometry is not None
        popcount = model.popcount_ns(spec.geometry, alphabet_of(spec), isa, zero_padded=zero_padded)
        candidates.append(_Candidate("popcount", popcount, None, lambda: popcount_kernels(spec, isa)))
    assert star.plan is not None
    optimistic = model.bitsliced_ns(star.plan.layout, optimistic_lists(spec, star.plan.layout), zero_padded=zero_padded)
    slack = _WORTH_MEASURING if options.measurement is not None else 1.0
    if optimistic <= slack * min(_predicted_cost(each) for each in candidates):
        candidates.append(bitsliced("tree", plan_bitsliced(spec, isa, model, options.planning)))
    return candidates


def _predicted_cost(candidate: _Candidate) -> float:
    return candidate.nanoseconds * (1.0 if candidate.plan is None else _MODEL_ERROR)


def _report(candidates: list[_Candidate], measured: dict[str, float], chosen: _Candidate) -> ChoiceReport:
    entries: list[CandidateReport] = []
    for candidate in sorted(candidates, key=lambda each: each.name):
        entry: CandidateReport = {
            "name": candidate.name,
            "predicted_us": round(candidate.nanoseconds / 1e3, 2),
        }
        if candidate.name in measured:
            entry["measured_us"] = round(measured[candidate.name] / 1e3, 2)
        entries.append(entry)
    report: ChoiceReport = {"chosen": chosen.name, "candidates": entries}
    for name, group in (
        ("popcount_us", [each for each in candidates if each.plan is None]),
        ("bitsliced_us", [each for each in candidates if each.plan is not None]),
    ):
        if group:
            report[name] = round(min(each.nanoseconds for each in group) / 1e3, 2)  # type: ignore[literal-required]
    plans = {each.name: each.plan for each in candidates if each.plan is not None}
    shown = chosen.plan or plans.get("tree")
    if shown is not None:
        report["tree"] = _tree_report(shown)
    return report


def _tree_report(plan: BitslicedPlan) -> TreeReport:
    channels = sum(tree.channels for tree in plan.trees)
    return {
        "nodes": plan.nodes,
        "differing_weights": plan.differing_weights,
        "planes": plan.additions,
        "cost_ratio": round(plan.cost_ratio, 4),
        "synthetic_nodes": plan.nodes - channels,
        "depth": max(int(np.max(tree.depths)) for tree in plan.trees),
    }
