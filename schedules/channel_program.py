"""A channel tree as a program for the counting kernel: which planes to add to and take from which counter.

A node's counter U = Σ_{w = +1} b starts as its parent's. Taps that the parent has and the node has not are subtracted,
taps that only the node has are added. The two virtual parents are "all weights −1" and "all weights +1".

Three-valued activations have two planes per weight, x > 0 and x < 0, and the second is counted where the weight is −1:
U = Σ_{w = +1} p + Σ_{w = −1} n. Then every weight that differs is one plane added and one taken.

Counters live in slots. Nodes are visited depth first, the child with the largest subtree last, and a slot is free again
once the last child has started from it, so that few counters are alive at once (at most log2 of the nodes + 1). Groups
follow each other, each with nodes of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.bit_planes import PlaneLayout

#: Parents that are no nodes: all weights −1, and all weights +1.
ALL_MINUS, ALL_PLUS = -1, -2
MINUS_SLOT, PLUS_SLOT, FIRST_SLOT = 0, 1, 2
#: Columns of a program's node table.
NODE_FIELDS = (
    "parent_slot",
    "slot",
    "position",
    "minus_long",
    "minus_short",
    "plus_long",
    "plus_short",
    "channel",
    "parent_row",
)
NO_CHANNEL = -1
#: Trees leave lists of 50 to 250 planes: with long blocks of 64 more of them are counted in short ones (6 % slower).
LONG_BLOCK, SHORT_BLOCK = 32, 8
#: Most planes that 16-bit indices can name, and most whose indices can be stored times eight (see ``index_scale``).
MOST_PLANES = 1 << 16
_SCALE = 8


@dataclass(frozen=True, eq=False)
class ChannelTree:
    """The tree of one group: ``vectors`` bool [nodes, N], rows 0 … channels − 1 being the group's output channels.

    True is a weight +1, weights in the order (channel, ky, kx). ``parents[i]`` is a node, ``ALL_MINUS`` or
    ``ALL_PLUS``.
    """

    vectors: NDArray[np.bool_]
    parents: Sequence[int]


@dataclass(frozen=True, eq=False)
class ChannelProgram:
    """``nodes`` int32 [nodes, 9] (NODE_FIELDS) in visiting order, ``indices`` uint16 [...] of planes (times the scale).

    ``position`` counts indices; lists are padded to whole short blocks with the zero plane. ``order[row]`` is the node
    of the tree (of its group) that a row visits, ``first_rows`` int32 [G + 1] the first row of each group. ``planes``
    is the number of plane additions per block, padding included.
    """

    nodes: NDArray[np.int32]
    indices: NDArray[np.uint16]
    order: NDArray[np.int64]
    first_rows: NDArray[np.int32]
    slots: int

    @property
    def tables(self) -> tuple[NDArray[np.uint16], NDArray[np.int32], NDArray[np.int32]]:
        """What counting kernels read besides planes, in the order of their arguments."""
        return self.indices, self.nodes, self.first_rows

    @property
    def planes(self) -> int:
        """Planes counted per block of pixels, padding included."""
        return len(self.indices)


def index_scale(layout: PlaneLayout) -> int:
    """Indices are stored times eight where that fits 16 bits: then an address needs no shift."""
    return _SCALE if layout.level_planes * _SCALE <= MOST_PLANES else 1


def usual_slots(channels: int) -> int:
    """Slots that suffice for any tree of ``channels`` channels whose synthetic nodes have two children or more."""
    return FIRST_SLOT + (2 * channels - 1).bit_length()


def make_program(layout: PlaneLayout, trees: Sequence[ChannelTree]) -> ChannelProgram:
    """The program of one tree per group.

    Raises ValueError where the planes do not fit a 16-bit index, or a tree's parents form no forest or its vectors have
    the wrong length.
    """
    if layout.level_planes > MOST_PLANES:
        raise ValueError(f"{layout.level_planes} planes do not fit a 16-bit index")
    channels = layout.geometry.group_out_channels
    taps = layout.weight_taps()
    tables, orders, lists = [], [], []
    first_rows = [0]
    position, slots = 0, FIRST_SLOT
    for group, tree in enumerate(trees):
        if tree.vectors.shape[1] != layout.weights or not channels <= len(tree.vectors) == len(tree.parents):
            raise ValueError(
                f"the tree of group {group} has vectors {tree.vectors.shape} and {len(tree.parents)} parents;"
                f" the layer has {channels} channels of {layout.weights} weights"
            )
        order = _visiting_order(tree.parents)
        table = _assign_slots(tree.parents, order)
        row_of = {int(node): row for row, node in enumerate(order)}
        for row, node in enumerate(order):
            parent = tree.parents[node]
            before = tree.vectors[parent] if parent >= 0 else np.full(layout.weights, parent == ALL_PLUS)
            after = tree.vectors[node]
            counts = []
            start = position
            for differing, other in ((before & ~after, ~before & after), (~before & after, before & ~after)):
                named = np.sort(taps[differing])
                if layout.plane_stride:
                    named = np.concatenate([named, np.sort(taps[other]) + layout.plane_stride])
                padded = np.concatenate([named, np.full(-len(named) % SHORT_BLOCK, layout.zero_plane)])
                counts += [len(padded) // LONG_BLOCK, len(padded) % LONG_BLOCK // SHORT_BLOCK]
                lists.append(padded)
                position += len(padded)
            table[row, 2:7] = (start, *counts)
            table[row, 7] = group * channels + node if node < channels else NO_CHANNEL
            table[row, 8] = first_rows[-1] + row_of[parent] if parent >= 0 else parent
        slots = max(slots, int(table[:, 1].max()) + 1)
        tables.append(table)
        orders.append(order)
        first_rows.append(first_rows[-1] + len(order))
    indices = (np.concatenate(lists) * index_scale(layout)).astype(np.uint16)
    return ChannelProgram(
        np.concatenate(tables), indices, np.concatenate(orders), np.array(first_rows, np.int32), slots
    )


def _visiting_order(parents: Sequence[int]) -> NDArray[np.int64]:
    """Nodes depth first, largest subtree last."""
    children: list[list[int]] = [[] for _ in parents]
    roots: list[int] = []
    for node, parent in enumerate(parents):
        if parent not in (ALL_MINUS, ALL_PLUS) and not 0 <= parent < len(parents):
            raise ValueError(f"node {node} has parent {parent} of {len(parents)}")
        (roots if parent < 0 else children[parent]).append(node)
    order = _depth_first(roots, children)
    if len(order) != len(parents):
        raise ValueError("the parents do not form a forest")
    sizes = [1] * len(parents)
    for node in reversed(order):
        if parents[node] >= 0:
            sizes[parents[node]] += sizes[node]
    for siblings in (*children, roots):
        siblings.sort(key=lambda node: sizes[node])
    return np.array(_depth_first(roots, children), np.int64)


def _depth_first(roots: Sequence[int], children: Sequence[Sequence[int]]) -> list[int]:
    order: list[int] = []
    pending = list(reversed(roots))
    while pending:
        node = pending.pop()
        order.append(node)
        pending.extend(reversed(children[node]))
    return order


def _assign_slots(parents: Sequence[int], order: NDArray[np.int64]) -> NDArray[np.int32]:
    """The node table with its first two columns."""
    table = np.zeros((len(order), len(NODE_FIELDS)), np.int32)
    slot_of = {ALL_MINUS: MINUS_SLOT, ALL_PLUS: PLUS_SLOT}
    free: list[int] = []
    used = FIRST_SLOT
    waiting = np.bincount([parent for parent in parents if parent >= 0], minlength=len(parents))
    leaf = waiting == 0
    for row, node in enumerate(order):
        parent = parents[node]
        parent_slot = slot_of[parent]
        if parent >= 0:
            waiting[parent] -= 1
            if not waiting[parent]:
                free.append(parent_slot)
        if free:
            slot = free.pop()
        else:
            slot, used = used, used + 1
        slot_of[int(node)] = slot
        if leaf[node]:
            free.append(slot)
        table[row, :2] = parent_slot, slot
    return table
