"""Weighted sums of elements along one axis, other ones for each result: a step of cubic and antialiased resizing.

With e, w and n tables of the kernel, and the tensors seen as [outer, axis, inner]:

    y[o, r, i] = sum of w[r, k] · x[o, e[r, k], i] over k = 0 … n[r] - 1, in this order, each operation rounded

In "float" arithmetic of float32; "rounded" to the nearest integer, halves away from zero; or "fixed": weights are
multiples of 2^-22, the sum is of integers, rounded and clipped to 0 … 255, and what this gives for a signed result is
its low byte, as in ONNX Runtime.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import axis, index, ramp, serial, shared, whole
from .float_transpose import flat
from .kernel_builder import constant, splat, typed

Arithmetic = Literal["float", "rounded", "fixed"]

FIXED_BITS = 22
_LANES = 8
_CYCLES_PER_TAP = 2


@dataclass(frozen=True)
class AxisPlan:
    """``shape`` resized along ``axis`` to ``resized``, with at most ``taps`` terms; ``divides``: terms by a number."""

    shape: tuple[int, ...]
    axis: int
    resized: int
    taps: int
    dtype: str
    arithmetic: Arithmetic
    divides: bool

    @property
    def outer(self) -> int:
        """Product of the axes before."""
        return math.prod(self.shape[: self.axis])

    @property
    def inner(self) -> int:
        """Product of the axes behind."""
        return math.prod(self.shape[self.axis + 1 :])

    @property
    def lanes(self) -> int:
        """Elements computed at once: neighbours behind the axis."""
        return min(_LANES, 1 << self.inner.bit_length() - 1)


def buffer_parameter(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Declare the next buffer parameter of the function under construction."""
    return T.arg(name, T.buffer([index(extent) for extent in shape], dtype, layout=None))


def fenced(value: Any, dtype: str, lanes: int) -> Any:
    """A float product that is rounded before it is added."""
    if not dtype.startswith("float"):
        return value
    return tirx.call_llvm_pure_intrin(typed(dtype, lanes), "llvm.arithmetic.fence", value)


def load_as(buffer: Any, position: Any, lanes: int, dtype: str) -> Any:
    """``lanes`` neighbours from an element on, as numbers of another type."""
    stored = str(buffer.dtype)
    value = buffer.vload(flat(buffer, position), typed(stored, lanes))
    return value if stored == dtype else tirx.Cast(typed(dtype, lanes), value)


def store_flat(buffer: Any, value: Any, position: Any, lanes: int) -> None:
    """``lanes`` neighbours from an element on."""
    T.buffer_store(buffer, value, [*flat(buffer, position)[:-1], ramp(position, lanes) if lanes > 1 else position])


def axis_kernel(plan: AxisPlan) -> tirx.PrimFunc:
    """Build the kernel (x, e, w, n, y), with divisors [resized] before y where the plan divides; not fusable."""
    rows, inner, lanes = plan.shape[plan.axis], plan.inner, plan.lanes
    number = "int32" if plan.arithmetic == "fixed" else "float32"
    vectors = -(-inner // lanes)
    cycles = _CYCLES_PER_TAP * plan.taps * plan.outer * plan.resized * vectors
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque. Scheduled: passes would merge products and sums that have to round one by one.
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            x = buffer_parameter("x", plan.shape, plan.dtype)
            elements = buffer_parameter("elements", (plan.resized, plan.taps), "int32")
            weights = buffer_parameter("weights", (plan.resized, plan.taps), number)
            counts = buffer_parameter("counts", (plan.resized,), "int32")
            divisors = buffer_parameter("divisors", (plan.resized,), "float32") if plan.divides else None
            resized = (*plan.shape[: plan.axis], plan.resized, *plan.shape[plan.axis + 1 :])
            y = buffer_parameter("y", resized, plan.dtype)
            with T.sblock("root"):
                T.reads()
                T.writes()
                with (
                    shared(plan.outer, cycles) as o,
                    shared(plan.resized, cycles if plan.outer == 1 else 0) as r,
                    serial(vectors) as vector,
                    T.sblock("sum"),
                ):
                    vo, vr = axis(plan.outer, o), axis(plan.resized, r)
                    # The last vector overlaps the one before.
                    first = axis(inner, tirx.min(vector * lanes, index(inner - lanes)))
                    T.reads(x[whole(x)], elements[whole(elements)], weights[whole(weights)], counts[whole(counts)])
                    T.writes(y[whole(y)])
                    total = T.alloc_buffer([index(lanes)], number, layout=None)
                    IRBuilder.name("total", total)
                    start = 1 << FIXED_BITS - 1 if plan.arithmetic == "fixed" else 0
                    store_flat(total, constant(start, number, lanes), index(0), lanes)
                    with T.serial(index(0), tirx.Cast("int64", counts[vr])) as k:
                        row = vo * rows + tirx.Cast("int64", elements[vr, k])
                        value = load_as(x, row * inner + first, lanes, number) * splat(weights[vr, k], lanes)
                        term = fenced(value, number, lanes)
                        if divisors is not None:
                            term = term / splat(divisors[vr], lanes)
                        store_flat(total, load_as(total, index(0), lanes, number) + term, index(0), lanes)
                    value = _finished(plan, load_as(total, index(0), lanes, number))
                    store_flat(y, value, (vo * plan.resized + vr) * inner + first, lanes)
        return builder.get()


def _finished(plan: AxisPlan, total: Any) -> Any:
    """The sum as an element of the result."""
    lanes = plan.lanes
    if plan.arithmetic == "float":
        return total if plan.dtype == "float32" else tirx.Cast(typed(plan.dtype, lanes), total)
    if plan.arithmetic == "rounded":
        return tirx.Cast(typed(plan.dtype, lanes), _rounded(total, lanes))
    shifted = total >> constant(FIXED_BITS, "int32", lanes)
    clipped = tirx.max(tirx.min(shifted, constant(255, "int32", lanes)), constant(0, "int32", lanes))
    return tirx.Cast(typed(plan.dtype, lanes), clipped)


def _rounded(value: Any, lanes: int) -> Any:
    """The nearest integer, halves away from zero (TVM's ``round`` takes them up)."""
    size = T.Bind(tirx.abs(value))
    whole_part = T.Bind(tirx.trunc(size))
    zero, half, one = (constant(number, "float32", lanes) for number in (0.0, 0.5, 1.0))
    nearest = T.Bind(whole_part + tirx.Select(size - whole_part >= half, one, zero))
    return tirx.Select(value < zero, zero - nearest, nearest)
