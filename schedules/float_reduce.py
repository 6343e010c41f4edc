"""Float reductions and softmax over the trailing axes, in vectors along those axes.

A maximum or minimum begins with the first element and goes on to what compares as better, as ``std::max`` does: it is
NaN where the first element is, and passes over other NaN. That is what ONNX Runtime gives for axes other than the
last; along the last one its result depends on how the row lies in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_math import exp
from .float_nan import is_number
from .float_tile import DTYPE, EPILOGUE_ATTR, axis, index, parameter, ramp, registers, scratch, serial, whole

ReduceKind = Literal["sum", "mean", "max", "min"]

# Running vectors per row: an addition every cycle in spite of its latency.
_CHAINS = 4


@dataclass(frozen=True)
class ReducePlan:
    """A reduction of the last ``trailing`` (1 or 2) axes of ``shape`` to 1."""

    kind: ReduceKind
    shape: tuple[int, ...]
    trailing: int
    keep_axes: bool
    lanes: int


def reduce_kernel(plan: ReducePlan) -> tirx.PrimFunc:
    """Build the kernel (x, y), fusable with consumers."""
    leading, tail = plan.shape[: -plan.trailing], plan.shape[-plan.trailing :]
    length = math.prod(tail)
    combine, identity = _combiner(plan.kind)
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            x = parameter("x", plan.shape)
            y = parameter("y", (*leading, *(1 for _ in tail)) if plan.keep_axes else leading)
            with T.sblock("root"):
                T.reads()
                T.writes()
                total = scratch("total", (1,))
                with _grid(leading) as rows:
                    with T.sblock("row"):
                        row = [axis(extent, i) for extent, i in zip(leading, rows, strict=True)]
                        T.reads(x[(*(slice(i, i + 1) for i in row), *(slice(index(0), index(e)) for e in tail))])
                        T.writes(total[whole(total)])
                        value = _reduce_row(
                            lambda j, lanes: _load(x, row, tail, j, lanes), length, plan.lanes, combine, identity
                        )
                        if plan.kind == "mean":
                            value = value / length
                        elif plan.kind in ("max", "min"):
                            first = T.Bind(_load(x, row, tail, index(0), 1))
                            value = tirx.Select(is_number(first), value, first)
                        T.buffer_store(total, value, [index(0)])
                    with T.sblock("out"):
                        row = [axis(extent, i) for extent, i in zip(leading, rows, strict=True)]
                        ones = [axis(1, index(0)) for _ in tail] if plan.keep_axes else []
                        T.reads(total[index(0)])
                        T.writes(y[(*row, *ones)])
                        T.sblock_attr({EPILOGUE_ATTR: 1})
                        T.buffer_store(y, total[index(0)], [*row, *ones])
        return builder.get()


def softmax_kernel(shape: tuple[int, ...], lanes: int) -> tirx.PrimFunc:
    """Build the kernel (x, y) of a softmax over the last axis; not fusable."""
    leading, length = shape[:-1], shape[-1]
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            x, y = parameter("x", shape), parameter("y", shape)
            with T.sblock("root"):
                T.reads()
                T.writes()
                with _grid(leading) as rows, T.sblock("row"):
                    row = [axis(extent, i) for extent, i in zip(leading, rows, strict=True)]
                    where = (*(slice(i, i + 1) for i in row), slice(index(0), index(length)))
                    T.reads(x[where])
                    T.writes(y[where])
                    _softmax_row(x, y, row, length, lanes)
        return builder.get()


def _softmax_row(x: Any, y: Any, row: list[Any], length: int, lanes: int) -> None:
    combine, identity = _combiner("max")
    highest = T.Bind(_reduce_row(lambda j, width: _load(x, row, (length,), j, width), length, lanes, combine, identity))

    def store(j: Any, width: int, value: Any) -> None:
        T.buffer_store(y, value, [*row, ramp(j, width) if width > 1 else j])

    def exponential(j: Any, width: int) -> Any:
        shift = highest if width == 1 else tirx.Broadcast(highest, width)
        value = T.Bind(exp(_load(x, row, (length,), j, width) - shift, nonpositive=True))
        store(j, width, value)
        return value

    combine, identity = _combiner("sum")
    total = _reduce_row(exponential, length, lanes, combine, identity)
    scale = T.Bind(tirx.const(1.0, DTYPE) / total)
    full = length // lanes
    with serial(full) as v:
        store(v * lanes, lanes, y.vload([*row, v * lanes], f"{DTYPE}x{lanes}") * tirx.Broadcast(scale, lanes))
    with serial(length - full * lanes) as i:
        j = i + full * lanes
        store(j, 1, y[(*row, j)] * scale)


def _reduce_row(
    load: Callable[[Any, int], Any], length: int, lanes: int, combine: Callable[[Any, Any], Any], identity: float
) -> Any:
    """Emit the reduction of ``load(j, width)`` over j < length; every j is loaded once. Returns the scalar."""
    width = max(lanes, 2)
    totals = registers("totals", _CHAINS * width)
    vector_dtype = f"{DTYPE}x{width}"

    def accumulate(chain: int, j: Any) -> None:
        start = index(chain * width)
        value = combine(totals.vload([start], vector_dtype), load(j, width))
        T.buffer_store(totals, value, [ramp(start, width)])

    for chain in range(_CHAINS):
        start = index(chain * width)
        T.buffer_store(totals, tirx.Broadcast(tirx.const(identity, DTYPE), width), [ramp(start, width)])
    vectors = length // width
    with serial(vectors // _CHAINS) as step:
        for chain in range(_CHAINS):
            accumulate(chain, (step * _CHAINS + chain) * width)
    for chain in range(vectors % _CHAINS):
        accumulate(chain, index((vectors // _CHAINS * _CHAINS + chain) * width))
    # The rest joins the first element of its chain, one scalar at a time.
    with serial(length - vectors * width) as i:
        value = combine(totals[index(0)], load(i + vectors * width, 1))
        T.buffer_store(totals, value, [index(0)])
    half = _CHAINS * width // 2
    while half >= 1:
        if half > 1:
            dtype = f"{DTYPE}x{half}"
            value = combine(totals.vload([index(0)], dtype), totals.vload([index(half)], dtype))
            T.buffer_store(totals, value, [ramp(index(0), half)])
        else:
            T.buffer_store(totals, combine(totals[index(0)], totals[index(1)]), [index(0)])
        half //= 2
    return totals[index(0)]


def _load(x: Any, row: list[Any], tail: tuple[int, ...], j: Any, width: int) -> Any:
    """Load ``width`` elements from position j of the flattened trailing axes.

    The last index runs past its axis into the next row of the image, which is where those elements are.
    """
    position = [*row, *(index(0) for _ in tail[1:]), j]
    return x.vload(position, f"{DTYPE}x{width}") if width > 1 else x[tuple(position)]


@contextmanager
def _grid(extents: tuple[int, ...]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serial(extent)) for extent in extents]


def _combiner(kind: ReduceKind) -> tuple[Callable[[Any, Any], Any], float]:
    """How to join a result so far and an element, and what to begin with; NaN elements are passed over."""
    if kind == "max":
        return (lambda found, other: tirx.Select(other > found, other, found)), -np.inf
    if kind == "min":
        return (lambda found, other: tirx.Select(other < found, other, found)), np.inf
    return (lambda left, right: left + right), 0.0
