"""Plain trees by OR-Tools CP-SAT: a proof for small layers, an improvement for larger ones.

Model: a literal says that channel j has level k and parent i; one is true per channel, and its parent has level k - 1.
The Lagrangian bound has already ruled most literals out: a tree that takes a choice costs at least the bound plus the
choice's slack, so where that is no better than the known tree the literal is left out, without loss. What remains is
small, so the solver is left with what it is good at.

One worker and a limit in deterministic time: with two workers, or seconds, a seed would not reproduce the result.
(``highspy`` must not be installed beside ``ortools``: each brings its own HiGHS, and loading both breaks both.)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .bounds import UNITS, PlainBound
from .kernels.lagrangian import evaluate, slack
from .problem import Distances, Effort

Ints = npt.NDArray[np.int64]

_MOST_CHANNELS: dict[Effort, int] = {"fast": 0, "default": 0, "thorough": 256}
_DETERMINISTIC_TIME = 30.0
# Python builds the model at about 10^5 literals a second.
_MOST_LITERALS = 60_000


@dataclass(frozen=True, eq=False)
class Proof:
    """Parents (-1 the root) no worse than those given, and a lower bound on any tree's edges."""

    parents: Ints
    bound: int


def worth_proving(channels: int, effort: Effort) -> bool:
    """Whether CP-SAT has a chance within the effort."""
    return channels <= _MOST_CHANNELS[effort]


def improve_exactly(
    distances: Distances, to_root: Ints, parents: Ints, bound: PlainBound, seed: int,
    time_limit: float = _DETERMINISTIC_TIME,
) -> Proof:  # fmt: skip
    """Search for a tree better than ``parents``, or a proof that there is none; ``time_limit`` is in CP-SAT's unit."""
    from ortools.sat.python import cp_model  # noqa: PLC0415

    assert bound.prices is not None, "the Lagrangian bound says which choices are left"
    cost = int(np.where(parents < 0, to_root, distances[np.arange(parents.size), parents]).sum())
    base = evaluate(distances, to_root, bound.prices, UNITS)
    left = np.argwhere(base + slack(distances, to_root, bound.prices, UNITS) <= (cost - 1) * UNITS)
    if left.shape[0] > _MOST_LITERALS:
        return Proof(parents, bound.value)
    model = cp_model.CpModel()
    at_level: dict[tuple[int, int], list[cp_model.IntVar]] = defaultdict(list)
    children: list[tuple[int, int, int, cp_model.IntVar]] = []
    for k, parent, child in left.tolist():
        literal = model.new_bool_var("")
        at_level[child, k].append(literal)
        children.append((k, parent, child, literal))
    has_level = {key: model.new_bool_var("") for key in at_level}
    for key, literals in at_level.items():
        model.add(sum(literals) == has_level[key])
    for child in range(to_root.size):
        model.add_exactly_one(literal for (node, _), literal in has_level.items() if node == child)
    terms = []
    for k, parent, child, literal in children:
        terms.append(int(to_root[child] if k == 0 else distances[child, parent]) * literal)
        if k > 0:
            above = has_level.get((parent, k - 1))
            if above is None:
                model.add_bool_and(~literal)
            else:
                model.add_implication(literal, above)
    total = sum(terms)
    model.add(total <= cost - 1)
    model.add(total >= bound.value)
    model.minimize(total)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = seed % (1 << 31)
    solver.parameters.max_deterministic_time = time_limit
    solver.parameters.linearization_level = 2
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return Proof(parents, cost)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        better = np.full(to_root.size, -1)
        for k, parent, child, literal in children:
            if k > 0 and solver.boolean_value(literal):
                better[child] = parent
        return Proof(better, min(round(solver.objective_value), _up(solver.best_objective_bound)))
    # The model holds only trees better than the known one, so its bound is no bound beyond that.
    return Proof(parents, max(bound.value, min(cost, _up(solver.best_objective_bound))))


def _up(value: float) -> int:
    # The solver's bound is a whole number in floating point, up to its rounding.
    return int(np.ceil(value - 1e-3))
