"""Linear resizing of two or three axes at once, in the order of operations that ONNX Runtime has.

Each result is the sum of the 4 or 8 elements around it, last axis fastest, each with the product of its weights per
axis, which is taken from the last axis on:

    y[r, s] = (u[0, s] · v[0, r]) · x[e[0, r], f[0, s]] + (u[1, s] · v[0, r]) · x[e[0, r], f[1, s]] + …

In "float" arithmetic of float32, cut to an integer where the result is one; or "fixed": weights are multiples of 2^-10
and sums are of integers.

Where rows are resized that lie densely in memory, the two elements per column are gathered first, once per row, so that
the sums are of neighbours. Where elements behind the columns share their weights (channels last), those are neighbours.
"""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import axis, index, serial, shared, whole
from .kernel_builder import constant, splat, typed
from .resize_axis import buffer_parameter, fenced, load_as, store_flat

FIXED_BITS = 10
_LANES = 8
_CYCLES_PER_TERM = 2


@dataclass(frozen=True)
class LinearPlan:
    """``shape`` with ``resized`` lengths of its axes from ``first`` on."""

    shape: tuple[int, ...]
    first: int
    resized: tuple[int, ...]
    dtype: str
    arithmetic: Literal["float", "fixed"]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the axes before."""
        return self.shape[self.first : self.first + len(self.resized)]

    @property
    def outer(self) -> int:
        """Product of the axes in front of those."""
        return math.prod(self.shape[: self.first])

    @property
    def inner(self) -> int:
        """Product of the axes behind them."""
        return math.prod(self.shape[self.first + len(self.resized) :])

    @property
    def lanes(self) -> int:
        """Elements computed at once."""
        neighbours = self.inner if self.inner > 1 else self.resized[-1]
        return min(_LANES, 1 << neighbours.bit_length() - 1)

    @property
    def number(self) -> str:
        """The type that sums have."""
        return "float32" if self.arithmetic == "float" else "int32"

    def cycles(self) -> int:
        """Estimated cycles of the kernel."""
        results = self.outer * math.prod(self.resized) * self.inner
        return (_CYCLES_PER_TERM << len(self.resized)) * results // self.lanes


class _Kernel:
    """The buffers of the kernel under construction."""

    def __init__(self, plan: LinearPlan) -> None:
        self.plan = plan
        self.x = buffer_parameter("x", plan.shape, plan.dtype)
        self.elements, self.weights = [], []
        for number, resized in enumerate(plan.resized):
            self.elements.append(buffer_parameter(f"elements{number}", (2, resized), "int32"))
            self.weights.append(buffer_parameter(f"weights{number}", (2, resized), plan.number))
        end = plan.first + len(plan.resized)
        self.y = buffer_parameter("y", (*plan.shape[: plan.first], *plan.resized, *plan.shape[end:]), plan.dtype)

    def element(self, number: int, tap: int, position: Any) -> Any:
        """The element of axis ``number`` that a result takes as its first or second."""
        return tirx.Cast("int64", self.elements[number][tap, position])

    def touch(self, *buffers: Any) -> None:
        """Declare what the sblock under construction may read."""
        T.reads(*(buffer[whole(buffer)] for buffer in (*buffers, *self.elements, *self.weights)))

    def sums(self, terms: list[tuple[list[Any], Any]], lanes: int) -> Any:
        """The result of ``terms``: weights from the last axis on, and elements."""
        number, total = self.plan.number, None
        for weights, value in terms:
            weight = weights[0]
            for factor in weights[1:]:
                weight = weight * factor
            product = fenced(weight * value, number, lanes)
            total = product if total is None else total + product
        if self.plan.arithmetic == "fixed":
            total = tirx.truncdiv(total, constant(1 << 2 * FIXED_BITS, "int32", lanes))
        return total if self.plan.dtype == number else tirx.Cast(typed(self.plan.dtype, lanes), total)


def linear_kernel(plan: LinearPlan) -> tirx.PrimFunc:
    """Build the kernel (x, elements and weights [2, resized] per axis, y); not fusable."""
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque. Scheduled: passes would merge products and sums that have to round one by one.
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            kernel = _Kernel(plan)
            with T.sblock("root"):
                T.reads()
                T.writes()
                (_resize_rows if plan.inner == 1 else _resize_channels)(kernel)
        return builder.get()


def _resize_rows(kernel: _Kernel) -> None:
    """Gather the elements of each row, then sum neighbours."""
    plan, lanes = kernel.plan, kernel.plan.lanes
    rows, columns, results = math.prod(plan.sizes[:-1]), plan.sizes[-1], plan.resized[-1]
    last, others = len(plan.resized) - 1, plan.resized[:-1]
    gathered = T.sblock_alloc_buffer([index(2), index(rows), index(results)], plan.number, layout=None)
    IRBuilder.name("gathered", gathered)
    with shared(plan.outer, plan.cycles()) as o:
        with T.sblock("gather"):
            vo = axis(plan.outer, o)
            kernel.touch(kernel.x)
            T.writes(gathered[whole(gathered)])
            with serial(rows) as row, serial(results) as column:
                for tap in range(2):
                    position = (vo * rows + row) * columns + kernel.element(last, tap, column)
                    T.buffer_store(gathered, load_as(kernel.x, position, 1, plan.number), [index(tap), row, column])
        with T.sblock("sum"):
            vo = axis(plan.outer, o)
            kernel.touch(gathered)
            T.writes(kernel.y[whole(kernel.y)])
            with ExitStack() as nest:
                positions = [nest.enter_context(serial(extent)) for extent in others]
                vector = nest.enter_context(serial(-(-results // lanes)))
                # The last vector overlaps the one before.
                first = T.Bind(tirx.min(vector * lanes, index(results - lanes)))
                terms = []
                for taps in itertools.product(range(2), repeat=len(plan.resized)):
                    source: Any = index(0)
                    for number, (tap, position) in enumerate(zip(taps, positions, strict=False)):
                        source = source * plan.sizes[number] + kernel.element(number, tap, position)
                    weights = [load_as(kernel.weights[last], taps[-1] * results + first, lanes, plan.number)]
                    for number in reversed(range(last)):
                        weights.append(splat(kernel.weights[number][taps[number], positions[number]], lanes))
                    start = (taps[-1] * rows + source) * results + first
                    terms.append((weights, load_as(gathered, start, lanes, plan.number)))
                written: Any = vo
                for extent, position in zip(others, positions, strict=True):
                    written = written * extent + position
                store_flat(kernel.y, kernel.sums(terms, lanes), written * results + first, lanes)


def _resize_channels(kernel: _Kernel) -> None:
    """Sum the pixels around each result, their channels at once."""
    plan, lanes, inner = kernel.plan, kernel.plan.lanes, kernel.plan.inner
    cycles = plan.cycles()
    with (
        shared(plan.outer, cycles) as o,
        shared(plan.resized[0], cycles if plan.outer == 1 else 0) as r,
        serial(math.prod(plan.resized[1:])) as s,
        T.sblock("sum"),
    ):
        vo, vr = axis(plan.outer, o), axis(plan.resized[0], r)
        vs = axis(math.prod(plan.resized[1:]), s)
        kernel.touch(kernel.x)
        T.writes(kernel.y[whole(kernel.y)])
        rest: Any = vs
        positions: list[Any] = []
        for extent in reversed(plan.resized[1:]):
            positions.insert(0, rest % extent)
            rest = rest // extent
        positions.insert(0, vr)
        with serial(-(-inner // lanes)) as vector:
            first = T.Bind(tirx.min(vector * lanes, index(inner - lanes)))
            terms = []
            for taps in itertools.product(range(2), repeat=len(plan.resized)):
                pixel: Any = vo
                weights: list[Any] = []
                for number, (tap, position) in enumerate(zip(taps, positions, strict=True)):
                    pixel = pixel * plan.sizes[number] + kernel.element(number, tap, position)
                    weights.insert(0, splat(kernel.weights[number][tap, position], lanes))
                terms.append((weights, load_as(kernel.x, pixel * inner + first, lanes, plan.number)))
            written: Any = vo * plan.resized[0] + vr
            written = written * math.prod(plan.resized[1:]) + vs
            store_flat(kernel.y, kernel.sums(terms, lanes), written * inner + first, lanes)
