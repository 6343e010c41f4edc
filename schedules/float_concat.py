"""Concatenation of float tensors: each operand's runs of neighbours in memory, copied in vectors.

As element-wise work it would be a choice per element, which neither vectorises nor leaves what it is fused with in
vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import DTYPE, axis, index, parameter, ramp, serial, whole


@dataclass(frozen=True)
class ConcatPlan:
    """Operands of ``shapes``, joined along ``axis``: ``outer`` times a run of each, ``runs`` elements long."""

    shapes: tuple[tuple[int, ...], ...]
    axis: int
    lanes: int

    @property
    def outer(self) -> int:
        """Elements of the axes in front of the joined one."""
        return math.prod(self.shapes[0][: self.axis])

    @property
    def runs(self) -> tuple[int, ...]:
        """Neighbours in memory per operand."""
        return tuple(math.prod(shape[self.axis :]) for shape in self.shapes)


def plan_concat(shapes: Sequence[Sequence[int]], joined: int, lanes: int) -> ConcatPlan | None:
    """Describe a concatenation, or return None where a run is too short for a vector."""
    plan = ConcatPlan(tuple(tuple(shape) for shape in shapes), joined, lanes)
    return plan if plan.outer and min(plan.runs) >= lanes else None


def concat_kernel(plan: ConcatPlan) -> tirx.PrimFunc:
    """Build the kernel (operands…, y); not fusable."""
    first, total = plan.shapes[0], sum(plan.runs)
    out_shape = [*first[: plan.axis], sum(shape[plan.axis] for shape in plan.shapes), *first[plan.axis + 1 :]]
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            operands = [parameter(f"x{i}", shape) for i, shape in enumerate(plan.shapes)]
            y = parameter("y", out_shape)
            with T.sblock("root"):
                T.reads()
                T.writes()
                before = 0
                for x, run in zip(operands, plan.runs, strict=True):
                    with serial(plan.outer) as o, serial(-(-run // plan.lanes)) as vector, T.sblock("copy"):
                        row = axis(plan.outer, o)
                        # The last vector overlaps the one before.
                        start = axis(run, tirx.min(vector * plan.lanes, index(run - plan.lanes)))
                        T.reads(x[whole(x)])
                        T.writes(y[whole(y)])
                        value = x.vload(_flat(x, row * run + start), f"{DTYPE}x{plan.lanes}")
                        position = row * total + (before + start)
                        T.buffer_store(y, value, [*_flat(y, position)[:-1], ramp(position, plan.lanes)])
                    before += run
        return builder.get()


def _flat(buffer: Any, position: Any) -> list[Any]:
    """Indices of a position in memory: the last index runs past its axis."""
    return [*(index(0) for _ in buffer.ty.shape[1:]), position]
