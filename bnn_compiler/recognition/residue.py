"""Element-wise functions of one tensor that are step functions up to rounding, whatever they are written as.

A straight-through estimator leaves its arithmetic in the graph: (sign(x) − clip(x)) + clip(x), where clip may be a
polynomial, a chain of masks, a tanh, anything that is bounded. It *computes* sign(x), up to rounding. The proof does
not look at the text. The chain between the activation and a tensor x that is compared in it is evaluated region by
region (below, at and above each constant that x is compared with):

1. every operator on values that are known exactly in the region is evaluated exactly;
2. elsewhere values are intervals and linear forms (``linear_forms``), in which what is added and subtracted cancels,
   the computed rounding error excepted;
3. the result qualifies if in every region it lies within ``MAX_RESIDUE`` (relative) of one number, and is exactly 0
   where that number is 0.

Where x takes finitely many values (a rounded, clipped tensor), every value is a region of its own and all is exact.

Conditions on x: beyond ±2^63 the polynomial of ApproxSign overflows and the model itself gives NaN, so such x count as
NaN does. A region in which the model gives NaN (x/|x| at 0) must be a single point and impossible for x, or x must be a
general float: that hits the point by accident only: then it is taken as the region above, and reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from tvm.ir import Call, Var

from bnn_compiler.constants import (
    Array,
    dtype_of,
    elementwise_operands,
    is_elementwise,
    op_name,
    static_shape,
)
from bnn_compiler.recognition.intervals import Interval
from bnn_compiler.recognition.mixture_sums import significand_bits
from bnn_compiler.recognition.step_function import MAX_RESIDUE, Region, StepFunction

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis

COMPARISONS = frozenset(
    f"relax.{name}" for name in ("greater", "greater_equal", "less", "less_equal", "equal", "not_equal")
)
_CUTS = COMPARISONS | {"relax.sign", "relax.abs"}
# A residue is a chain of some thirty operators; the bound keeps float networks cheap to analyse.
_MAX_OPERATORS = 128
_MAX_BASES = 4
_MAX_LIMITS = 16
_LARGEST = 2.0**63
_NAN = Interval(math.nan, math.nan)


@dataclass(frozen=True)
class _Part:
    """Part of the line: ``where`` x lies (one float if ``is_point``), and what the function gives there."""

    where: Interval
    is_point: bool
    value: Region = None
    rounded: bool = False


def find_residue(result: Var, analysis: ValueSetAnalysis) -> StepFunction | None:
    """The step function that ``result`` computes up to rounding, or None."""
    for base in analysis.compared.get(result, ()):
        same = static_shape(base) == static_shape(result) and dtype_of(base) == dtype_of(result)
        if same and dtype_of(base).startswith("float"):
            found = _as_function_of(base, result, analysis)
            if found is not None:
                return found
    return None


def _as_function_of(base: Var, result: Var, analysis: ValueSetAnalysis) -> StepFunction | None:
    chain = element_wise_chain(result, base, analysis)
    limits = _limits(chain, base, analysis)
    if limits is None or len(limits) > _MAX_LIMITS or _distinguishes_huge_values(chain, analysis):
        return None
    parts = []
    undefined = False
    for part in _parts(base, limits, analysis):
        value = analysis.in_region(base, part.where, is_point=part.is_point).of(result)
        if value is None:
            return None
        if value.point is not None and np.isnan(value.point):
            if not part.is_point or analysis.mixtures.of(base).has_atom(part.where.low):
                return None
            undefined = True
        elif value.point is not None and not np.isfinite(value.point):
            return None
        elif value.point is not None:
            parts.append(replace(part, value=value.point))
        elif value.constant != 0.0 and value.spread.magnitude <= MAX_RESIDUE * abs(value.constant):
            parts.append(replace(part, value=np.asarray(value.constant, dtype_of(result)), rounded=True))
        else:
            return None
    at_nan = analysis.in_region(base, _NAN, is_point=True).of(result)
    nan = np.asarray(math.nan, dtype_of(result)) if at_nan is None or at_nan.point is None else at_nan.point
    found = _step_function(base, _snapped(parts), nan)
    if found is None:
        return None
    return replace(found, undefined=undefined)


def element_wise_chain(result: Var, base: Var | None, analysis: ValueSetAnalysis) -> list[Var]:
    """The element-wise operators that ``result`` is made of, down to ``base`` and whatever is not element-wise."""
    chain: list[Var] = []
    seen = set() if base is None else {base}
    pending = [result]
    while pending and len(chain) < _MAX_OPERATORS:
        current = pending.pop()
        call = analysis.definition(current)
        if current not in seen and isinstance(call, Call) and is_elementwise(call):
            chain.append(current)
            pending += [operand for operand in elementwise_operands(call) if isinstance(operand, Var)]
        seen.add(current)
    return chain


def compared_tensors(call: Call, analysis: ValueSetAnalysis) -> tuple[Var, ...]:
    """The tensors, at most ``_MAX_BASES``, that comparisons in the element-wise chain that ends in ``call`` read.

    Those that are step functions or constants themselves do not count. What the operands' chains compare is known
    (``ValueSetAnalysis.compared``).
    """
    found: dict[Var, None] = {}
    operands = [operand for operand in elementwise_operands(call) if isinstance(operand, Var)]
    if op_name(call) in _CUTS:
        for operand in operands:
            known = analysis.of(operand)
            if (known is None or known.steps is None) and analysis.constants.value(operand) is None:
                found.setdefault(operand)
    for operand in operands:
        found.update(dict.fromkeys(analysis.compared.get(operand, ())))
    return tuple(found)[:_MAX_BASES]


def _limits(chain: Sequence[Var], base: Var, analysis: ValueSetAnalysis) -> list[float] | None:
    """The constants that ``base`` itself is compared with, ascending; None if one differs between elements."""
    limits: set[float] = set()
    for entry in chain:
        call = analysis.definition(entry)
        if not isinstance(call, Call) or op_name(call) not in _CUTS:
            continue
        if not any(isinstance(operand, Var) and operand.same_as(base) for operand in call.args):
            continue
        zero: list[Array | None] = [np.zeros(1)]
        constants = [analysis.constants.value(operand) for operand in call.args] if len(call.args) == 2 else zero
        for constant in (constant for constant in constants if constant is not None):
            if not constant.size or not np.all(constant == constant.flat[0]) or not np.isfinite(constant.flat[0]):
                return None
            limits.add(float(constant.flat[0]) + 0.0)
    return sorted(limits)


def _distinguishes_huge_values(chain: Sequence[Var], analysis: ValueSetAnalysis) -> bool:
    """Whether a number in the chain's arithmetic is of an order at which values beyond ``_LARGEST`` may matter.

    Those are not evaluated, on the grounds that the model overflows there, or does what it does below. A cut at 1e20,
    or a product by 1e-20, is there to tell such values apart.
    """
    for entry in chain:
        call = analysis.definition(entry)
        if not isinstance(call, Call):
            continue
        arrays = [analysis.constants.value(operand) for operand in elementwise_operands(call)]
        numbers = [array for array in arrays if array is not None and array.dtype.kind == "f"]
        sizes = np.abs(np.concatenate([number.reshape(-1) for number in numbers])) if numbers else np.zeros(0)
        if np.any((sizes > math.sqrt(_LARGEST)) | ((sizes > 0) & (sizes < 1 / math.sqrt(_LARGEST)))):
            return True
    return False


def _parts(base: Var, limits: Sequence[float], analysis: ValueSetAnalysis) -> list[_Part]:
    """The line, as far as ``base`` reaches, cut at ``limits``; or the finitely many values of ``base``."""
    known = analysis.of(base)
    if known is not None and known.is_exact:
        return [_Part(Interval(value, value), is_point=True) for value in sorted(known.values)]
    dtype = np.dtype(dtype_of(base)).type
    low, high = analysis.bounds.of(base).clipped(-_LARGEST, _LARGEST)
    parts = []
    start = low
    for limit in (limit for limit in limits if low <= limit <= high):
        before = float(np.nextafter(dtype(limit), dtype(-np.inf)))
        if start <= before:
            parts.append(_Part(Interval(start, before), is_point=False))
        if analysis.mixtures.of(base).can_equal(limit) is not False:
            parts.append(_Part(Interval(limit, limit), is_point=True))
        start = float(np.nextafter(dtype(limit), dtype(np.inf)))
    if start <= high:
        parts.append(_Part(Interval(start, high), is_point=False))
    return parts


def _snapped(parts: Sequence[_Part]) -> list[_Part]:
    """``parts`` with magnitudes that differ by rounding alone made one: the one with the shortest significand."""
    sizes = sorted({abs(float(part.value)) for part in parts if part.value is not None}, key=significand_bits)
    snapped = []
    for part in parts:
        assert part.value is not None
        number = float(part.value)
        size = next(size for size in sizes if abs(size - abs(number)) <= MAX_RESIDUE * size)
        value = np.asarray(math.copysign(size, number), part.value.dtype)
        snapped.append(replace(part, value=value, rounded=part.rounded or size != abs(number)))
    return snapped


def _step_function(base: Var, parts: Sequence[_Part], nan: Array) -> StepFunction | None:
    """One threshold that explains ``parts``, or None if it takes several."""
    dtype = np.dtype(dtype_of(base)).type
    changes = [index for index in range(len(parts) - 1) if parts[index].value != parts[index + 1].value]
    rounded = any(part.rounded for part in parts)
    if not parts:
        return None
    if not changes:
        constant = parts[0].value
        return StepFunction(base, np.zeros((), dtype), constant, constant, constant, nan, rounded=rounded)
    if len(changes) == 2 and changes[0] + 1 == changes[1] and parts[changes[1]].is_point:
        threshold, equal = parts[changes[1]].where.low, parts[changes[1]].value
    elif len(changes) == 1:
        left, right = parts[changes[0]], parts[changes[0] + 1]
        if right.is_point and not left.is_point:
            threshold, equal = right.where.low, right.value
        elif left.is_point and not right.is_point:
            threshold, equal = left.where.high, left.value
        else:
            # Nothing lies between the two: any float there separates them.
            middle = float(dtype(left.where.high / 2 + right.where.low / 2))
            threshold = middle if left.where.high < middle <= right.where.low else right.where.low
            equal = right.value
    else:
        return None
    first, last = parts[changes[0]].value, parts[changes[-1] + 1].value
    return StepFunction(base, np.asarray(threshold, dtype), first, equal, last, nan, rounded=rounded)
