"""Counting along a channel tree: the loops that all bit-sliced convolutions have in common.

For every block of output pixels, every group and every node of the group's program, in order: load the parent's
counter, subtract the planes it has and the node has not, add the planes only the node has, store. What becomes of an
output channel's counter is an epilogue's business (``bitsliced_epilogue``, ``bitsliced_threshold``).

Codes of several bits have a plane per bit; a list is counted once per level, into the upper planes of the counter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from tvm import tirx
from tvm.tirx.script import builder

from bnn_compiler.schedules.bit_counter import BitSlicedCounter
from bnn_compiler.schedules.bit_planes import BlockRun, PlaneLayout
from bnn_compiler.schedules.bitsliced_sizes import BitslicedSizes
from bnn_compiler.schedules.channel_program import (
    LONG_BLOCK,
    MINUS_SLOT,
    NODE_FIELDS,
    PLUS_SLOT,
    SHORT_BLOCK,
    ChannelProgram,
    index_scale,
)
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    load,
    parallel,
    register,
    serial,
    store,
    workspace,
)

_INDICES_PER_WORD = 4
_INDEX_BITS = 16


def program_arguments(layout: PlaneLayout, program: ChannelProgram) -> list[Argument]:
    """The arguments that every counting kernel begins with."""
    return [
        Argument("planes", layout.shape, "uint64"),
        Argument("indices", program.indices.shape, "uint16"),
        Argument("nodes", program.nodes.shape, "int32"),
        Argument("first_rows", program.first_rows.shape, "int32"),
    ]


class CounterEpilogue(Protocol):
    """What becomes of a channel's counter; made once per run of blocks, at the top of a kernel's body."""

    def add_totals(self, planes: Sequence[Expr], *, first: bool) -> None:
        """Take the counter of all planes of the group (ternary: of a half), for the block that follows."""

    def begin_block(self, block: Expr) -> None:
        """The totals are complete; block ``block`` of the run follows."""

    def finish(self, planes: Sequence[Expr], channel: Expr) -> None:
        """Store the results of a channel, whose counter is ``planes``."""


def emit_counting(
    sizes: BitslicedSizes,
    buffers: Mapping[str, Buffer],
    epilogue_of: Callable[[Mapping[str, Buffer], BlockRun], CounterEpilogue],
) -> None:
    """Emit the loops over blocks of pixels, groups and nodes."""
    groups = sizes.layout.geometry.groups
    for run in sizes.layout.runs:
        tasks = groups * run.blocks
        is_parallel = sizes.is_parallel and tasks > 1
        emitter = None if is_parallel else _RunEmitter(sizes, buffers, run, epilogue_of(buffers, run))
        with parallel(tasks) if is_parallel else serial(tasks) as task:
            emitter = emitter or _RunEmitter(sizes, buffers, run, epilogue_of(buffers, run))
            emitter.emit(task % groups, task // groups)


class _RunEmitter:
    """Emits the loops over one run of blocks."""

    def __init__(
        self,
        sizes: BitslicedSizes,
        buffers: Mapping[str, Buffer],
        run: BlockRun,
        epilogue: CounterEpilogue,
    ) -> None:
        self.sizes = sizes
        self.buffers = buffers
        self.run = run
        self.lanes = run.lanes
        self.slots = workspace(sizes.slots * sizes.bits * run.lanes, "uint64")
        self.counter = BitSlicedCounter(sizes.bits, run.lanes, sizes.isa)
        self.position = register(1, "int32")
        self.epilogue = epilogue

    def emit(self, group: Expr, block: Expr) -> None:
        """Loop over the nodes of a group, for a block of pixels."""
        layout = self.sizes.layout
        words = group * layout.shape[1] + self.run.first_word
        planes = bind((words + block * (layout.block_planes * self.lanes)).astype("int64"))
        self._count_roots(planes)
        self.epilogue.begin_block(block)
        # The number of nodes is read, not known: layers of one geometry have the same code, whatever their trees.
        first = bind(load(self.buffers["first_rows"], group))
        with serial(load(self.buffers["first_rows"], group + 1) - first) as node:
            self._node(planes, first + node)

    def _node(self, planes: Expr, node: Expr) -> None:
        fields = {
            field: bind(load(self.buffers["nodes"], node * len(NODE_FIELDS) + i)) for i, field in enumerate(NODE_FIELDS)
        }
        self._load(fields["parent_slot"])
        start = fields["position"]
        for kind, subtract in (("minus", True), ("plus", False)):
            for level in range(self.sizes.layout.levels):
                store(self.position, 0, start)
                at_level = self._level(planes, level)
                self._count(at_level, fields[f"{kind}_long"], LONG_BLOCK, level, subtract=subtract)
                self._count(at_level, fields[f"{kind}_short"], SHORT_BLOCK, level, subtract=subtract)
            start = bind(load(self.position, 0))
        self._store(fields["slot"])
        with builder.If(fields["channel"] >= 0), builder.Then():
            self.epilogue.finish(self._planes(), fields["channel"])

    def _count_roots(self, planes: Expr) -> None:
        """The counters of "all weights −1" and "all weights +1", and V for the epilogue."""
        layout = self.sizes.layout
        if layout.alphabet == "ternary":
            for half, slot in enumerate((PLUS_SLOT, MINUS_SLOT)):
                self._clear()
                self._count_range(planes + half * layout.plane_stride * self.lanes, layout.plane_stride)
                self._store(slot)
                self.epilogue.add_totals(self._planes(), first=half == 0)
            return
        self._clear()
        self._store(MINUS_SLOT)
        for level in range(layout.levels):
            self._count_range(self._level(planes, level), layout.level_taps, level)
        self._store(PLUS_SLOT)
        self.epilogue.add_totals(self._planes(), first=True)

    def _level(self, planes: Expr, level: int) -> Expr:
        """Where the planes of a level begin."""
        return planes + level * self.sizes.layout.level_planes * self.lanes if level else planes

    def _count_range(self, planes: Expr, taps: int, level: int = 0) -> None:
        with serial(taps // LONG_BLOCK) as long:
            first = bind(planes + long * (LONG_BLOCK * self.lanes))
            self.counter.above(level).count(
                LONG_BLOCK,
                lambda i: bind(load(self.buffers["planes"], first + i * self.lanes, self.lanes)),
                subtract=False,
            )

    def _planes(self) -> list[Expr]:
        return [self.counter.plane(level) for level in range(self.sizes.bits)]

    def _clear(self) -> None:
        for level in range(self.sizes.bits):
            self.counter.set_plane(level, constant(0, "uint64", self.lanes))

    def _slot(self, slot: Index, level: int) -> Index:
        return (slot * self.sizes.bits + level) * self.lanes

    def _load(self, slot: Index) -> None:
        for level in range(self.sizes.bits):
            self.counter.set_plane(level, load(self.slots, self._slot(slot, level), self.lanes))

    def _store(self, slot: Index) -> None:
        for level in range(self.sizes.bits):
            store(self.slots, self._slot(slot, level), self.counter.plane(level), self.lanes)

    def _count(self, planes: Expr, blocks: Expr, size: int, level: int, *, subtract: bool) -> None:
        """Count ``blocks`` blocks of planes named by the next indices."""
        scale = index_scale(self.sizes.layout)
        # An index times eight is the distance in 64-bit words for eight lanes, and a shift away from it for fewer.
        shift = (scale // self.lanes).bit_length() - 1 if scale > 1 else 0
        factor = self.lanes if scale == 1 else 1
        mask = tirx.const((1 << _INDEX_BITS - shift) - 1, "uint64")
        with serial(blocks):
            position = bind(load(self.position, 0))
            words: list[Expr] = []

            def plane_at(i: int) -> Expr:
                # One 64-bit load brings four indices: the load ports are what this loop runs out of first.
                word, field = divmod(i, _INDICES_PER_WORD)
                if word == len(words):
                    four = load(self.buffers["indices"], position + word * _INDICES_PER_WORD, _INDICES_PER_WORD)
                    words.append(bind(tirx.reinterpret("uint64", four)))
                index = bind(
                    ((words[word] >> tirx.const(_INDEX_BITS * field + shift, "uint64")) & mask).astype("int64")
                )
                return bind(load(self.buffers["planes"], planes + index * factor, self.lanes))

            self.counter.above(level).count(size, plane_at, subtract=subtract)
            store(self.position, 0, position + size)
