"""Schedules for fused elementwise work: one loop nest per result, contiguous loops merged, the inner loop in vectors.

Vectors are cut here and not left to LLVM: a loop of 28 it unrolls first, then vectorises the loop outside of it, with
scatters, at a tenth of the speed. Where the extent is no multiple of the vector, the last vector overlaps the one
before: the elements in common are computed twice, to the same result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Range, TensorLoad, Var
from tvm.s_tir import SBlock, SBlockRealize, Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.sym import Analyzer, detect_linear_equation

from .float_shared_values import compute_once, count_reads, read_once
from .float_tile import EPILOGUE_ATTR

Block = Any

# Annotation of a loop to be cut into vectors of that many lanes.
_VECTORIZE_ATTR = "bnnc.vectorize"
_SPATIAL = tirx.IterVar.DataPar
_LARGEST_REPEATED = 128
"""Nodes, indices included, of what is computed in several places rather than stored: a few operations in two of them."""
_SINGLE_INSTRUCTIONS = ("tirx.call_llvm_pure_intrin", "tirx.fabs", "tirx.if_then_else", "tirx.reinterpret")


def schedule_elementwise(function: tirx.PrimFunc, lanes: int) -> tirx.PrimFunc:
    """Schedule a whole fused function whose blocks are elementwise work and kernels with an epilogue block."""
    schedule = Schedule(function)
    _inline(schedule)
    inlined = schedule.mod["main"]
    schedule = Schedule(inlined.with_body(tvm_ffi.structural_map(inlined.body, (SBlock, _simplify_accesses))))
    for block in _blocks(schedule):
        if _is_epilogue(schedule, block):
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


def _inline(schedule: Schedule) -> None:
    """Remove every intermediate that only elementwise work needs.

    First each producer is substituted into its consumers, readers before what they read, so that all reads of a value
    have met in one expression by the time it comes there; then consumers of a kernel's epilogue block move into it.
    Consumers name what they read twice (``read_once``): the value is there once. A block that cannot be inlined (a
    reduction, a result) stays, and so does an epilogue: it reads scratch that the next iteration overwrites. So does
    one that would be computed several times, by several consumers, unless that costs less than to store and load it.
    """
    blocks = _blocks(schedule)
    epilogues = [block for block in blocks if _is_epilogue(schedule, block)]
    for block in reversed(blocks):
        if not _is_epilogue(schedule, block) and _is_worth_inlining(schedule, block):
            _attempt(schedule.compute_inline, block)
    for epilogue in epilogues:
        while consumers := schedule.get_consumers(epilogue):
            if len(consumers) > 1 or not _same_elements(schedule, epilogue, consumers[0]):
                break
            _read_once(schedule, epilogue, consumers[0])
            if not _attempt(schedule.reverse_compute_inline, consumers[0]):
                break


def _is_worth_inlining(schedule: Schedule, producer: Block) -> bool:
    """Whether ``producer`` would be in one place, or is cheap; its consumers name what they read of it."""
    consumers = schedule.get_consumers(producer)
    reads = sum(_read_once(schedule, producer, consumer) for consumer in consumers)
    return reads <= 1 or _cost(schedule.get(producer).body) * reads <= _LARGEST_REPEATED


def _read_once(schedule: Schedule, producer: Block, consumer: Block) -> int:
    """Name what ``consumer`` reads of ``producer`` several times; the number of its reads afterwards."""
    (buffer, *others) = (write.source for write in schedule.get(producer).writes)
    block = schedule.get(consumer)
    named = read_once(block, buffer)
    if not named.same_as(block):
        schedule.state.replace(schedule.get_sref(consumer), named, {block: named})
    return sum(count_reads(schedule.get(consumer).body, written) for written in (buffer, *others))


def _cost(body: Any) -> int:
    """Operations in a statement: nodes, and for a function such as exp more than any that is computed twice."""
    count = 0

    def visit(node: Any) -> None:
        nonlocal count
        count += _LARGEST_REPEATED if isinstance(node, Call) and _is_function(node) else 1

    tvm_ffi.structural_walk(body, visit)
    return count


def _is_function(call: Call) -> bool:
    return str(getattr(call.op, "name", "")) not in _SINGLE_INSTRUCTIONS


def _same_elements(schedule: Schedule, producer: Block, consumer: Block) -> bool:
    """Whether both write as many elements: TVM fails internally where a consumer broadcasts its producer."""
    sizes = [
        math.prod(int(extent) for write in schedule.get(block).writes for extent in write.source.shape)
        for block in (producer, consumer)
    ]
    return sizes[0] == sizes[1]


def _is_epilogue(schedule: Schedule, block: Block) -> bool:
    return EPILOGUE_ATTR in schedule.get(block).annotations


def _simplify_accesses(block: SBlock) -> SBlock:
    """Indices as far as the ranges of the block's axes tell: what a reshape divides by the extent behind an axis is 0.

    Numbers are left as they are: simplified, they would round otherwise.
    """
    if not isinstance(block.body, tirx.BufferStore) or any(axis.iter_type != _SPATIAL for axis in block.iter_vars):
        return block
    analyzer = Analyzer()
    for axis in block.iter_vars:
        analyzer.bind(axis.var, axis.dom)

    def simplify_load(load: TensorLoad) -> TensorLoad:
        return tirx.BufferLoad(load.source, [analyzer.simplify(index) for index in load.indices])

    def simplify_region(access: Any) -> Any:
        ranges = [Range.from_min_extent(analyzer.simplify(part.min), part.extent) for part in access.region]
        return tirx.BufferRegion(access.source, ranges)

    reads, writes = ([simplify_region(access) for access in accesses] for accesses in (block.reads, block.writes))
    body = tvm_ffi.structural_map(block.body, (TensorLoad, simplify_load))
    return SBlock(
        block.iter_vars, reads, writes, block.name_hint, body, block.init, block.alloc_buffers, block.match_buffers,
        block.annotations,
    )  # fmt: skip


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


def _blocks(schedule: Schedule) -> list[Block]:
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _attempt(primitive: Any, block: Block) -> bool:
    """Apply a schedule primitive; False where its preconditions do not hold, with the schedule unchanged."""
    try:
        primitive(block)
    except ScheduleError:
        return False
    return True
