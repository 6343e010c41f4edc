"""Which finite set of values can a tensor hold, and as which function of which float tensor?

Every spelling of a binariser (``Sign``, ``Where(x >= t, a, b)``, ``Cast(x > t)·2 − 1``, ``Sign(Sign(x) + 0.1)`` …) is an
element-wise **step function** of one float tensor x and one threshold t: it has one value where x < t, one where x = t,
one where x > t and one where x is NaN. Element-wise operators act on step functions value by value, so the analysis
*evaluates* the model's own operators on these four representatives instead of recognising their text:

    Sign(x)             t = 0:  −1,  0, +1, NaN
    Sign(x) + 0.1               −0.9, 0.1, 1.1, NaN
    Sign(Sign(x) + 0.1)         −1, +1, +1, NaN          that is: +1 where x >= 0

A region that x cannot reach is ``None`` (x = ReLU(…) is never below 0, so its sign is a {0, 1} tensor). Where a tensor is
no step function of one base (a max-pool or a concatenation of signs), its plain set of values is still known.

``soft_zero``: the only way to the value 0 is ``Sign(0)`` of a general float, which binary engines take as +1.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax
from tvm.ir import Call, Expr, Var

from bnn_compiler.constants import (
    BINARY,
    UNARY,
    Array,
    ConstantEvaluator,
    apply_elementwise,
    dtype_of,
    op_name,
    prim_value,
    static_shape,
)
from bnn_compiler.value_bounds import lower_bound, reaches_value

# A set larger than this is no alphabet of a few-bit activation; 16 = 4 bits.
MAX_SET_SIZE = 16
_COMPARISONS = {"relax.greater", "relax.greater_equal", "relax.less", "relax.less_equal", "relax.equal", "relax.not_equal"}
_MOVES = {"relax.permute_dims", "relax.reshape", "relax.flatten", "relax.expand_dims", "relax.squeeze"}
_SUBSETS = {"relax.nn.max_pool1d", "relax.nn.max_pool2d", "relax.nn.max_pool3d", "relax.strided_slice", "relax.take"}
_KEEPS_SOFT_ZERO = {"relax.negative", "relax.multiply", "relax.divide", "relax.astype"}

Region = np.generic | None


@dataclass(frozen=True)
class Padding:
    """Constant spatial padding (top, left, bottom, right) of an NCHW tensor by ``value``."""

    widths: tuple[int, int, int, int]
    value: float


@dataclass(frozen=True, eq=False)
class StepFunction:
    """values[region of base relative to threshold], then ``moves``, then ``padding``; see the module's docstring.

    ``base`` is a float variable; ``threshold`` broadcasts against it; ``moves`` are the shape-changing calls between the
    base and this tensor, outermost last.
    """

    base: Var
    threshold: Array
    below: Region
    equal: Region
    above: Region
    nan: Region
    moves: tuple[Call, ...] = ()
    padding: Padding | None = None
    soft_zero: bool = False

    @property
    def regions(self) -> tuple[Region, Region, Region, Region]:
        """Values below, at, above the threshold and for NaN; None where unreachable."""
        return (self.below, self.equal, self.above, self.nan)

    @property
    def values(self) -> frozenset[float]:
        """All values that a number (not NaN) can lead to, the padding's included."""
        reached = {float(value) for value in self.regions[:3] if value is not None}
        return frozenset(reached | ({self.padding.value} if self.padding else set()))

    def same_partition(self, other: StepFunction) -> bool:
        """Whether both cut the same tensor at the same threshold, so that they can be combined value by value."""
        return (
            self.base.same_as(other.base)
            and np.array_equal(self.threshold, other.threshold)
            and len(self.moves) == len(other.moves)
            and all(a.same_as(b) for a, b in zip(self.moves, other.moves, strict=True))
            and (self.padding is None) == (other.padding is None)
            and (self.padding is None or other.padding is None or self.padding.widths == other.padding.widths)
        )


@dataclass(frozen=True, eq=False)
class ValueSet:
    """The finite set a tensor draws its values from, and the step function behind it where there is one."""

    values: frozenset[float]
    steps: StepFunction | None = None
    soft_zero: bool = False


