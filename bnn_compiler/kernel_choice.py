"""Which kernels a binary layer gets: popcount, or bit-sliced along a channel tree.

``popcount`` and ``bitsliced`` force one (where it takes the layer). ``auto`` takes the one that the cost model predicts
to be faster; a tree is only solved where the bit-sliced kernels would win with an optimistic one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bnn_compiler.bitsliced_layer import (
    BitslicedPlan,
    TreePlanning,
    bitsliced_kernels,
    can_be_bitsliced,
    optimistic_nanoseconds,
    plan_bitsliced,
)
from bnn_compiler.cost_model import CostModel, load_cost_model
from bnn_compiler.layer_kernels import LayerKernels, alphabet_of, popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.options import Algorithm
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.popcount import planes, words_per

#: The bit-sliced prediction errs by up to this factor (``benchmarks/calibrate_cost_model.py`` prints the errors), the
#: popcount one by 3 %: so bit-sliced has to be predicted faster by more.
_MODEL_ERROR = 1.35


@dataclass(frozen=True)
class ChoiceOptions:
    """What the choice may consider."""

    algorithm: Algorithm = "auto"
    planning: TreePlanning = field(default_factory=TreePlanning)


@dataclass(frozen=True, eq=False)
class Choice:
    """The kernels of a layer, and what the report says of how they were chosen."""

    kernels: LayerKernels
    details: dict[str, Any]


def choose_kernels(spec: BinarySpec, isa: Isa, options: ChoiceOptions) -> Choice:
    """Choose and build the kernels of one layer."""
    if options.algorithm == "popcount" or not can_be_bitsliced(spec, isa):
        return Choice(popcount_kernels(spec, isa), {"source": "forced" if options.algorithm == "popcount" else "only"})
    model = load_cost_model(isa)
    if options.algorithm == "bitsliced":
        plan = plan_bitsliced(spec, isa, model, options.planning)
        return Choice(bitsliced_kernels(spec, isa, plan), {"source": "forced", "tree": _tree_report(plan)})
    popcount = _popcount_nanoseconds(spec, model)
    details: dict[str, Any] = {"source": "predicted", "popcount_us": round(popcount / 1e3, 2)}
    if optimistic_nanoseconds(spec, isa, model) * _MODEL_ERROR >= popcount:
        return Choice(popcount_kernels(spec, isa), details)
    plan = plan_bitsliced(spec, isa, model, options.planning)
    bitsliced = plan.nanoseconds(model)
    details |= {"bitsliced_us": round(bitsliced / 1e3, 2), "tree": _tree_report(plan)}
    if bitsliced * _MODEL_ERROR >= popcount:
        return Choice(popcount_kernels(spec, isa), details)
    return Choice(bitsliced_kernels(spec, isa, plan), details)


def _popcount_nanoseconds(spec: BinarySpec, model: CostModel) -> float:
    assert spec.geometry is not None
    words = planes(alphabet_of(spec)) * words_per(spec.geometry.group_in_channels)
    return model.popcount_ns(spec.geometry, words)


def _tree_report(plan: BitslicedPlan) -> dict[str, Any]:
    channels = sum(tree.channels for tree in plan.trees)
    return {
        "nodes": plan.nodes,
        "differing_weights": plan.differing_weights,
        "planes": plan.additions,
        "cost_ratio": round(plan.cost_ratio, 4),
        "synthetic_nodes": plan.nodes - channels,
        "depth": max(int(np.max(tree.depths)) for tree in plan.trees),
    }
