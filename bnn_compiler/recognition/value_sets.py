"""Which finite set of values can a tensor hold, and as which function of which float tensor?

The analysis follows the function's definitions. Binarisers are step functions (``step_function``) that start at a cut
(``threshold_cuts``), and element-wise operators are evaluated on them value by value. Where a tensor is no step
function of one base (a max-pool or a concatenation of signs), its plain set of values is still known.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import (
    Array,
    ConstantEvaluator,
    dtype_of,
    elementwise_operands,
    evaluate_elementwise,
    is_elementwise,
    op_name,
    static_shape,
)
from bnn_compiler.recognition.element_selection import Functions, selected_operands
from bnn_compiler.recognition.intervals import Interval, apply_to_intervals
from bnn_compiler.recognition.mixture_analysis import MixtureAnalysis
from bnn_compiler.recognition.region_values import RegionValues
from bnn_compiler.recognition.residue import COMPARISONS, compared_tensors, find_residue
from bnn_compiler.recognition.step_function import StepFunction, combine
from bnn_compiler.recognition.threshold_cuts import spatial_padding, threshold_cut
from bnn_compiler.recognition.value_bounds import ValueBounds

# A set larger than this is no alphabet of a few-bit activation; 16 = 4 bits.
MAX_SET_SIZE = 16
_MOST_SIGNS = 3  # -1, 0, 1
_MOVES = {"relax.permute_dims", "relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze"}
_ROUNDING = {"relax.round", "relax.floor", "relax.ceil"}
# Of NaN they make NaN: what is undefined stays so.
_PROPAGATES_NAN = {"relax.negative", "relax.multiply", "relax.divide", "relax.add", "relax.subtract"}


@dataclass(frozen=True, eq=False)
class ValueSet:
    """The finite set a tensor draws its values from, and the step function behind it where there is one."""

    values: frozenset[float]
    steps: StepFunction | None = None
    rounded: bool = False
    undefined: bool = False

    @classmethod
    def of_steps(cls, steps: StepFunction) -> ValueSet:
        """The set of a step function's values."""
        return cls(steps.values, steps, steps.rounded, steps.undefined)

    @property
    def is_exact(self) -> bool:
        """Whether every number that the model computes here is one of the values, so that more can be derived."""
        return not self.rounded and not self.undefined

    def is_exact_under(self, name: str) -> bool:
        """Whether operator ``name`` of the values gives every number that the model computes behind it."""
        return not self.rounded and (name in _PROPAGATES_NAN or not self.undefined)