class ValueSetAnalysis:
    """Value sets of the variables of one Relax function (``bindings``: its variables' definitions)."""

    def __init__(self, bindings: Mapping[Var, relax.Expr]) -> None:
        self._bindings = bindings
        self.constants = ConstantEvaluator(bindings)
        self._known: dict[Var, ValueSet | None] = {}

    def of(self, expr: relax.Expr) -> ValueSet | None:
        """The value set of ``expr``, or None if it may hold any float."""
        if not isinstance(expr, Var):
            return self._of_constant(expr)
        if expr not in self._known:
            self._known[expr] = None  # a cycle cannot occur in SSA; the entry bounds the recursion all the same
            definition = self._bindings.get(expr)
            if isinstance(definition, Var):
                self._known[expr] = self.of(definition)
            elif isinstance(definition, Call):
                self._known[expr] = self._of_call(definition)
        return self._known[expr]

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

    def _of_call(self, call: Call) -> ValueSet | None:
        name = op_name(call)
        if name in _MOVES:
            return self._move(call)
        if name == "relax.nn.pad":
            return self._pad(call)
        if name in _SUBSETS:
            inner = self.of(call.args[0])
            return inner and ValueSet(inner.values, soft_zero=inner.soft_zero)
        if name == "relax.concat":
            return self._concat(call)
        if name in UNARY or name in BINARY or name in {"relax.where", "relax.clip", "relax.astype"}:
            steps = self._steps(call, name)
            if steps is not None:
                return ValueSet(steps.values, steps, steps.soft_zero)
            return self._combine_sets(call, name)
        return None

    # -- element-wise operators -----------------------------------------------------------------------------------

    def _steps(self, call: Call, name: str) -> StepFunction | None:
        known = [self.of(arg) for arg in _tensor_args(call)]
        functions = [entry.steps if entry else None for entry in known]
        if not any(functions):
            return self._new_partition(call, name)
        first = next(function for function in functions if function is not None)
        operands: list[StepFunction | np.generic] = []
        for arg, function in zip(_tensor_args(call), functions, strict=True):
            if function is not None:
                if not first.same_partition(function):
                    return None
                operands.append(function)
                continue
            array = self.constants.value(arg)
            if array is None or array.size == 0 or not np.all(array == array.flat[0]):
                return None
            operands.append(array.flat[0])
        arrays_of = [arg for arg, function in zip(_tensor_args(call), functions, strict=True) if function is not None]
        if any(static_shape(arg) != static_shape(call) for arg in arrays_of):
            return None  # the operator broadcasts the step function: no longer one element to one element
        return _map_regions(call, name, first, operands)

    def _new_partition(self, call: Call, name: str) -> StepFunction | None:
        """``Sign`` or a comparison with a constant cuts a float tensor in two."""
        if name == "relax.sign":
            return self._cut(call, call.args[0], np.zeros((), dtype_of(call.args[0]) or "float32"), name, flipped=False)
        if name not in _COMPARISONS:
            return None
        for data, limit, flipped in ((call.args[0], call.args[1], False), (call.args[1], call.args[0], True)):
            threshold = self.constants.value(limit)
            if threshold is None or self.constants.value(data) is not None:
                continue
            if static_shape(data) != static_shape(call) or not np.issubdtype(threshold.dtype, np.floating):
                return None
            if threshold.size and np.all(threshold == threshold.flat[0]):
                threshold = threshold.flat[0] * np.ones((), threshold.dtype)
            return self._cut(call, data, threshold, name, flipped=flipped)
        return None

    def _cut(self, call: Call, data: relax.Expr, threshold: Array, name: str, *, flipped: bool) -> StepFunction | None:
        if not isinstance(data, Var) or not np.all(np.isfinite(threshold)):
            return None
        base, padding = self._through_padding(data, threshold)
        one = np.ones((), threshold.dtype)[()]
        representatives = (-one, 0 * one, one, np.full((), np.nan, threshold.dtype)[()])
        with np.errstate(all="ignore"):

            def evaluate(value: np.generic) -> np.generic:
                if name == "relax.sign":
                    return np.sign(value)
                operands = [np.asarray(0 * one), np.asarray(value)] if flipped else [np.asarray(value), np.asarray(0 * one)]
                return apply_elementwise(name, operands)[()]

            below, equal, above, nan = (evaluate(value) for value in representatives)
            pad = padding and replace(padding, value=float(evaluate(np.asarray(padding.value - threshold, threshold.dtype)[()])))
        bound = lower_bound(base, self._bindings)
        reachable_below = bound < float(np.max(threshold))
        reachable_equal = bound <= float(np.max(threshold))
        soft = name == "relax.sign" and reachable_equal
        if name == "relax.sign" and reachable_equal:
            reached = reaches_value(base, 0.0, self)
            if reached is not None:  # an integer-valued convolution: known exactly, so 0 is honoured or impossible
                soft, reachable_equal = False, reached
        return StepFunction(
            base,
            threshold,
            below if reachable_below else None,
            equal if reachable_equal else None,
            above,
            nan,
            padding=pad,
            # Below 0 never reached: Sign is then a {0, 1} activation, and its 0 is a real 0.
            soft_zero=soft and reachable_below,
        )

    def _through_padding(self, data: Var, threshold: Array) -> tuple[Var, Padding | None]:
        """A constant pad before the cut is a pad of the cut's value after it (exact, element by element)."""
        definition = self.definition(data)
        if op_name(definition) != "relax.nn.pad" or threshold.size != 1:
            return data, None
        padding = _spatial_padding(definition)
        inner = definition.args[0]
        return (inner, padding) if padding is not None and isinstance(inner, Var) else (data, None)

    def _combine_sets(self, call: Call, name: str) -> ValueSet | None:
        """Cross product of the operands' sets; a comparison of anything is {0, 1}."""
        args = _tensor_args(call)
        sets = [self.of(arg) for arg in args]
        if name == "relax.where":
            choices = [entry.values for entry in sets[1:] if entry is not None]
            return _bounded(frozenset().union(*choices)) if len(choices) == 2 else None
        known = [entry for entry in sets if entry is not None]
        if len(known) < len(sets):
            return ValueSet(frozenset({0.0, 1.0})) if name in _COMPARISONS else None
        dtypes = [dtype_of(arg) for arg in args]
        results = set()
        with np.errstate(all="ignore"):
            for choice in itertools.product(*(sorted(entry.values) for entry in known)):
                operands = [np.asarray(value, dtype) for value, dtype in zip(choice, dtypes, strict=True)]
                results.add(float(_evaluate(call, name, operands)))
        soft = name in _KEEPS_SOFT_ZERO and sum(entry.soft_zero for entry in known) == 1
        return _bounded(frozenset(results), soft_zero=soft)

    # -- operators that move elements -----------------------------------------------------------------------------

    def _move(self, call: Call) -> ValueSet | None:
        inner = self.of(call.args[0])
        if inner is None or inner.steps is None or inner.steps.padding is not None:
            return inner and ValueSet(inner.values, soft_zero=inner.soft_zero)
        steps = replace(inner.steps, moves=(*inner.steps.moves, call))
        return ValueSet(inner.values, steps, inner.soft_zero)

    def _pad(self, call: Call) -> ValueSet | None:
        inner = self.of(call.args[0])
        padding = _spatial_padding(call)
        if inner is None or getattr(call.attrs, "pad_mode", "constant") != "constant":
            return None
        values = inner.values | {float(call.attrs.pad_value)}
        if padding is None or inner.steps is None or inner.steps.padding is not None:
            return _bounded(values, soft_zero=inner.soft_zero and float(call.attrs.pad_value) != 0)
        return ValueSet(values, replace(inner.steps, padding=padding), inner.soft_zero)

    def _concat(self, call: Call) -> ValueSet | None:
        parts = call.args[0]
        fields = parts.fields if isinstance(parts, relax.Tuple) else []
        sets = [self.of(field) for field in fields]
        known = [entry for entry in sets if entry is not None]
        if not known or len(known) < len(sets):
            return None
        hard_zero = any(0.0 in entry.values and not entry.soft_zero for entry in known)
        soft = any(entry.soft_zero for entry in known) and not hard_zero
        return _bounded(frozenset().union(*(entry.values for entry in known)), soft_zero=soft)


