"""Monotone chains of element-wise operators, and the exact thresholds of those that take few values.

A quantiser such as round(clip(x, 0, 1)·3)/3, or a sum of comparisons of x, is a function g of one tensor x, element by
element and with constants per channel at most. Every operator of such a chain is monotone in float arithmetic, too, so
g is: if it takes few values, each is taken on an interval of floats, and bisection over the ordered float32 bit
patterns finds the first float of each, by evaluating the model's own operators. Comparing x with these equals
computing the chain, bit for bit.

Monotone are, with finite constants c (rule by rule, ``_direction_of``):

1. f + g, f − h, max(f, g), min(f, g), f and g, f or g with f, g rising and h falling. A sum of two non-constants needs
   both bounded, or it could be ∞ − ∞;
2. f·c and f/c with c ≠ 0, falling where c < 0;
3. sign, floor, ceil, round, ReLU, clip, and conversions of truth values or between float types;
4. comparisons of f with c, and their negation;
5. where(f, c, c') of a rising truth value f: rising where c > c'.

Whatever else a tensor is computed by, it is the base of chains of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import (
    Array,
    ConstantEvaluator,
    apply_elementwise,
    dtype_of,
    elementwise_operands,
    evaluate_elementwise,
    is_elementwise,
    op_name,
    static_shape,
)
from bnn_compiler.recognition.monotone_thresholds import float_at, order_of

_RISING = {"relax.sign", "relax.floor", "relax.ceil", "relax.round", "relax.nn.relu", "relax.clip", "relax.astype"}
_FALLING = {"relax.negative", "relax.logical_not"}
_SAME_WAY = {"relax.add", "relax.maximum", "relax.minimum", "relax.logical_and", "relax.logical_or"}
_ARITHMETIC = {"relax.add", "relax.subtract", "relax.multiply", "relax.divide", "relax.negative"}
_GREATER = {"relax.greater", "relax.greater_equal"}
_LESS = {"relax.less", "relax.less_equal"}
#: Longer chains are no quantisers; the bound keeps the recursion over a chain shallow.
_LONGEST = 64
_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, eq=False)
class Levels:
    """g(x) = values[#{i : direction·x >= thresholds[i]}] for all numbers x.

    ``values`` ascend. ``thresholds`` float32 [L, C] ascend along the first axis: −inf for a level that is always
    reached, NaN for one that never is. ``direction`` int8[C] is ±1. C is the size of ``axis``, or 1 where that is None.
    ``nan_is_top``: NaN gives the highest value, else the lowest is taken.
    """

    values: tuple[float, ...]
    thresholds: Array
    direction: Array
    axis: int | None
    nan_is_top: bool


@dataclass(frozen=True, eq=False)
class Chain:
    """A tensor as a monotone function of ``base``: int8 ``direction`` per entry of ``axis`` (one entry if None).

    ``length`` counts the operators one after the other.
    """

    base: Var
    axis: int | None
    direction: Array
    length: int


class MonotoneChains:
    """Chains of the variables of one function (``bindings``: its variables' definitions)."""

    def __init__(self, bindings: Mapping[Var, relax.Expr], constants: ConstantEvaluator) -> None:
        self._bindings = bindings
        self._constants = constants
        self._known: dict[Var, Chain] = {}

    def of(self, variable: Var) -> Chain:
        """The longest chain that ends in ``variable``; its own base if nothing in front is monotone."""
        if not self._known:
            for bound in self._bindings:  # in program order: what a definition reads is known, however long the graph
                self._known[bound] = self._extended(bound) or self._alone(bound)
        return self._known.get(variable) or self._alone(variable)

    @staticmethod
    def _alone(variable: Var) -> Chain:
        return Chain(variable, None, np.ones(1, np.int8), 0)

    def starts(self, variable: Var) -> list[tuple[Var, frozenset[Var]]]:
        """Tensors of the chain that all of it runs through, farthest first, each with what lies between it and the end.

        The last is ``variable`` itself, with nothing between.
        """
        base = self.of(variable).base
        order: list[Var] = []
        self._collect(variable, base, set(), order)
        found = []
        for start in order:
            between: list[Var] = []
            self._collect(variable, start, set(), between)
            if start.same_as(base) or not any(node.same_as(base) for node in between):
                inner = frozenset(node for node in between if not node.same_as(start) and not node.same_as(variable))
                found.append((start, inner))
        return found

    def operands(self, variable: Var) -> list[Var]:
        """What the definition of ``variable`` reads that is no constant."""
        call = self._bindings.get(variable)
        if isinstance(call, Var):
            return [call]
        arguments = elementwise_operands(call) if isinstance(call, Call) and is_elementwise(call) else []
        return [arg for arg in arguments if isinstance(arg, Var) and self._constants.value(arg) is None]

    def levels(self, variable: Var, start: Var, most: int) -> Levels | None:
        """``variable`` as a function of ``start`` (of ``starts``), or None if it takes more than ``most`` values."""
        chain = self.of(variable)
        if dtype_of(start) != "float32" or start.same_as(variable):
            return None
        channels = 1 if chain.axis is None else (static_shape(variable) or ())[chain.axis]
        infinite = np.full(channels, np.inf, np.float32)
        with np.errstate(all="ignore"):
            lowest, highest = (self._evaluate(variable, start, x) for x in (-infinite, infinite))
            if not np.all(np.isfinite(lowest)) or not np.all(np.isfinite(highest)):
                return None
            direction = np.where(highest < lowest, -1, 1).astype(np.int8)

            def g(order: Array) -> Array:
                value = self._evaluate(variable, start, direction.astype(np.float32) * float_at(order))
                return np.broadcast_to(value, (channels,))

            steps = _bisect(g, channels, most)
            at_nan = self._evaluate(variable, start, np.full(channels, np.nan, np.float32))
        if steps is None:
            return None
        cuts, reached = steps
        values = np.unique(reached)
        if len(values) > most:
            return None
        # The first position whose value is at least a level: where that is the very first, all floats reach it.
        first = np.argmax(reached[:, None, :] >= values[None, 1:, None], axis=0)
        thresholds = np.take_along_axis(cuts, first, axis=0)
        thresholds[values[1:, None] > reached[-1]] = np.nan
        top = bool(np.all(at_nan == values[-1])) and not np.any(np.isnan(thresholds))
        return Levels(tuple(float(value) for value in values), thresholds, direction, chain.axis, top)

    # -- structure ------------------------------------------------------------------------------------------------

    def _collect(self, node: Var, stop: Var, seen: set[Var], order: list[Var]) -> None:
        """``node`` and what it is computed from, up to ``stop``, operands first."""
        if node in seen:
            return
        seen.add(node)
        if not node.same_as(stop):
            for operand in self.operands(node):
                self._collect(operand, stop, seen, order)
        order.append(node)

    def _extended(self, variable: Var) -> Chain | None:
        definition = self._bindings.get(variable)
        if isinstance(definition, Var):
            return self._known.get(definition)
        if not isinstance(definition, Call):
            return None
        name, shape = op_name(definition), static_shape(definition)
        if shape is None or not is_elementwise(definition):
            return None
        operands: list[Chain | Array] = []
        axis: int | None = None
        for argument in elementwise_operands(definition):
            constant = self._constants.value(argument)
            if constant is not None:
                own = _constant_axis(constant, len(shape))
                operands.append(constant.reshape(-1))
            elif isinstance(argument, Var) and static_shape(argument) == shape:
                chain = self._known.get(argument) or self._alone(argument)
                own = chain.axis
                operands.append(chain)
            else:
                return None
            if own is not None and axis is not None and own != axis:
                return None
            axis = axis if own is None else own
            if own == -1:
                return None
        chains = [operand for operand in operands if isinstance(operand, Chain)]
        if not chains or not all(chain.base.same_as(chains[0].base) for chain in chains):
            return None
        with np.errstate(all="ignore"):
            direction = self._direction_of(name, definition, operands)
        length = 1 + max(chain.length for chain in chains)
        if direction is None or length > _LONGEST:
            return None
        return Chain(chains[0].base, axis, direction, length)

    def _direction_of(self, name: str, call: Call, operands: list[Chain | Array]) -> Array | None:
        """The rules of the module's docstring."""
        constants = [operand for operand in operands if not isinstance(operand, Chain)]
        if not all(np.all(np.isfinite(constant)) for constant in constants):
            return None
        signs = [operand.direction if isinstance(operand, Chain) else np.zeros(1, np.int8) for operand in operands]
        if self._wraps(name, call):
            return None
        if name == "relax.astype" and dtype_of(call) not in _FLOATS and dtype_of(call.args[0]) != "bool":
            return None
        if name in _RISING:
            return signs[0]
        if name in _FALLING:
            return -signs[0]
        if name in _SAME_WAY or name == "relax.subtract":
            second = -signs[1] if name == "relax.subtract" else signs[1]
            unbounded = not constants and not all(self._is_bounded(arg) for arg in call.args)
            return None if unbounded else _agreed(signs[0], second)
        if name in ("relax.multiply", "relax.divide") and len(constants) == 1:
            if np.any(constants[0] == 0) or (name == "relax.divide" and not isinstance(operands[0], Chain)):
                return None
            return np.asarray((signs[0] + signs[1]) * np.sign(constants[0]), np.int8)
        if name in _GREATER | _LESS and len(constants) == 1:
            rising = np.asarray(signs[0] - signs[1], np.int8)
            return rising if name in _GREATER else -rising
        if name == "relax.where" and len(constants) == 2 and isinstance(operands[0], Chain):
            return np.asarray(signs[0] * np.sign(constants[0] - constants[1]), np.int8)
        return None

    def _is_bounded(self, variable: relax.Expr) -> bool:
        """Whether a chain is finite at both ends of the floats, and so everywhere."""
        if dtype_of(variable) == "bool":
            return True
        ends = self._ends(variable)
        return ends is not None and all(bool(np.all(np.isfinite(end))) for end in ends)

    def _ends(self, expr: relax.Expr) -> tuple[Array, Array] | None:
        """The values of a chain at both ends of the floats (of a constant: itself, twice); None if its base is none."""
        constant = self._constants.value(expr)
        if constant is not None:
            return constant.reshape(-1), constant.reshape(-1)
        assert isinstance(expr, Var)
        base = (self._known.get(expr) or self._alone(expr)).base
        if dtype_of(base) not in _FLOATS:
            return None
        infinite = np.array([np.inf], dtype_of(base))
        return self._evaluate(expr, base, -infinite), self._evaluate(expr, base, infinite)

    def _wraps(self, name: str, call: Call) -> bool:
        """Whether integer arithmetic may overflow, and so fall where it should rise: it does at an end, if anywhere."""
        dtype = dtype_of(call)
        if name not in _ARITHMETIC or dtype in _FLOATS or dtype == "bool":
            return False
        ends = [self._ends(argument) for argument in elementwise_operands(call)]
        known = [end for end in ends if end is not None]
        if name == "relax.divide" or len(known) < len(ends):
            return True
        # Rising and falling operands may meet at opposite ends.
        for values in itertools.product(*known):
            exact = apply_elementwise(name, [value.astype(object) for value in values])
            limits = np.iinfo(dtype)
            if not all(limits.min <= number <= limits.max for number in np.atleast_1d(exact)):
                return True
        return False

    def _evaluate(self, variable: relax.Expr, start: Var, x: Array) -> Array:
        """The chain from ``start``, where it is ``x`` [C], to ``variable`` in the model's arithmetic: [C] or [1]."""
        values: dict[Var, Array] = {}

        def value(expr: relax.Expr) -> Array:
            if isinstance(expr, Var) and expr.same_as(start):
                return x
            if isinstance(expr, Var) and expr in values:
                return values[expr]
            constant = self._constants.value(expr)
            if constant is not None:
                return constant.reshape(-1)
            definition = self._bindings[expr]
            if isinstance(definition, Var):
                return value(definition)
            result = evaluate_elementwise(
                definition, [value(argument) for argument in elementwise_operands(definition)]
            )
            values[expr] = result
            return result

        return value(variable)


def _bisect(g: object, channels: int, most: int) -> tuple[Array, Array] | None:
    """The first float of each value, float32 [V, C], and the values [V, C]; channels of fewer repeat their last."""
    assert callable(g)
    end = np.full(channels, order_of(np.float32(np.inf)), np.int64)
    position = np.full(channels, order_of(np.float32(-np.inf)), np.int64)
    value, last = g(position), g(end)
    cuts, reached = [float_at(position)], [value]
    while np.any(value != last):
        if len(cuts) == most:
            return None
        low, high = position, np.where(value != last, end, position + 1)
        while np.any(high - low > 1):
            middle = (low + high) // 2
            changed = g(middle) != value
            high, low = np.where(changed, middle, high), np.where(changed, low, middle)
        position = np.where(value != last, high, position)
        value = g(position)
        cuts.append(float_at(position))
        reached.append(value)
    return np.stack(cuts), np.stack(reached)


def _agreed(left: Array, right: Array) -> Array | None:
    """The common direction of two, where one may be constant (0), or None."""
    return None if np.any(left * right < 0) else np.asarray(np.sign(left + right), np.int8)


def _constant_axis(constant: Array, rank: int) -> int | None:
    """The one axis along which a constant varies, None for a scalar, -1 if there are several (or it broadcasts)."""
    if constant.size == 1:
        return None
    axes = [axis + rank - constant.ndim for axis, size in enumerate(constant.shape) if size != 1]
    return axes[0] if len(axes) == 1 and axes[0] >= 0 else -1