class ValueSetAnalysis:
    """Value sets of the variables of one Relax function (``bindings``: its variables' definitions).

    ``plus_signs`` are results of ``Sign`` that count as +1 at zero, ``kept_signs`` those whose 0 is common though
    nothing in front of them says so (``sign_zeros``).
    """

    def __init__(
        self,
        bindings: Mapping[Var, relax.Expr],
        functions: Functions | None = None,
        plus_signs: AbstractSet[Var] = frozenset(),
        kept_signs: AbstractSet[Var] = frozenset(),
    ) -> None:
        self._bindings = bindings
        self.plus_signs = plus_signs
        self.kept_signs = kept_signs
        self.functions: Functions = functions or {}
        self.constants = ConstantEvaluator(bindings)
        self.bounds = ValueBounds(self)
        self.mixtures = MixtureAnalysis(self)
        self._known: dict[Var, ValueSet | None] = {}
        # Where variables are defined, and those that are known, by that, the last one first.
        self._position = {variable: index for index, variable in enumerate(bindings)}
        self._latest: list[tuple[int, int, Var]] = []
        # The tensors that are compared in the element-wise chain above a variable (``residue``).
        self.compared: dict[Var, tuple[Var, ...]] = {}
        self._regions: dict[tuple[Var, Interval, bool], RegionValues] = {}

    def of(self, expr: relax.Expr) -> ValueSet | None:
        """The value set of ``expr``, or None if it may hold any float."""
        if not isinstance(expr, Var):
            return self._of_constant(expr)
        # Operands first, on a stack of our own: chains of operators may be longer than Python's.
        pending = [expr]
        while pending:
            current = pending[-1]
            waiting = [] if current in self._known else self._unknown_sources(current)
            pending += waiting
            if not waiting:
                pending.pop()
                if current not in self._known:
                    heapq.heappush(self._latest, (-self._position.get(current, -1), id(current), current))
                    self._known[current] = None  # SSA has no cycles; the entry bounds the recursion all the same
                    self._known[current] = self._of_variable(current)
        return self._known[expr]

    def _unknown_sources(self, variable: Var) -> list[Var]:
        """The variables whose sets the variable's own will be made from, as far as they are not known yet."""
        definition = self._bindings.get(variable)
        sources = [definition] if isinstance(definition, Var) else self._sources(definition)
        return [source for source in sources if isinstance(source, Var) and source not in self._known]

    def _sources(self, definition: relax.Expr | None) -> Sequence[relax.Expr]:
        selected = None if definition is None else selected_operands(definition, self.functions)
        if selected is not None or not isinstance(definition, Call):
            return selected or ()
        if is_elementwise(definition):
            return elementwise_operands(definition)
        return list(definition.args[:1]) if op_name(definition) == "relax.nn.pad" else ()

    def _of_variable(self, variable: Var) -> ValueSet | None:
        definition = self._bindings.get(variable)
        if isinstance(definition, Var):
            known = self.of(definition)
            self.compared[variable] = self.compared.get(definition, ())
            return known
        if not isinstance(definition, Call | relax.TupleGetItem):
            return None
        known = self._of_definition(definition)
        if known is not None and variable in self.plus_signs:
            known = _positive_at_zero(known)
        if not isinstance(definition, Call) or not is_elementwise(definition):
            return known
        self.compared[variable] = compared_tensors(definition, self)
        # Operands of few values each are combined as if they were independent: s - clip(x) + clip(x) may be fewer.
        if known is None or (known.steps is None and len(known.values) > _MOST_SIGNS):
            residue = find_residue(variable, self)
            if residue is not None and (known is None or 1 < len(residue.values) <= _MOST_SIGNS):
                known = ValueSet.of_steps(residue)
        return known

    def forget_from(self, variable: Var) -> None:
        """Drop what is known of ``variable`` and of all that is defined after it: a ``Sign`` was decided there."""
        first = self._position[variable]
        while self._latest and -self._latest[0][0] >= first:
            later = heapq.heappop(self._latest)[2]
            self._known.pop(later, None)
            self.compared.pop(later, None)
            self.bounds.forget(later)
        self._regions.clear()
        self.mixtures.forget()

    def in_region(self, base: Var, where: Interval, *, is_point: bool) -> RegionValues:
        """Values while ``base`` lies in ``where``; shared by all who ask, so that no operator is evaluated twice."""
        key = (base, where, is_point)
        if key not in self._regions:
            self._regions[key] = RegionValues(self, base, where, is_point=is_point)
        return self._regions[key]

    def definition(self, expr: relax.Expr) -> relax.Expr | None:
        """What ``expr`` is bound to, through plain renamings."""
        seen: relax.Expr | None = expr
        while isinstance(seen, Var):
            seen = self._bindings.get(seen)
        return seen

    def _of_constant(self, expr: relax.Expr) -> ValueSet | None:
        array = self.constants.value(expr)
        if array is None or array.size > 1 << 16:
            return None
        distinct = frozenset(float(value) for value in np.unique(array)[: MAX_SET_SIZE + 1])
        return ValueSet(distinct) if len(distinct) <= MAX_SET_SIZE else None

    def _of_definition(self, definition: relax.Expr) -> ValueSet | None:
        known = self._of_call(definition) if isinstance(definition, Call) else None
        if known is None and (selected := selected_operands(definition, self.functions)) is not None:
            known = self._union([self.of(operand) for operand in selected])
        if known is None and dtype_of(definition) == "bool":
            known = ValueSet(frozenset({0.0, 1.0}))
        return known

    def _of_call(self, call: Call) -> ValueSet | None:
        name = op_name(call)
        if name in _MOVES:
            return self._move(call)
        if name == "relax.nn.pad":
            return self._pad(call)
        if is_elementwise(call):
            steps = self._steps(call)
            if steps is not None:
                return ValueSet.of_steps(steps)
            known = self._combine_sets(call, name) or self._whole_numbers(call, name)
            if known is None and name == "relax.sign" and not dtype_of(call).startswith("float"):
                known = ValueSet(frozenset({-1.0, 0.0, 1.0}))
            return known
        return None

    # -- element-wise operators -----------------------------------------------------------------------------------

    def _steps(self, call: Call) -> StepFunction | None:
        known = [self.of(arg) for arg in elementwise_operands(call)]
        functions = [entry.steps if entry else None for entry in known]
        if not any(functions):
            return threshold_cut(call, self)
        first = next(function for function in functions if function is not None)
        if not all(entry.is_exact_under(op_name(call)) for entry in known if entry is not None):
            return None  # evaluated from the base upwards instead (``residue``)
        operands: list[StepFunction | Array] = []
        for arg, function in zip(elementwise_operands(call), functions, strict=True):
            if function is not None:
                if not first.same_partition(function):
                    return None
                operands.append(function)
                continue
            array = self.constants.value(arg)
            if array is None or array.size == 0 or not np.all(array == array.flat[0]):
                return None
            operands.append(np.asarray(array.flat[0], array.dtype))
        arrays_of = [
            arg for arg, function in zip(elementwise_operands(call), functions, strict=True) if function is not None
        ]
        if any(static_shape(arg) != static_shape(call) for arg in arrays_of):
            return None  # the operator broadcasts the step function: no longer one element to one element
        result = combine(lambda arguments: evaluate_elementwise(call, arguments), operands)
        return replace(result, undefined=any(entry.undefined for entry in known if entry is not None))

    def _combine_sets(self, call: Call, name: str) -> ValueSet | None:
        """Cross product of the operands' sets; a comparison of anything is {0, 1}."""
        args = elementwise_operands(call)
        sets = [self.of(arg) for arg in args]
        known = [entry for entry in sets if entry is not None]
        exact = all(entry.is_exact_under(name) for entry in known)
        if not exact and name not in COMPARISONS:
            return None
        if name == "relax.where":
            choices = [entry.values for entry in sets[1:] if entry is not None]
            return _bounded(frozenset().union(*choices)) if len(choices) == 2 else None
        if len(known) < len(sets) or not exact:
            return ValueSet(frozenset({0.0, 1.0})) if name in COMPARISONS else None
        dtypes = [dtype_of(arg) for arg in args]
        # x + x is no sum of two independent values.
        repeated = [(i, j) for j in range(len(args)) for i in range(j) if args[i].same_as(args[j])]
        results = set()
        with np.errstate(all="ignore"):
            for choice in itertools.product(*(sorted(entry.values) for entry in known)):
                if any(choice[i] != choice[j] for i, j in repeated):
                    continue
                operands = [np.asarray(value, dtype) for value, dtype in zip(choice, dtypes, strict=True)]
                results.add(float(evaluate_elementwise(call, operands)))
        combined = _bounded(frozenset(results))
        return combined and replace(combined, undefined=any(entry.undefined for entry in known))

    def _whole_numbers(self, call: Call, name: str) -> ValueSet | None:
        """Rounding a bounded tensor leaves few integers."""
        if name not in _ROUNDING or not isinstance(call.args[0], Var):
            return None
        inner = self.bounds.of(call.args[0])
        if not inner.is_bounded or inner.high - inner.low > MAX_SET_SIZE:
            return None
        low, high = apply_to_intervals(name, [inner], dtype_of(call))
        return _bounded(frozenset(float(value) for value in range(int(low), int(high) + 1)))

    # -- operators that move elements -----------------------------------------------------------------------------

    def _move(self, call: Call) -> ValueSet | None:
        inner = self.of(call.args[0])
        if inner is None or inner.steps is None or inner.steps.padding is not None:
            return inner and replace(inner, steps=None)
        return replace(inner, steps=replace(inner.steps, moves=(*inner.steps.moves, call)))

    def _pad(self, call: Call) -> ValueSet | None:
        inner = self.of(call.args[0])
        padding = spatial_padding(call)
        if inner is None or getattr(call.attrs, "pad_mode", "constant") != "constant":
            return None
        values = inner.values | {float(call.attrs.pad_value)}
        if padding is None or inner.steps is None or inner.steps.padding is not None:
            padded = _bounded(values, rounded=inner.rounded)
            return padded and replace(padded, undefined=inner.undefined)
        return replace(inner, values=values, steps=replace(inner.steps, padding=padding))

    def _union(self, sets: Sequence[ValueSet | None]) -> ValueSet | None:
        """What a selection of elements of tensors with these sets may hold."""
        known = [entry for entry in sets if entry is not None]
        if not known or len(known) < len(sets):
            return None
        values = frozenset().union(*(entry.values for entry in known))
        union = _bounded(values, rounded=any(entry.rounded for entry in known))
        return union and replace(union, undefined=any(entry.undefined for entry in known))


def _positive_at_zero(known: ValueSet) -> ValueSet:
    """What ``Sign`` gives where it counts as +1 at zero; of a pad that it sees, zeros stay zeros."""
    steps = known.steps
    if steps is None:
        return ValueSet(known.values - {0.0} | ({1.0} if 0.0 in known.values else set()))
    return ValueSet.of_steps(replace(steps, equal=None if steps.equal is None else np.ones_like(steps.equal)))


def _bounded(values: frozenset[float], *, rounded: bool = False) -> ValueSet | None:
    finite = len(values) <= MAX_SET_SIZE and all(math.isfinite(value) for value in values)
    return ValueSet(values, rounded=rounded) if finite else None
