"""Schedules for fused elementwise work: one loop nest per result, contiguous loops merged, the inner loop in vectors.

Vectors are cut here and not left to LLVM: a loop of 28 it unrolls first, then vectorises the loop outside of it, with
scatters, at a tenth of the speed. Where the extent is no multiple of the vector, the last vector overlaps the one
before: the elements in common are computed twice, to the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Var
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.sym import detect_linear_equation

from .float_inlining import blocks_of, inline_elementwise, is_epilogue, simplify_accesses
from .float_shared_values import compute_once
from .float_tile import EPILOGUE_ATTR

Block = Any

# Annotation of a loop to be cut into vectors of that many lanes.
_VECTORIZE_ATTR = "bnnc.vectorize"
_SPATIAL = tirx.IterVar.DataPar


def schedule_elementwise(function: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Schedule a whole fused function whose blocks are elementwise work and kernels with an epilogue block."""
    schedule = Schedule(function)
    inline_elementwise(schedule)
    inlined = schedule.mod["main"]
    schedule = Schedule(inlined.with_body(tvm_ffi.structural_map(inlined.body, (SBlock, simplify_accesses))))
    for block in blocks_of(schedule):
        if is_epilogue(schedule, block):
            schedule.unannotate(block, EPILOGUE_ATTR)
            loops, axes = schedule.get_loops(block), schedule.get(block).iter_vars
            # A loop with more in it than the store is the kernel's own. A result of one column is no vector, though
            # the tile is: TVM's vectoriser fails on a let in such a loop (sigmoid of one logit). A whole tensor reduced
            # to one number has no loop.
            if loops and isinstance(schedule.get(loops[-1]).body, SBlockRealize) and int(axes[-1].dom.extent) > 1:
                schedule.annotate(loops[-1], _VECTORIZE_ATTR, lanes)
        else:
            _schedule_block(schedule, block, lanes)
    scheduled = schedule.mod["main"]
    return scheduled.with_body(compute_once(tvm_ffi.structural_map(scheduled.body, (tirx.For, _cut_vectors))))


def _schedule_block(schedule: Schedule, block: Block, lanes: int) -> None:
    """Merge neighbouring loops wherever every access stays linear in the merged loop, and vectorise the innermost.

    Conditions: (1) the block is one store over spatial axes of known size, one loop each, in order; (2) it accesses
    single elements; (3) axes a, b merge where each buffer's offset is linear in both, and its stride over a is its
    stride over b times b's extent; (4) vectors need unit or zero strides. Where they do not hold the loops stay.
    """
    statement = schedule.get(block)
    loops = list(schedule.get_loops(block))
    axes = statement.iter_vars
    if not isinstance(statement.body, tirx.BufferStore) or any(axis.iter_type != _SPATIAL for axis in axes):
        return
    sizes = [axis.dom.extent for axis in axes]
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        return
    extents = [int(size) for size in sizes]
    if len(loops) != len(axes) or any(int(schedule.get(v).extent) != e for v, e in zip(loops, extents, strict=True)):
        return
    strides = []
    for access in (*statement.reads, *statement.writes):
        steps = _strides(access, axes)
        if steps is None:
            return
        strides.append(steps)
    ranges = _mergeable_ranges(extents, strides)
    inner = None
    for first, last in ranges:
        merged = schedule.fuse(*loops[first : last + 1]) if last > first else loops[last]
        inner = merged if inner is None else inner
    if inner is not None and all(steps[_last_wide_axis(extents)] in (0, 1) for steps in strides):
        schedule.annotate(inner, _VECTORIZE_ATTR, lanes)


def _last_wide_axis(extents: Sequence[int]) -> int:
    return max((axis for axis, extent in enumerate(extents) if extent > 1), default=len(extents) - 1)


def _cut_vectors(loop: tirx.For) -> tirx.For:
    """Replace an annotated loop by a loop over vectors, the last of which may overlap the one before."""
    if _VECTORIZE_ATTR not in loop.annotations:
        return loop
    extent = int(loop.extent)
    # The widest power of two that fits.
    width = min(int(loop.annotations[_VECTORIZE_ATTR]), 1 << extent.bit_length() - 1)
    dtype = str(loop.loop_var.ty.dtype)
    vector, lane = tirx.Var(f"{loop.loop_var.name}_vector", dtype), tirx.Var(f"{loop.loop_var.name}_lane", dtype)
    first = vector * width
    if extent % width:
        first = tirx.min(first, tirx.const(extent - width, dtype))
    position = first + lane
    body = tvm_ffi.structural_map(loop.body, (Var, lambda var: position if var.same_as(loop.loop_var) else var))
    zero, count = tirx.const(0, dtype), tirx.const(-(-extent // width), dtype)
    lanes = tirx.For(lane, zero, tirx.const(width, dtype), tirx.ForKind.VECTORIZED, body)
    return tirx.For(vector, zero, count, tirx.ForKind.SERIAL, lanes)


def _mergeable_ranges(extents: Sequence[int], strides: Sequence[Sequence[int | None]]) -> list[tuple[int, int]]:
    """Split the axes into runs [first, last] to merge, innermost first; an axis of extent 1 joins any run.

    A run holds at most two longer axes: TVM simplifies i // b * b + i % b to i, but not the like over three axes, and
    then divides in the inner loop.
    """
    ranges: list[tuple[int, int]] = []
    last = len(extents) - 1
    while last >= 0:
        first = last
        while first > 0 and _mergeable(extents, strides, first - 1, last):
            first -= 1
        ranges.append((first, last))
        last = first - 1
    return ranges


def _mergeable(extents: Sequence[int], strides: Sequence[Sequence[int | None]], first: int, last: int) -> bool:
    """Whether axes first ... last are at most two longer than 1, and condition 3 holds for those."""
    wide = [axis for axis in range(first, last + 1) if extents[axis] > 1]
    if len(wide) < 2:
        return True
    outer, inner = wide[0], wide[-1]
    return len(wide) == 2 and all(_continues(steps[outer], steps[inner], extents[inner]) for steps in strides)


def _continues(outer: int | None, inner: int | None, extent: int) -> bool:
    """Whether a step of the outer axis goes on where the inner one, of ``extent``, ends."""
    return outer is not None and inner is not None and outer == inner * extent


def _strides(access: Any, axes: Sequence[Any]) -> list[int | None] | None:
    """Elements by which the offset moves per axis, None for one it is not linear in; None where condition 2 fails."""
    offset: Any = tirx.const(0, "int64")
    for extent, interval in zip(access.source.ty.shape, access.region, strict=True):
        if not isinstance(interval.extent, tirx.IntImm) or int(interval.extent) != 1:
            return None
        offset = offset * extent + interval.min
    return [_stride(offset, axis.var) for axis in axes]


def _stride(offset: Any, variable: Any) -> int | None:
    coefficients = detect_linear_equation(offset, [variable])
    return int(coefficients[0]) if coefficients and isinstance(coefficients[0], tirx.IntImm) else None
