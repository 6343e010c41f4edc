"""Mixtures of the variables of one Relax function: which numbers do its tensors hit exactly?

The analysis follows the function's definitions from its inputs. An input of floats is taken for measured numbers, which
are no particular ones; an input of integers holds any of its type. What decides whether 0 is common in front of a
``Sign`` is what lies between: pads, ReLUs, masks, sums of signs and differences put it there, biases and batch-norms
move it away. Constants are looked at: a batch-norm whose bias is 0 moves nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of, elementwise_operands, op_name, static_shape
from bnn_compiler.recognition.element_selection import selected_operands
from bnn_compiler.recognition.mixture_operators import apply_binary, apply_unary, of_constant, other
from bnn_compiler.recognition.mixture_sums import WeightRow, weight_rows, weighted_sums
from bnn_compiler.recognition.mixtures import Mixture, anything, at_points, continuum, no_points, union

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis

_CONVOLUTIONS = frozenset(f"relax.nn.conv{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_transpose"))
_AVERAGES = frozenset(f"relax.nn.{kind}avg_pool{rank}d" for rank in (1, 2, 3) for kind in ("", "adaptive_"))
_KEEP_CHANNELS = frozenset(
    f"relax.nn.{kind}_pool{rank}d" for rank in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
)
_EXTREMES = ("relax.max", "relax.min")


class MixtureAnalysis:
    """Mixtures on demand; ``analysis`` knows definitions, constants and bounds of the same function.

    ``any_input``: inputs of floats are not measured, but may hold any number again and again, as masks and counts do.
    """

    def __init__(self, analysis: ValueSetAnalysis, *, any_input: bool = False) -> None:
        self._analysis = analysis
        self._any_input = any_input
        self._known: dict[Var, Mixture] = {}
        self._weight_rows: dict[Var, list[WeightRow | None]] = {}

    def forget(self) -> None:
        """Drop what is known: atoms of large layers take megabytes, and a decision about a Sign changes others."""
        self._known.clear()

    def of(self, expr: relax.Expr) -> Mixture:
        """The mixture of a tensor."""
        if not isinstance(expr, Var):
            array = self._analysis.constants.value(expr)
            dtype = np.dtype(dtype_of(expr) or "float32")
            return Mixture(no_points(dtype), unknown=True) if array is None else at_points(array.reshape(-1), dtype)
        pending = [expr]  # a stack of our own: networks are deeper than Python's
        while pending:
            current = pending[-1]
            waiting = [v for v in self._operands(current) if v not in self._known] if current not in self._known else []
            pending += waiting
            if not waiting:
                pending.pop()
                if current not in self._known:
                    self._known[current] = self._named(current, self._of_variable(current).bounded())
        return self._known[expr]

    def _operands(self, variable: Var) -> list[Var]:
        definition = self._analysis.definition(variable)
        if isinstance(definition, relax.TupleGetItem):
            return [definition.tuple_value] if isinstance(definition.tuple_value, Var) else []
        if not isinstance(definition, Call) or self._analysis.constants.value(variable) is not None:
            return []
        if variable in self._analysis.plus_signs or variable in self._analysis.kept_signs:
            return []  # decided: what is in front of it is looked at no more
        found: list[Var] = []
        for argument in definition.args:
            fields = argument.fields if isinstance(argument, relax.Tuple) else [argument]
            found += [field for field in fields if isinstance(field, Var) and dtype_of(field)]
        return found

    def _named(self, variable: Var, found: Mixture) -> Mixture:
        """``found``, knowing the tensor in which 0 became one of its atoms, and what leaks into it."""
        values = self._exact_values(variable)
        leaky = any(self._known[operand].leaks for operand in self._operands(variable) if operand in self._known)
        if leaky and (values is None or 0.0 in values):
            found = replace(found, leaks=True)
        if not found.may_hold_zero:
            return replace(found, zero=None)
        earlier = (self._known[operand].zero for operand in self._operands(variable) if operand in self._known)
        return replace(found, zero=next((zero for zero in earlier if zero is not None), variable))

    def _exact_values(self, variable: Var) -> frozenset[float] | None:
        """The values of a tensor of few values, but for a ``Sign``: its 0 may be an accident."""
        known = self._analysis.of(variable) if op_name(self._analysis.definition(variable)) != "relax.sign" else None
        return known.values if known is not None and known.is_exact else None

    def _of_variable(self, variable: Var) -> Mixture:
        constant = self._analysis.constants.value(variable)
        if constant is not None:
            return of_constant(constant, static_shape(variable), variable)
        definition = self._analysis.definition(variable)
        dtype = np.dtype(dtype_of(variable) or "float32")
        if definition is None:
            return anything(variable, dtype) if self._any_input else _of_input(variable, dtype)
        if dtype.kind == "b":
            return at_points([0, 1], dtype)
        values = self._exact_values(variable)
        if values is not None and (0.0 not in values or not any(self.of(o).leaks for o in self._operands(variable))):
            return at_points(sorted(values), dtype)
        if isinstance(definition, Call):
            found = self._of_call(variable, definition, dtype)
            if found is not None:
                return found
        selected = selected_operands(definition, self._analysis.functions)
        if selected is not None:
            parts = [self.of(operand) for operand in selected]
            if all(part.points.dtype == dtype for part in parts):
                kept = op_name(definition) in _KEEP_CHANNELS
                return union([part if kept else part.flattened() for part in parts], aligned=kept)
        if dtype.kind in "iu":
            return Mixture(no_points(dtype), unknown=True)
        return other(variable, dtype, [self.of(operand) for operand in self._operands(variable)])

    def _of_call(self, variable: Var, call: Call, dtype: np.dtype[np.generic]) -> Mixture | None:
        name = op_name(call)
        if name == "relax.sign":
            return self._sign(variable, call, dtype)
        if name == "relax.permute_dims":
            return self._permuted(call)
        if name == "relax.reshape":
            return self._reshaped(call)
        if name == "relax.nn.pad" and str(getattr(call.attrs, "pad_mode", "constant")) == "constant":
            return union([self.of(call.args[0]), at_points([float(call.attrs.pad_value)], dtype)], aligned=False)
        if name in _CONVOLUTIONS:
            return self._convolution(variable, call)
        if name == "relax.matmul":
            return self._product(variable, call)
        if name in ("relax.sum", "relax.mean", *_EXTREMES) or name in _AVERAGES:
            return self._reduction(variable, call, name)
        if name == "relax.where":
            return self._where(variable, call)
        if name == "relax.nn.prelu":
            return self._prelu(variable, call)
        operands = elementwise_operands(call)
        if len(operands) == 1 and (static_shape(operands[0]) == static_shape(call)) and name != "relax.call_tir":
            if selected_operands(call, self._analysis.functions) is not None:
                return None
            return apply_unary(call, self.of(operands[0]), variable, self._analysis.bounds.of(operands[0]))
        if len(operands) == 2 and name not in ("relax.call_tir", "relax.concat", "relax.take", "relax.nn.prelu"):
            left, right = (self._broadcast(operand, variable) for operand in operands)
            if left is not None and right is not None:
                return apply_binary(call, left, right, variable, same=bool(operands[0].same_as(operands[1])))
        return None

    # -- element-wise ---------------------------------------------------------------------------------------------

    def _broadcast(self, operand: relax.Expr, result: Var) -> Mixture | None:
        """The operand's mixture, channels as the result has them."""
        shape = static_shape(result)
        constant = self._analysis.constants.value(operand)
        if constant is not None:
            return of_constant(constant, shape, result)
        own = static_shape(operand)
        if not isinstance(operand, Var) or own is None or shape is None or len(own) > len(shape):
            return None
        known = self.of(operand)
        return known if own == shape else known.flattened()

    def _sign(self, variable: Var, call: Call, dtype: np.dtype[np.generic]) -> Mixture:
        """±1, and 0 unless that is decided, impossible, or an accident."""
        bounds = self._analysis.bounds.of(call.args[0])
        values = [-1.0] * (bounds.low < 0) + [1.0] * (bounds.high > 0)
        if variable in self._analysis.plus_signs or bounds.low > 0 or bounds.high < 0:
            return at_points(values, dtype)
        if variable in self._analysis.kept_signs:
            return at_points([*values, 0.0], dtype)
        data = self.of(call.args[0])
        if data.can_equal(0.0) is False:
            return at_points(values, dtype)
        return at_points([*values, 0.0], dtype) if data.may_hold_zero else replace(at_points(values, dtype), leaks=True)

    def _where(self, variable: Var, call: Call) -> Mixture | None:
        choices = [self._broadcast(operand, variable) for operand in call.args[1:]]
        found = [choice for choice in choices if choice is not None]
        return union(found, aligned=True) if len(found) == len(choices) else None

    def _prelu(self, variable: Var, call: Call) -> Mixture | None:
        slope = self._analysis.constants.value(call.args[1])
        data = self.of(call.args[0]).flattened()
        if slope is None or not slope.size or np.any(slope == 0):
            return None
        found = replace(data, sources=None if data.sources is None else {variable: frozenset({1.0})})
        if not np.any(data.points):
            return found
        negative = data.points[data.points < 0]
        made = np.unique(np.append(data.points[data.points >= 0], np.outer(negative, np.unique(slope)[:64])))
        return replace(found, points=made.astype(data.points.dtype)[None], unknown=found.unknown or slope.size > 64)

    # -- operators that move elements -----------------------------------------------------------------------------

    def _permuted(self, call: Call) -> Mixture:
        data = self.of(call.args[0])
        rank = len(static_shape(call) or ())
        axes = [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else list(range(rank))[::-1]
        return data if data.axis is None else replace(data, axis=axes.index(data.axis))

    def _reshaped(self, call: Call) -> Mixture:
        """Channels stay apart where the axes up to theirs stay."""
        data = self.of(call.args[0])
        before, after = static_shape(call.args[0]), static_shape(call)
        if data.axis is None or before is None or after is None:
            return data.flattened()
        same = before[: data.axis + 1] == after[: data.axis + 1]
        return data if same else data.flattened()

    # -- sums -----------------------------------------------------------------------------------------------------

    def _convolution(self, variable: Var, call: Call) -> Mixture | None:
        weights = self._analysis.constants.value(call.args[1])
        shape, data_shape = static_shape(variable), static_shape(call.args[0])
        if weights is None or shape is None or data_shape is None or weights.dtype.kind != "f":
            return None
        transposed = op_name(call).endswith("_transpose")
        kernel = weights.shape[2:]
        pads = [int(pad) for pad in call.attrs.padding]
        dilated = [(k - 1) * int(d) + 1 for k, d in zip(kernel, call.attrs.dilation, strict=False)]
        rank = len(kernel)
        # Of a transposed convolution, results between the strides, and those that only pads reach, have no term.
        outside = any(max(pads[axis], pads[axis - rank]) >= dilated[axis] for axis in range(rank))
        if transposed:
            groups = int(call.attrs.groups)
            parts = weights.reshape(groups, weights.shape[0] // groups, *weights.shape[1:])
            weights = np.moveaxis(parts, 2, 1).reshape(groups * parts.shape[2], -1)
        rows = weights.reshape(len(weights), -1)
        layout = str(call.attrs.data_layout)
        axis = layout.index("C") if "C" in layout and len(layout) == len(shape) else None
        partial = transposed or any(pads)
        return weighted_sums(
            self.of(call.args[0]), self._rows(variable, rows), rows.shape[1], variable,
            axis=axis, partial=partial, empty=transposed or outside,
        )  # fmt: skip

    def _product(self, variable: Var, call: Call) -> Mixture | None:
        shape = static_shape(variable)
        for data, weights, left in ((call.args[0], call.args[1], False), (call.args[1], call.args[0], True)):
            constant = self._analysis.constants.value(weights)
            if constant is None or self._analysis.constants.value(data) is not None or constant.dtype.kind != "f":
                continue
            if constant.ndim < 1 or shape is None:
                return None
            rows = _rows(constant, left=left)
            axis = len(shape) - 1 if constant.ndim == 2 and not left and len(shape) else None
            return weighted_sums(self.of(data), self._rows(variable, rows), rows.shape[-1], variable, axis=axis)
        return self._activation_product(variable, call)

    def _rows(self, variable: Var, weights: Array) -> list[WeightRow | None]:
        """The rows of the weights of a product: they stay what they are when mixtures are forgotten."""
        if variable not in self._weight_rows:
            self._weight_rows[variable] = weight_rows(weights)
        return self._weight_rows[variable]

    def _activation_product(self, variable: Var, call: Call) -> Mixture | None:
        """Σ x·y of two activations: sums of what a single product can be."""
        left, right = self.of(call.args[0]).flattened(), self.of(call.args[1]).flattened()
        inner = static_shape(call.args[0])
        if not inner or left.points.dtype.kind != "f":
            return None
        if left.is_discrete and right.is_discrete and left.points.size * right.points.size <= 1 << 12:
            factors = np.unique(np.outer(left.points, right.points)).astype(left.points.dtype)
            return weighted_sums(Mixture(factors[None]), [_ones(inner[-1])], inner[-1], variable, axis=None)
        if left.is_continuous or right.is_continuous:
            found = continuum(variable, left.points.dtype)
            return (
                replace(found, points=np.zeros((1, 1), left.points.dtype))
                if (left.may_hold_zero or right.may_hold_zero)
                else found
            )
        return Mixture(no_points(left.points.dtype), unknown=True)

    def _reduction(self, variable: Var, call: Call, name: str) -> Mixture | None:
        data = self.of(call.args[0])
        before, after = static_shape(call.args[0]), static_shape(variable)
        if before is None or after is None or data.points.dtype.kind != "f" or 0 in (*before, *after):
            return None
        if name in _EXTREMES:
            return data.flattened()
        size = _window(call, name, before, after)
        if size == 1:
            return data if before == after else data.flattened()
        padded = any(int(pad) for pad in getattr(call.attrs, "padding", ()))
        sums = weighted_sums(data, [_ones(size)], size, variable, axis=None, partial=padded)
        if data.sources is not None:
            # An average of equal numbers is that number: x − mean(x) is 0 wherever a map is flat.
            sums = replace(sums, sources=data.sources)
        if name == "relax.sum":
            return sums
        with np.errstate(all="ignore"):
            points = (sums.points / sums.points.dtype.type(size)).astype(sums.points.dtype)
        # Windows at a border may be averages of fewer numbers.
        return replace(sums, points=points, unknown=sums.unknown or (padded and data.is_discrete))


def _of_input(variable: Var, dtype: np.dtype[np.generic]) -> Mixture:
    """Floats are measured; integers are any of their type."""
    if dtype.kind == "f":
        return continuum(variable, dtype)
    if dtype.kind == "b":
        return at_points([0, 1], dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype.name)
        return at_points(np.arange(limits.min, limits.max + 1), dtype)
    return Mixture(no_points(dtype), unknown=True) if dtype.kind in "iu" else anything(variable, dtype)


def _ones(terms: int) -> WeightRow:
    """Weights of a plain sum."""
    return WeightRow(1.0, exact=True, upward=terms, downward=0, step=1 if terms else 0)


def _rows(weights: Array, *, left: bool) -> Array:
    """The operand of a product as one row per output feature: [O, K]."""
    if weights.ndim == 1:
        return weights[None]
    return (weights if left else np.swapaxes(weights, -1, -2)).reshape(-1, weights.shape[-1 if left else -2])


def _window(call: Call, name: str, before: tuple[int, ...], after: tuple[int, ...]) -> int:
    """How many elements one result is summed from."""
    if name in _AVERAGES and hasattr(call.attrs, "pool_size"):
        return int(np.prod([int(size) for size in call.attrs.pool_size]))
    return max(1, int(np.prod(before)) // max(1, int(np.prod(after))))
