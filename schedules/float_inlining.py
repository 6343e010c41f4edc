"""Fused element-wise work becomes one statement per result: intermediates are put in the place of their reads."""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Range, TensorLoad, Var
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.sym import Analyzer

from .float_shared_values import read_once, reads_of
from .float_tile import EPILOGUE_ATTR

Block = Any

_SPATIAL = tirx.IterVar.DataPar
_LARGEST_REPEATED = 128
"""Nodes, indices included, of what several places compute rather than load: a few operations in two of them."""
_LARGEST_INDEX = 256
"""Nodes; that of a reshape has a dozen."""
_SINGLE_INSTRUCTIONS = ("tirx.call_llvm_pure_intrin", "tirx.fabs", "tirx.if_then_else", "tirx.reinterpret")


def inline_elementwise(schedule: Schedule) -> None:
    """Remove every intermediate that only elementwise work needs.

    First each producer is substituted into its consumers, readers before what they read, so that all reads of a value
    have met in one expression by the time it comes there; then consumers of a kernel's epilogue block move into it.
    Consumers name what they read twice (``read_once``), so the value is there once. A block that cannot be inlined (a
    reduction, a result) stays, and so does an epilogue: it reads scratch that the next iteration overwrites. So does
    one that several consumers would compute, unless that costs less than to store and load it.
    """
    blocks = blocks_of(schedule)
    epilogues = [block for block in blocks if is_epilogue(schedule, block)]
    for block in reversed(blocks):
        if not is_epilogue(schedule, block):
            _inline_producer(schedule, block)
    for epilogue in epilogues:
        while consumers := schedule.get_consumers(epilogue):
            if len(consumers) > 1 or not _same_elements(schedule, epilogue, consumers[0]):
                break
            _read_once(schedule, epilogue, consumers[0])
            if not _attempt(schedule.reverse_compute_inline, consumers[0]):
                break


def _inline_producer(schedule: Schedule, producer: Block) -> None:
    """Substitute ``producer`` where that makes one of it, or is cheap.

    Indices grow, too: behind a reshape each is an expression of several axes, in which the next one puts such
    expressions. Where they do not simplify, as those of pixel shuffles, the block stays.
    """
    consumers = schedule.get_consumers(producer)
    if len(schedule.get(producer).writes) != 1:
        return
    reads = [load for consumer in consumers for load in _read_once(schedule, producer, consumer)]
    if len(reads) > 1 and _cost(schedule.get(producer).body) * len(reads) > _LARGEST_REPEATED:
        return
    moved = [index for load in reads for index in load.indices if not isinstance(index, (Var, tirx.IntImm))]
    if any(_cost(index) > _LARGEST_INDEX for index in moved):
        return
    if _attempt(schedule.compute_inline, producer) and moved:
        for consumer in consumers:
            _rewrite(schedule, consumer, simplify_accesses(schedule.get(consumer)))


def _read_once(schedule: Schedule, producer: Block, consumer: Block) -> list[TensorLoad]:
    """Name what ``consumer`` reads of ``producer`` several times; its reads afterwards."""
    buffer = schedule.get(producer).writes[0].source
    _rewrite(schedule, consumer, read_once(schedule.get(consumer), buffer))
    return reads_of(schedule.get(consumer).body, buffer)


def _rewrite(schedule: Schedule, block: Block, rewritten: SBlock) -> None:
    before = schedule.get(block)
    if not rewritten.same_as(before):
        schedule.state.replace(schedule.get_sref(block), rewritten, {before: rewritten})


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


def is_epilogue(schedule: Schedule, block: Block) -> bool:
    """Whether a kernel writes its result through ``block``."""
    return EPILOGUE_ATTR in schedule.get(block).annotations


def simplify_accesses(block: SBlock) -> SBlock:
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


def blocks_of(schedule: Schedule) -> list[Block]:
    """The outermost blocks, in order."""
    return list(schedule.get_child_blocks(schedule.get_sblock("root")))


def _attempt(primitive: Any, block: Block) -> bool:
    """Apply a schedule primitive; False where its preconditions do not hold, with the schedule unchanged."""
    try:
        primitive(block)
    except ScheduleError:
        return False
    return True
