"""Maxima and minima as ONNX Runtime computes them: NaN where an operand is NaN.

TVM's ``Max`` and ``Min`` select by one comparison, which takes the second operand where one is NaN: that is what the
processors' instructions do (``maxps`` of x86), and loses the NaN of the first. So the operand that cannot be NaN, a
constant, goes first: the same instruction, and NaN stays. Where both may be NaN, LLVM's ``maximum`` or, in kernels, a
comparison and a selection keep the first one's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx

_DTYPES = ("float32", "float64")


def maximum(a: Any, b: Any) -> Any:
    """The larger of two float expressions that are named or loaded; NaN where one is."""
    if _is_constant_number(a) or _is_constant_number(b):
        return tirx.Max(a, b) if _is_constant_number(a) else tirx.Max(b, a)
    return tirx.Select(is_number(a), tirx.Max(a, b), a)


def minimum(a: Any, b: Any) -> Any:
    """The smaller of two float expressions that are named or loaded; NaN where one is."""
    if _is_constant_number(a) or _is_constant_number(b):
        return tirx.Min(a, b) if _is_constant_number(a) else tirx.Min(b, a)
    return tirx.Select(is_number(a), tirx.Min(a, b), a)


def largest(values: Sequence[Any], bind: Callable[[Any], Any]) -> Any:
    """The largest of float expressions, NaN where one is; ``bind`` names what is used twice.

    A comparison tells of two values at once that neither is NaN; the last value's NaN comes through by itself.
    """
    best, ordered = values[0], None
    for value in values[1:]:
        best = bind(tirx.Max(best, value))
    for i in range(0, len(values) - 1, 2):
        pair = [is_number(value) for value in values[i : min(i + 2, len(values) - 1)]]
        both = functools.reduce(tirx.And, pair)
        ordered = both if ordered is None else tirx.And(ordered, both)
    if ordered is None:
        return best
    dtype = str(best.ty.dtype)
    scalar, _, lanes = dtype.partition("x")
    nan = tirx.const(np.nan, scalar)
    return bind(tirx.Select(ordered, best, tirx.Broadcast(nan, int(lanes)) if lanes else nan))


def keep_nan(body: Any) -> Any:
    """Replace ``Max`` and ``Min`` of scalar floats in a statement, mentioning each operand once.

    Kernels write their own, of vectors. An operand mentioned twice would double an expression at every operator.
    """
    body = tvm_ffi.structural_map(body, (tirx.Max, lambda node: _once(node, tirx.Max, "llvm.maximum")))
    return tvm_ffi.structural_map(body, (tirx.Min, lambda node: _once(node, tirx.Min, "llvm.minimum")))


def _once(node: Any, operator: Any, intrinsic: str) -> Any:
    if str(node.ty.dtype) not in _DTYPES:
        return node
    if _is_constant_number(node.b):
        return operator(node.b, node.a)
    if _is_constant_number(node.a):
        return node
    return tirx.call_llvm_pure_intrin(str(node.ty.dtype), intrinsic, node.a, node.b)


def is_number(value: Any) -> Any:
    """Whether a float expression is no NaN: ``value == value``, through its bits, for TVM takes that as true.

    LLVM sees through it and joins pairs of such tests to one comparison.
    """
    dtype = str(value.ty.dtype)
    return value.equal(tirx.reinterpret(dtype, tirx.reinterpret(dtype.replace("float", "int"), value)))


def _is_constant_number(value: Any) -> bool:
    """Whether ``value`` is a constant other than NaN."""
    scalar = value.value if isinstance(value, tirx.Broadcast) else value
    return isinstance(scalar, tirx.FloatImm) and not np.isnan(scalar.value)
