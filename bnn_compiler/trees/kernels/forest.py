"""A forest under two roots, with the exact price of every place where a subtree could be attached.

The nodes of a forest are *fixed* (the two roots and the channels, whose vectors are given) or *free* (synthetic: a
vector is whatever makes the edges cheapest). For one position of the vectors, let a message be the sign in {-1, 0, +1}
of what a subtree would like its neighbour to be, 0 where it does not care. Hartigan's generalisation of Fitch's
algorithm to any degree (Biometrics 29, 1973) then reads, over all neighbours j of a free node v,

    down[v] = sign(sum over children j of down[j])                       what v's subtree asks of v's parent
    up[c]   = sign(up[v] + sum over children j != c of down[j])          what all the rest asks of child c
    at[v]   = sign(up[v] + sum over children j of down[j])               what v is in every optimum, 0 if it may be both
    above[v] = sign(up[v] + down[v])                                     what a node inserted above v would be

and down, up, at of a fixed node are its vector. Attaching a subtree that asks for x at a node or in an edge adds
exactly as many mismatches as there are positions where x contradicts it (both nonzero, of opposite sign) to the cost
of the optimal forest, all free vectors chosen anew. So one pass over two bit planes per place prices all moves at once.

State: ``links`` int64[FIELDS, n], ``rows`` uint64[R, W]. Slots 0 and 1 are the roots (all minus, all plus), then the
channels, then room for synthetic nodes. Two arrays only: numba counts references of every array of every call.
"""

from __future__ import annotations

import numpy as np

from .machine_code import Ints, Words, compiled
from .messages import add_three, add_two, all_but, classify, clear, copy_message, count_message, sign_of

ROOTS = 2
NONE = -1
UNUSED, FIXED, FREE = 0, 1, 2

# Fields of ``links``. CLOCK holds in its first slots: ticks of STAMP, ticks of MARK, the slot last given out.
KIND, PARENT, FIRST, NEXT, PREVIOUS, CHILDREN, DEPTH, HEIGHT, ORDER, STAMP, MARK, CLOCK, FIELDS = range(13)
STAMP_CLOCK, MARK_CLOCK, LAST_SLOT = range(3)


def make_forest(plus: Words, minus: Words) -> tuple[Ints, Words]:
    """A forest of unattached channels; ``plus``, ``minus`` uint64[M, W] are their ones and zeros (0 past N)."""
    channels, words = plus.shape
    slots = ROOTS + 2 * channels
    links = np.zeros((FIELDS, slots), np.int64)
    links[PARENT : PREVIOUS + 1] = NONE
    rows = np.zeros((8 * slots + int(channels).bit_length() + 3 + 6, words), np.uint64)
    fixed = ROOTS + channels
    links[KIND, :fixed] = FIXED
    mask = plus[0] | minus[0]
    for first in (0, 6 * slots):
        rows[first + 1] = mask
        rows[first + 2] = mask
        rows[first + 2 * ROOTS : first + 2 * fixed : 2] = plus
        rows[first + 2 * ROOTS + 1 : first + 2 * fixed : 2] = minus
    return links, rows


@compiled
def down_row(links: Ints, node: int) -> int:
    """Row of ``down``; the vector of a fixed node."""
    return 2 * node


@compiled
def up_row(links: Ints, node: int) -> int:
    """Row of ``up``."""
    return int(2 * links.shape[1] + 2 * node)


@compiled
def above_row(links: Ints, node: int) -> int:
    """Row of ``above``: the place in the edge between a node and its parent."""
    return int(4 * links.shape[1] + 2 * node)


@compiled
def at_row(links: Ints, node: int) -> int:
    """Row of ``at``: the place at a node."""
    return int(6 * links.shape[1] + 2 * node)


@compiled
def attach(links: Ints, node: int, parent: int) -> None:
    """Make ``node`` a child of ``parent``."""
    head = links[FIRST, parent]
    links[PARENT, node] = parent
    links[NEXT, node] = head
    links[PREVIOUS, node] = NONE
    if head != NONE:
        links[PREVIOUS, head] = node
    links[FIRST, parent] = node
    links[CHILDREN, parent] += 1


@compiled
def detach(links: Ints, node: int) -> None:
    """Take ``node`` from its parent's children."""
    parent = links[PARENT, node]
    before, after = links[PREVIOUS, node], links[NEXT, node]
    if before == NONE:
        links[FIRST, parent] = after
    else:
        links[NEXT, before] = after
    if after != NONE:
        links[PREVIOUS, after] = before
    links[CHILDREN, parent] -= 1
    links[PARENT, node] = NONE


@compiled
def new_node(links: Ints) -> int:
    """A slot for a new synthetic node. There is always one: synthetic nodes have two children or more."""
    slots = links.shape[1]
    slot = int(links[CLOCK, LAST_SLOT])
    while True:
        slot += 1
        if slot >= slots:
            slot = ROOTS
        if links[KIND, slot] == UNUSED:
            break
    links[CLOCK, LAST_SLOT] = slot
    links[KIND, slot] = FREE
    links[FIRST, slot] = NONE
    links[CHILDREN, slot] = 0
    return slot


@compiled
def split_edge(links: Ints, child: int, node: int) -> int:
    """Put a new synthetic node between ``child`` and its parent and attach ``node`` to it."""
    parent = links[PARENT, child]
    middle = new_node(links)
    detach(links, child)
    attach(links, middle, parent)
    attach(links, child, middle)
    attach(links, node, middle)
    return middle


