"""Element-wise operators on mixtures: what becomes of atoms, and of the continuous part.

Atoms are evaluated in the model's own arithmetic, combined with those of the other operand of the same channel. The
continuous part is not evaluated: it stays continuous under every operator that is not constant anywhere, and gains
atoms where the operator is (ReLU, clip), or where it cancels against itself (x − relu(x)).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of, evaluate_elementwise, is_elementwise, op_name, prim_value
from bnn_compiler.recognition.intervals import Interval
from bnn_compiler.recognition.mixture_sums import significand_bits
from bnn_compiler.recognition.mixtures import (
    MAX_POINTS,
    Mixture,
    Sources,
    anything,
    at_points,
    continuum,
    may_cancel,
    merge_sources,
    no_points,
    scaled,
    union,
)

# Rounded constants of more bits are taken for results of training or statistics.
_FEW_BITS = 12
_MOST_INTEGERS = 1 << 12
_FEW_FACTORS = 8
_ROUNDING = {"relax.round", "relax.floor", "relax.ceil", "relax.trunc"}
#: Near enough to tell whether an atom becomes a number such as 0, 0.5 or 1; never a proof of what is possible.
_APPROXIMATE: Mapping[str, Callable[[Array], Array]] = {
    "relax.exp": np.exp,
    "relax.log": lambda x: np.log(np.abs(x)),
    "relax.sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relax.tanh": np.tanh,
    "relax.sin": np.sin,
    "relax.cos": np.cos,
    "relax.square": np.square,
    "relax.sqrt": lambda x: np.sqrt(np.abs(x)),
    "relax.rsqrt": lambda x: 1 / np.sqrt(np.abs(x)),
    "relax.nn.silu": lambda x: x / (1 + np.exp(-x)),
    "relax.erf": lambda x: np.where(x == 0, 0.0, np.tanh(1.1284 * x)),
    "relax.nn.gelu": lambda x: x * (1 + np.tanh(0.7979 * x)) / 2,
    "relax.nn.gelu_tanh": lambda x: x * (1 + np.tanh(0.7979 * x)) / 2,
}


def of_constant(array: Array, shape: tuple[int, ...] | None, result: Var) -> Mixture:
    """The values of a constant that is broadcast to ``shape``, per index of the one axis along which it varies."""
    if array.size == 1 or shape is None:
        return _few_values(array, result)
    aligned = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    varying = [axis for axis, extent in enumerate(aligned.shape) if extent > 1]
    if len(varying) != 1 or array.size > MAX_POINTS:
        return _few_values(array, result)
    return Mixture(np.ascontiguousarray(aligned.reshape(-1, 1)), varying[0])


def _few_values(array: Array, result: Var) -> Mixture:
    values = np.unique(array)
    if len(values) <= _MOST_INTEGERS:
        return Mixture(values[None])
    found = continuum(result, array.dtype, unknown=bool(np.all(np.rint(values * 256) == values * 256)))
    return replace(found, points=np.zeros((1, 1), array.dtype)) if np.any(values == 0) else found


def apply_unary(call: Call, data: Mixture, result: Var, bounds: Interval) -> Mixture:
    """``call`` with one operand, whose values lie within ``bounds``."""
    name, dtype = op_name(call), np.dtype(dtype_of(call))
    if name in _APPROXIMATE:
        with np.errstate(all="ignore"):
            points = _finite(_APPROXIMATE[name](data.points.astype(np.float64)).astype(dtype))
        return Mixture(points, data.axis, {result: frozenset({1.0})}, data.unknown)
    if name == "relax.nn.leakyrelu":
        slope = float(call.attrs.alpha)
        points = np.where(data.points >= 0, data.points, (data.points * dtype.type(slope)).astype(dtype))
        sources = None if data.sources is None else scaled(data.sources, [1.0, slope], result)
        return replace(data, points=points, sources=sources)
    if not is_elementwise(call):
        return other(result, dtype, [data])
    to_integer = name in _ROUNDING or (name == "relax.astype" and dtype.kind in "iu")
    if to_integer and not data.is_discrete:
        return _integers(bounds, dtype)
    if dtype.kind == "b":
        return at_points([0, 1], dtype)
    with np.errstate(all="ignore"):
        points = _finite(np.asarray(evaluate_elementwise(call, [data.points]), dtype))
    made = replace(data, points=points)
    if data.is_discrete:
        return made
    match name:
        case "relax.negative" | "relax.abs":
            factors = [-1.0] if name == "relax.negative" else [1.0, -1.0]
            return replace(made, sources=None if data.sources is None else scaled(data.sources, factors, result))
        case "relax.nn.relu":
            return _with_points(made, [0.0] if bounds.low < 0 else [])
        case "relax.clip":
            low, high = prim_value(call.args[1]), prim_value(call.args[2])
            return _with_points(made, [low] * (bounds.low < low) + [high] * (bounds.high > high))
        case "relax.astype":
            return made
    return other(result, dtype, [data])


def apply_binary(call: Call, left: Mixture, right: Mixture, result: Var, *, same: bool) -> Mixture:
    """``call`` with two operands; ``same``: they are one tensor."""
    name, dtype = op_name(call), np.dtype(dtype_of(call))
    if dtype.kind == "b":
        return at_points([0, 1], dtype)
    if name in ("relax.maximum", "relax.minimum"):
        return union([left, right], aligned=True)
    known = is_elementwise(call)
    points, axis, too_many = _combined(call, left, right, same=same) if known else (no_points(dtype), None, False)
    if left.is_discrete and right.is_discrete and known:
        return Mixture(points, axis, unknown=too_many)
    match name:
        case "relax.add" | "relax.subtract":
            return _sum(
                left, right, Mixture(points, axis, unknown=too_many), result, 1.0 if name == "relax.add" else -1.0
            )
        case "relax.multiply" | "relax.divide":
            made = Mixture(points, axis, unknown=too_many)
            return _product(left, right, made, result, inverse=name == "relax.divide")
    return other(result, dtype, [left, right])


def other(result: Var, dtype: np.dtype[np.generic], operands: Sequence[Mixture]) -> Mixture:
    """An operator that nothing is known of: of numbers without atoms it makes such numbers."""
    plain = all(operand.is_continuous and not operand.unknown and not operand.points.size for operand in operands)
    return continuum(result, dtype) if plain and dtype.kind == "f" and operands else anything(result, dtype)


def _combined(call: Call, left: Mixture, right: Mixture, *, same: bool) -> tuple[Array, int | None, bool]:
    """The atoms of ``call`` on atoms [C, V], their axis, and whether they are too many to list."""
    dtype = np.dtype(dtype_of(call))
    if same:
        first, second = left.points, left.points
        axis = left.axis
    else:
        if left.axis is not None and right.axis is not None and left.axis != right.axis:
            left, right = left.flattened(), right.flattened()
        axis = left.axis if left.axis is not None else right.axis
        count = max(len(left.points), len(right.points))
        if count * left.points.shape[1] * right.points.shape[1] > MAX_POINTS:
            return no_points(dtype), None, True
        first = np.repeat(left.points, right.points.shape[1], axis=1)
        second = np.tile(right.points, (1, left.points.shape[1]))
        first, second = (
            np.broadcast_to(first, (count, first.shape[1])),
            np.broadcast_to(second, (count, first.shape[1])),
        )
    with np.errstate(all="ignore"):
        points = _finite(np.asarray(evaluate_elementwise(call, [first, second]), dtype))
    return (points if axis is not None else np.unique(points)[None]), axis, False


def _sum(left: Mixture, right: Mixture, atoms: Mixture, result: Var, sign: float) -> Mixture:
    """x ± y, where at least one has a continuous part or unknown atoms."""
    moved = None if right.sources is None else scaled(right.sources, [sign], result)
    sources = merge_sources(left.sources, moved)
    cancels = left.sources is not None and moved is not None and may_cancel(left.sources, moved)
    unknown = atoms.unknown or cancels or (left.unknown and right.unknown)
    for one, shift in ((left, right), (right, left)):
        if one.unknown and shift.points.size:
            if _is_generic(shift):
                sources = merge_sources(sources, {result: frozenset({1.0})})
            else:
                unknown = True
    return replace(atoms, sources=sources, unknown=unknown)


def _product(left: Mixture, right: Mixture, atoms: Mixture, result: Var, *, inverse: bool) -> Mixture:
    """x·y or x/y, where at least one has a continuous part or unknown atoms."""
    zero = left.may_hold_zero or (right.may_hold_zero and not inverse)
    unknown = atoms.unknown or (left.unknown and (right.unknown or right.points.size > 0))
    unknown = unknown or (right.unknown and left.points.size > 0)
    sources: Sources | None = None
    if left.is_continuous or right.is_continuous:
        sources = {result: frozenset({1.0})}
        data, factor = (left, right) if right.is_discrete else (right, left)
        numbers = [float(number) for number in factor.flat_points()[: _FEW_FACTORS + 1]]
        few = factor.is_discrete and 0 < len(numbers) <= _FEW_FACTORS and 0.0 not in numbers
        if data.sources is not None and few and not (inverse and factor is left):
            sources = scaled(data.sources, [1 / number if inverse else number for number in numbers], result)
    found = replace(atoms, sources=sources, unknown=unknown)
    return _with_points(found, [0.0]) if zero else found


def _is_generic(constant: Mixture) -> bool:
    """Whether all atoms are numbers that no short chain of integers and scales ends at."""
    bits = [significand_bits(float(value)) for value in constant.flat_points()[:_MOST_INTEGERS]]
    return constant.is_discrete and min(bits) > _FEW_BITS


def _integers(bounds: Interval, dtype: np.dtype[np.generic]) -> Mixture:
    """What rounding leaves of numbers within ``bounds``."""
    if bounds.is_bounded and bounds.high - bounds.low <= _MOST_INTEGERS:
        return at_points(np.arange(np.floor(bounds.low), np.ceil(bounds.high) + 1), dtype)
    return Mixture(no_points(dtype), unknown=True)


def _with_points(found: Mixture, values: Sequence[float]) -> Mixture:
    """``found`` and further atoms, in every channel."""
    if not values:
        return found
    more = np.broadcast_to(np.asarray(values, found.points.dtype), (len(found.points), len(values)))
    return replace(found, points=np.concatenate([found.points, more], axis=1))


def _finite(points: Array) -> Array:
    """``points`` without NaN and infinities: columns keep their length, repeating a finite one of the row."""
    if points.dtype.kind != "f" or np.all(np.isfinite(points)):
        return points
    if len(points) > 1:
        return np.where(np.isfinite(points), points, np.zeros((), points.dtype))
    return points[np.isfinite(points)][None]
