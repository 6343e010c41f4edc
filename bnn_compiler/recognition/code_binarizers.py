"""From an activation of a few levels to codes: which thresholds, of which tensor, make them?

1. A monotone chain (``monotone_chains``) is packed from the tensor it starts at, with its exact thresholds; a chain of
   two values is an ordinary binariser. The start is the farthest tensor such that what lies between is read by the
   chain alone (else it has to be made anyway) and that ONNX names (else the layer could not be verified).
2. Any other activation that holds few values is packed from these values, with thresholds halfway between.

Levels become codes in ``code_lattice``; a set of values that fits no lattice stays float.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of, op_name, static_shape
from bnn_compiler.layers import BinarySpec
from bnn_compiler.recognition.binarizers import Binarizer, two_valued_alphabet
from bnn_compiler.recognition.code_lattice import MOST_CODE
from bnn_compiler.recognition.monotone_chains import Levels, MonotoneChains
from bnn_compiler.recognition.value_sets import ValueSet

_MOVES = ("relax.permute_dims", "relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze")


class CodePlanner:
    """Plans the activations of one function; ``uses`` counts the readers of each variable."""

    def __init__(
        self,
        bindings: Mapping[Var, relax.Expr],
        chains: MonotoneChains,
        uses: Counter[Var],
        is_named: Callable[[Var], bool],
    ) -> None:
        self._bindings = bindings
        self._chains = chains
        self._uses = uses
        self._is_named = is_named

    def plan(self, activation: relax.Expr, known: ValueSet | None, channel_axis: int | None) -> Binarizer | None:
        """How ``activation`` becomes codes (or bits); None if it holds too many values.

        ``channel_axis`` is the axis along which thresholds may vary, None where they may not.
        """
        if not isinstance(activation, Var) or dtype_of(activation) != "float32":
            return None
        return self._from_chain(activation, channel_axis) or _from_values(activation, known)

    def _from_chain(self, activation: Var, channel_axis: int | None) -> Binarizer | None:
        """Rule 1."""
        inner, moves = activation, list[Call]()
        while isinstance(call := self._bindings.get(inner), Call) and op_name(call) in _MOVES:
            if not isinstance(call.args[0], Var):
                return None
            moves.insert(0, call)
            inner = call.args[0]
        start = self._start_of(inner)
        levels = self._chains.levels(inner, start, MOST_CODE + 1)
        if levels is None or len(levels.values) < 2:
            return None
        if levels.axis is not None and (moves or levels.axis != channel_axis):
            return None
        trailing = () if levels.axis is None else (1,) * (len(static_shape(inner) or ()) - levels.axis - 1)
        return _from_levels(start, levels, tuple(moves), trailing)

    def from_earlier(self, plan: Binarizer, channel_axis: int | None) -> Binarizer:
        """``plan``, which compares a tensor of a few levels, as a comparison of what these are made from (rule 1).

        The first level on the other side of the threshold starts at a known number of the chain's start.
        """
        if plan.threshold.size > 1 or plan.alphabet in ("ternary", "codes") or plan.direction is not None:
            return plan
        start = self._start_of(plan.base)
        levels = None if start.same_as(plan.base) else self._chains.levels(plan.base, start, MOST_CODE + 1)
        if levels is None or (levels.axis is not None and (plan.moves or levels.axis != channel_axis)):
            return plan
        passed = [_compared(np.float32(value), plan.predicate, plan.threshold) for value in levels.values]
        switches = [i for i in range(1, len(passed)) if passed[i] != passed[i - 1]]
        if len(switches) != 1:
            return plan
        # Where the upper levels pass, x >= t does; else x < t does. NaN goes with the top level or with the lowest.
        names = ("nlt", "ge") if passed[-1] else ("lt", "nge")
        rank = len(static_shape(plan.base) or ())
        threshold = levels.thresholds[switches[0] - 1]
        direction = None if np.all(levels.direction == 1) else levels.direction.astype(np.float32)
        trailing = () if levels.axis is None else (-1, *(1,) * (rank - levels.axis - 1))
        return replace(
            plan,
            base=start,
            threshold=threshold.reshape(trailing),
            direction=direction,
            predicate=names[0] if levels.nan_is_top else names[1],
        )

    def _start_of(self, variable: Var) -> Var:
        """The start of rule 1."""
        for start, between in self._chains.starts(variable):
            inside = Counter(operand for node in (*between, variable) for operand in set(self._chains.operands(node)))
            private = all(self._uses[node] == inside[node] for node in between)
            if private and dtype_of(start) == "float32" and self._is_named(start):
                return start
        return variable


def _compared(value: np.float32, predicate: str, threshold: Array) -> bool:
    """Whether ``value``, a number, passes."""
    compare: dict[str, Callable[[Array, Array], Any]] = {
        "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less,
        "eq": np.equal, "ne": np.not_equal,
    }  # fmt: skip
    negated = predicate.startswith("n") and predicate != "ne"
    return bool(compare[predicate[1:] if negated else predicate](np.asarray(value), threshold)) != negated


def _from_levels(start: Var, levels: Levels, moves: tuple[Call, ...], trailing: tuple[int, ...]) -> Binarizer:
    """``trailing`` are the axes behind the channels, of extent 1 in the threshold of a two-valued activation."""
    low, high = levels.values[0], levels.values[-1]
    direction = None if np.all(levels.direction == 1) else levels.direction.astype(np.float32)
    thresholds = levels.thresholds[:, 0] if levels.axis is None else levels.thresholds
    predicate = "nlt" if levels.nan_is_top else "ge"
    if len(levels.values) > 2:
        return Binarizer(
            start, thresholds, predicate, low, high, "codes", moves, levels=levels.values, direction=direction
        )
    threshold = thresholds[0].reshape(() if levels.axis is None else (-1, *trailing))
    alphabet = two_valued_alphabet(low, high)
    if alphabet == "unsigned" and high == 0.0:  # the bit is 1 where the value is not 0
        low, high, predicate = 0.0, low, "lt" if levels.nan_is_top else "nge"
    return Binarizer(start, threshold, predicate, low, high, alphabet, moves, direction=direction)


def _from_values(activation: Var, known: ValueSet | None) -> Binarizer | None:
    """Rule 2."""
    if known is None or not 2 < len(known.values) <= MOST_CODE + 1:
        return None
    values = tuple(sorted(known.values))
    middles = np.asarray([(low + high) / 2 for low, high in itertools.pairwise(values)], np.float32)
    return Binarizer(activation, middles, "ge", values[0], values[-1], "codes", levels=values, rounded=known.rounded)


def describe_codes(spec: BinarySpec) -> str:
    """The levels of a layer's activation and how many bits hold them, for the report."""
    assert spec.lattice is not None
    shown = ", ".join(f"{value + 0.0:g}" for value in spec.levels[:4]) + (", …" if len(spec.levels) > 4 else "")
    return f"activations take the {len(spec.levels)} values {shown}: codes of {spec.lattice.bits} bits"