@compiled
def dissolve(links: Ints, node: int) -> None:
    """Remove a synthetic node; its children become its parent's."""
    parent = links[PARENT, node]
    detach(links, node)
    child = links[FIRST, node]
    while child != NONE:
        after = links[NEXT, child]
        detach(links, child)
        attach(links, child, parent)
        child = after
    links[KIND, node] = UNUSED


@compiled
def subtree(links: Ints, node: int) -> int:
    """Write the nodes below and including ``node`` to ``links[ORDER]``, parents first; return their number."""
    links[ORDER, 0] = node
    count = 1
    at = 0
    while at < count:
        child = links[FIRST, links[ORDER, at]]
        while child != NONE:
            links[ORDER, count] = child
            count += 1
            child = links[NEXT, child]
        at += 1
    return count


@compiled
def set_depths(links: Ints, top: int) -> None:
    """Recompute depths below and including ``top``."""
    count = subtree(links, top)
    for at in range(count):
        node = links[ORDER, at]
        links[DEPTH, node] = links[DEPTH, links[PARENT, node]] + 1


@compiled
def set_heights(links: Ints, node: int) -> None:
    """Recompute heights from ``node`` upwards."""
    while node >= ROOTS:
        height = 0
        child = links[FIRST, node]
        while child != NONE:
            height = max(height, links[HEIGHT, child] + 1)
            child = links[NEXT, child]
        if height == links[HEIGHT, node]:
            return
        links[HEIGHT, node] = height
        node = links[PARENT, node]


@compiled
def count_children(links: Ints, rows: Words, node: int) -> int:
    """Sum the messages of a node's children into the counter rows; return the number of planes used."""
    planes = 2
    while (1 << (planes - 1)) <= links[CHILDREN, node] + 1:
        planes += 1
    counter = 8 * links.shape[1]
    clear(rows, counter, planes)
    child = links[FIRST, node]
    while child != NONE:
        count_message(rows, down_row(links, child), counter, planes, rows.shape[0] - 1)
        child = links[NEXT, child]
    return planes


@compiled
def set_down(links: Ints, rows: Words, node: int) -> bool:
    """Compute ``down`` of a free node; return whether it changed."""
    if links[CHILDREN, node] == 2:
        a = links[FIRST, node]
        return add_two(rows, down_row(links, a), down_row(links, links[NEXT, a]), down_row(links, node))
    planes = count_children(links, rows, node)
    return sign_of(rows, 8 * links.shape[1], planes, down_row(links, node), rows.shape[0] - 1)


@compiled
def set_around(links: Ints, rows: Words, node: int, end: int) -> int:
    """Compute ``above`` and ``at`` of a node and ``up`` of its children, from its own ``up``.

    Children whose ``up`` changed or that are marked are appended to ``links[ORDER]`` at ``end``; returns the new end.
    """
    up, down = up_row(links, node), down_row(links, node)
    tick = links[CLOCK, MARK_CLOCK]
    add_two(rows, up, down, above_row(links, node))
    child = links[FIRST, node]
    if links[KIND, node] == FIXED:
        while child != NONE:
            if copy_message(rows, down, up_row(links, child)) or links[MARK, child] == tick:
                links[ORDER, end] = child
                end += 1
            child = links[NEXT, child]
        return end
    if links[CHILDREN, node] == 2:
        other = links[NEXT, child]
        if add_two(rows, up, down_row(links, other), up_row(links, child)) or links[MARK, child] == tick:
            links[ORDER, end] = child
            end += 1
        if add_two(rows, up, down_row(links, child), up_row(links, other)) or links[MARK, other] == tick:
            links[ORDER, end] = other
            end += 1
        add_three(rows, up, down_row(links, child), down_row(links, other), at_row(links, node))
        return end
    planes = count_children(links, rows, node)
    counter, near, scratch = 8 * links.shape[1], rows.shape[0] - 6, rows.shape[0] - 1
    count_message(rows, up, counter, planes, scratch)
    sign_of(rows, counter, planes, at_row(links, node), scratch)
    classify(rows, counter, planes, near)
    while child != NONE:
        if all_but(rows, near, down_row(links, child), up_row(links, child)) or links[MARK, child] == tick:
            links[ORDER, end] = child
            end += 1
        child = links[NEXT, child]
    return end


@compiled
def spread(links: Ints, rows: Words, node: int, fresh: int) -> None:
    """Bring all messages up to date after the children of ``node`` changed; stop where nothing changes any more.

    ``fresh`` is a child of ``node`` whose own places are to be computed even if the message to it stays, or -1.
    """
    links[CLOCK, MARK_CLOCK] += 1
    tick = links[CLOCK, MARK_CLOCK]
    if fresh != NONE:
        links[MARK, fresh] = tick
    top = node
    if node < ROOTS:
        top = fresh
    else:
        while links[KIND, top] == FREE and set_down(links, rows, top) and links[PARENT, top] >= ROOTS:
            links[MARK, top] = tick
            top = links[PARENT, top]
    root = links[PARENT, top]
    if 0 <= root < ROOTS:
        copy_message(rows, down_row(links, root), up_row(links, top))
    links[ORDER, 0] = top
    at, end = 0, 1
    while at < end:
        end = set_around(links, rows, links[ORDER, at], end)
        at += 1
