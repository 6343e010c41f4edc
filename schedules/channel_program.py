"""A channel tree as a program for the counting kernel: which planes to add to and take from which counter.

A node's counter U = Σ_{w = +1} b starts as its parent's. Taps that the parent has and the node has not are subtracted,
taps that only the node has are added. The two virtual parents are U = 0 (all weights −1) and U = V = Σ b (all +1).

Counters live in slots. Nodes are visited depth first, the child with the largest subtree last, and a slot is free again
once the last child has started from it, so that few counters are alive at once (at most log2 of the nodes + 1 on a tree).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Parents that are no nodes: all weights −1 (U = 0), and all weights +1 (U = V).
ALL_MINUS, ALL_PLUS = -1, -2
ZERO_SLOT, TOTAL_SLOT, FIRST_SLOT = 0, 1, 2
#: Columns of a program's node table.
NODE_FIELDS = ("parent_slot", "slot", "position", "minus_long", "minus_short", "plus_long", "plus_short", "channel")
NO_CHANNEL = -1
LONG_BLOCK, SHORT_BLOCK = 64, 8
INDICES_PER_WORD = 4


@dataclass(frozen=True, eq=False)
class ChannelProgram:
    """``nodes`` int32 [nodes, 8] (NODE_FIELDS), ``indices`` uint64 [...] (four 16-bit plane indices each).

    ``position`` counts words of ``indices``; lists are padded to whole short blocks with the zero plane. ``planes`` is
    the number of plane additions, padding included.
    """

    nodes: NDArray[np.int32]
    indices: NDArray[np.uint64]
    slots: int
    planes: int


def make_program(
    vectors: NDArray[np.bool_], parents: Sequence[int], channels: int, tap_of: NDArray[np.int64], zero_plane: int
) -> ChannelProgram:
    """The program of a tree over ``vectors`` bool [nodes, N], rows 0 … ``channels`` − 1 being the output channels.

    ``parents[i]`` is a node, ``ALL_MINUS`` or ``ALL_PLUS``; ``tap_of`` int64 [N] is the plane index of each weight.
    Every weight of the all-plus parent is a real tap, so V is the sum over ``tap_of``.
    """
    if zero_plane >= 1 << 16:
        raise ValueError(f"{zero_plane} planes do not fit a 16-bit index")
    nodes = len(vectors)
    children: list[list[int]] = [[] for _ in range(nodes)]
    roots = []
    for node, parent in enumerate(parents):
        (roots if parent < 0 else children[parent]).append(node)
    order, sizes = _visit(roots, children)
    if len(order) != nodes:
        raise ValueError("the parents do not form a forest")
    for siblings in (*children, roots):
        siblings.sort(key=lambda node: sizes[node])
    order, _ = _visit(roots, children)

    table = np.zeros((nodes, len(NODE_FIELDS)), np.int32)
    lists: list[NDArray[np.int64]] = []
    position = 0
    slot_of: dict[int, int] = {ALL_MINUS: ZERO_SLOT, ALL_PLUS: TOTAL_SLOT}
    free: list[int] = []
    used = FIRST_SLOT
    waiting = [len(siblings) for siblings in children]
    for row, node in enumerate(order):
        parent = parents[node]
        before = vectors[parent] if parent >= 0 else np.full(vectors.shape[1], parent == ALL_PLUS)
        parent_slot = slot_of[parent]
        if parent >= 0:
            waiting[parent] -= 1
            if not waiting[parent]:
                free.append(parent_slot)
        if free:
            slot = free.pop()
        else:
            slot, used = used, used + 1
        slot_of[node] = slot
        if not children[node]:
            free.append(slot)
        counts = []
        start = position
        for taps in (tap_of[before & ~vectors[node]], tap_of[~before & vectors[node]]):
            padded = np.concatenate([np.sort(taps), np.full(-len(taps) % SHORT_BLOCK, zero_plane)])
            counts += [len(padded) // LONG_BLOCK, len(padded) % LONG_BLOCK // SHORT_BLOCK]
            lists.append(padded)
            position += len(padded) // INDICES_PER_WORD
        table[row] = (parent_slot, slot, start, *counts, node if node < channels else NO_CHANNEL)
    flat = np.concatenate(lists) if lists else np.zeros(0, np.int64)
    indices = np.ascontiguousarray(flat.astype("<u2")).view(np.uint64)
    return ChannelProgram(table, indices, used, len(flat))


def _visit(roots: Sequence[int], children: Sequence[Sequence[int]]) -> tuple[list[int], dict[int, int]]:
    """Nodes depth first, and the number of nodes of each subtree."""
    order: list[int] = []
    pending = list(reversed(roots))
    while pending:
        node = pending.pop()
        order.append(node)
        pending.extend(reversed(children[node]))
    sizes: dict[int, int] = {}
    for node in reversed(order):
        sizes[node] = 1 + sum(sizes[child] for child in children[node])
    return order, sizes