def _tensor_args(call: Call) -> list[Expr]:
    return [call.args[0]] if op_name(call) in {"relax.clip", "relax.astype"} else list(call.args)


def _evaluate(call: Call, name: str, operands: list[Array]) -> Array:
    if name == "relax.clip":
        return np.clip(operands[0], prim_value(call.args[1]), prim_value(call.args[2])).astype(operands[0].dtype)
    if name == "relax.astype":
        return operands[0].astype(dtype_of(call))
    return apply_elementwise(name, operands)


def _map_regions(
    call: Call, name: str, first: StepFunction, operands: list[StepFunction | np.generic]
) -> StepFunction | None:
    def at(pick: int) -> Region:
        arguments = []
        for operand in operands:
            value = operand.regions[pick] if isinstance(operand, StepFunction) else operand
            if value is None:
                return None
            arguments.append(np.asarray(value))
        return np.asarray(_evaluate(call, name, arguments))[()]

    with np.errstate(all="ignore"):
        below, equal, above, nan = (at(pick) for pick in range(4))
        padding = first.padding
        if padding is not None:
            arguments = [
                np.asarray(operand.padding.value, np.asarray(operand.above).dtype)
                if isinstance(operand, StepFunction) and operand.padding
                else np.asarray(operand)
                for operand in operands
            ]
            padding = replace(padding, value=float(_evaluate(call, name, arguments)))
    scales_one = sum(isinstance(operand, StepFunction) for operand in operands) == 1
    soft = first.soft_zero and scales_one and name in _KEEPS_SOFT_ZERO and equal is not None and float(equal) == 0.0
    return replace(first, below=below, equal=equal, above=above, nan=nan, padding=padding, soft_zero=soft)


def _spatial_padding(call: Call) -> Padding | None:
    """(top, left, bottom, right) of a constant pad of an NCHW tensor's rows and columns, else None."""
    widths = [int(width) for width in call.attrs.pad_width]
    shape = static_shape(call)
    if shape is None or len(shape) != 4 or len(widths) != 8 or any(widths[:4]) or min(widths) < 0:
        return None
    if getattr(call.attrs, "pad_mode", "constant") != "constant":
        return None
    return Padding((widths[4], widths[6], widths[5], widths[7]), float(call.attrs.pad_value))


def _bounded(values: frozenset[float], *, soft_zero: bool = False) -> ValueSet | None:
    return ValueSet(values, soft_zero=soft_zero) if len(values) <= MAX_SET_SIZE else None
