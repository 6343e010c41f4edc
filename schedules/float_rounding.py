"""Element-wise arithmetic with the rounding of every single operation, as ONNX Runtime computes it.

TVM lets LLVM contract ``a * b + c`` into one fused multiply-add, which rounds once where the graph's two operators
round twice. The last bit then differs from ONNX Runtime's, a sign behind it may, and results that could be equal are
not. ``llvm.arithmetic.fence`` forbids the contraction and costs an instruction, which memory hides.

TVM's simplifier computes with real numbers in a few places: x + c − c becomes x, which undoes the rounding to integers
that adding and subtracting 2^23 is for; x = x becomes true, and the negation of x < y becomes y <= x, though NaN tells
them apart; x - x becomes 0, though ∞ - ∞ is NaN, and so does 0 / x; x + 0 becomes x, of which -0 is another. Fences and
selections keep those as they are.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

_DTYPES = ("float32", "float64")
_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def keep_roundings(body: Any) -> Any:
    """Fence what TVM or LLVM would merge, in scalar code, because schedules vectorise afterwards.

    Only what a reduction adds to its own accumulator keeps the contraction: the order of summation is not the graph's
    anyway, and it gains.
    """
    for node, rewrite in (
        (tirx.Sub, _keep_sum),
        (tirx.EQ, _keep_comparison_with_itself),
        (tirx.NE, _keep_comparison_with_itself),
        (tirx.Or, _keep_alternatives),
        (tirx.Not, _keep_negation),
        (tirx.Add, _fence_products),
        (tirx.Sub, _fence_products),
        (tirx.Sub, _keep_difference_from_itself),
        (tirx.BufferStore, _contract_accumulation),
    ):
        body = tvm_ffi.structural_map(body, (node, rewrite))
    return body


def _keep_sum(difference: Any) -> Any:
    """``fence(a + b) - b``."""
    total = difference.a
    if not isinstance(total, tirx.Add) or not any(_same(side, difference.b) for side in (total.a, total.b)):
        return difference
    return tirx.Sub(fence(total), difference.b)


def _keep_difference_from_itself(difference: Any) -> Any:
    """``a - fence(a)``."""
    return tirx.Sub(difference.a, fence(difference.b)) if _same(difference.a, difference.b) else difference


def _keep_comparison_with_itself(comparison: Any) -> Any:
    """``a == fence(a)``."""
    if not _same(comparison.a, comparison.b):
        return comparison
    return type(comparison)(comparison.a, fence(comparison.b))


def _keep_alternatives(either: Any) -> Any:
    """``fence(a) < b or b <= a``, which is false where one of them is NaN."""
    if not isinstance(either.a, _COMPARISONS):
        return either
    return tirx.Or(type(either.a)(fence(either.a.a), either.a.b), either.b)


def _keep_negation(negation: Any) -> Any:
    """``select(a < b, false, true)``; a = b negated is no exception, a ≠ b being false in TVM where one is NaN."""
    if not isinstance(negation.a, (*_COMPARISONS, tirx.EQ, tirx.NE, tirx.And, tirx.Or)):
        return negation
    return tirx.Select(negation.a, tirx.const(False, "bool"), tirx.const(True, "bool"))


def _fence_products(sum_of_two: Any) -> Any:
    """``fence(a * b) + c``."""
    sides = [fence(side) if isinstance(side, tirx.Mul) else side for side in (sum_of_two.a, sum_of_two.b)]
    return type(sum_of_two)(*sides)


def _contract_accumulation(store: Any) -> Any:
    """``c[i] = c[i] + a * b`` without the fence: element-wise statements do not read what they write."""
    total = store.value
    if not isinstance(total, tirx.Add):
        return store
    accumulator = tirx.BufferLoad(store.buffer, store.indices)
    sides = (total.a, total.b)
    accumulates = [bool(tvm_ffi.structural_equal(side, accumulator)) for side in sides]
    if not any(accumulates):
        return store
    added = [side if loaded else _unfenced(side) for side, loaded in zip(sides, accumulates, strict=True)]
    return tirx.BufferStore(store.buffer, tirx.Add(*added), store.indices)


def _unfenced(value: Any) -> Any:
    """The product inside ``fence(a * b)``; anything else as it is."""
    inner = value.args[-1] if isinstance(value, tvm.ir.Call) and len(value.args) == 2 else value
    fenced = isinstance(inner, tirx.Mul) and tvm_ffi.structural_equal(value, fence(inner))
    return inner if fenced else value


def _same(left: Any, right: Any) -> bool:
    return _is_float(left) and bool(tvm_ffi.structural_equal(left, right))


def _is_float(value: Any) -> bool:
    return str(value.ty.dtype) in _DTYPES


def fence(value: Any) -> Any:
    """``value``, of which the simplifier and LLVM know nothing; integers as they are."""
    if not _is_float(value):
        return value
    return tirx.call_llvm_pure_intrin(str(value.ty.dtype), "llvm.arithmetic.fence", value)
