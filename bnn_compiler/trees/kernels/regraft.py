"""Moves over a forest: take a subtree off, price every place for it, put it where it is cheapest or nearly so.

A place is a row of the forest: ``at_row`` of a node or ``above_row`` of a node (then a synthetic node is inserted).
Costs are in fixed point, 2^-16 of a mismatch, so that the overhead of a synthetic node need not be whole.
"""

from __future__ import annotations

import numpy as np

from .forest import (
    CHILDREN,
    CLOCK,
    DEPTH,
    FIRST,
    FREE,
    HEIGHT,
    KIND,
    NEXT,
    NONE,
    ORDER,
    PARENT,
    ROOTS,
    STAMP,
    STAMP_CLOCK,
    UNUSED,
    above_row,
    at_row,
    attach,
    detach,
    dissolve,
    down_row,
    set_depths,
    set_down,
    set_heights,
    split_edge,
    spread,
    subtree,
)
from .machine_code import Ints, Words, compiled, next_random, popcount, random_below
from .messages import conflict

GUMBEL_BITS = 10
COST_SHIFT = 16


@compiled
def cheapest_place(
    links: Ints, rows: Words, node: int, max_depth: int, overhead: int, heat: int, noise: Ints, random: Words
) -> tuple[int, int]:
    """Where to attach the detached subtree ``node``: (place, exact cost there), or (-1, 0) if it fits nowhere.

    With ``heat`` > 0 the place is drawn from the Boltzmann distribution of that temperature (Gumbel's trick: the
    smallest of cost - heat·noise).
    """
    slots = links.shape[1]
    count = subtree(links, node)
    links[CLOCK, STAMP_CLOCK] += 1
    tick = links[CLOCK, STAMP_CLOCK]
    for at in range(count):
        links[STAMP, links[ORDER, at]] = tick
    room = max_depth - 1 - links[HEIGHT, node]
    message = down_row(links, node)
    best, best_cost, best_value = NONE, 0, 1 << 60
    mask = np.uint64((1 << GUMBEL_BITS) - 1)
    for at in range(slots):
        if links[KIND, at] == UNUSED or links[STAMP, at] == tick or links[DEPTH, at] > room:
            continue
        if at >= ROOTS and links[PARENT, at] == NONE:
            continue
        place = at_row(links, at)
        cost = conflict(rows, message, place) << COST_SHIFT
        value = cost
        if heat > 0:
            value -= heat * noise[next_random(random) & mask]
        if value < best_value:
            best, best_cost, best_value = place, cost, value
        if at >= ROOTS and links[DEPTH, at] + 1 + links[HEIGHT, at] <= max_depth:
            place = above_row(links, at)
            cost = (conflict(rows, message, place) << COST_SHIFT) + overhead
            value = cost
            if heat > 0:
                value -= heat * noise[next_random(random) & mask]
            if value < best_value:
                best, best_cost, best_value = place, cost, value
    return best, best_cost


@compiled
def put(links: Ints, rows: Words, node: int, place: int) -> None:
    """Attach ``node`` at ``place`` and bring everything up to date."""
    if place >= at_row(links, 0):
        parent = (place - at_row(links, 0)) // 2
        attach(links, node, parent)
        set_depths(links, node)
        set_heights(links, parent)
        spread(links, rows, parent, node)
        return
    middle = split_edge(links, (place - above_row(links, 0)) // 2, node)
    set_depths(links, middle)
    links[HEIGHT, middle] = NONE
    set_heights(links, middle)
    set_down(links, rows, middle)
    spread(links, rows, links[PARENT, middle], middle)


@compiled
def prune(links: Ints, rows: Words, node: int) -> int:
    """Take the subtree ``node`` off and return the place it came from; a synthetic parent left with one child goes."""
    parent = links[PARENT, node]
    detach(links, node)
    if links[KIND, parent] == FREE and links[CHILDREN, parent] == 1:
        sibling = links[FIRST, parent]
        dissolve(links, parent)
        set_depths(links, sibling)
        parent = links[PARENT, sibling]
        set_heights(links, parent)
        spread(links, rows, parent, sibling)
        return above_row(links, sibling)
    set_heights(links, parent)
    if parent >= ROOTS:
        spread(links, rows, parent, NONE)
    return at_row(links, parent)


@compiled
def price(links: Ints, rows: Words, node: int, place: int, overhead: int) -> int:
    """Exact cost of attaching ``node`` at ``place``."""
    cost = conflict(rows, down_row(links, node), place) << COST_SHIFT
    if place < at_row(links, 0):
        cost += overhead
    return cost


@compiled
def shuffle(sequence: Ints, random: Words) -> None:
    """Permute at random (Fisher and Yates)."""
    for at in range(sequence.size - 1, 0, -1):
        other = random_below(random, at + 1)
        sequence[at], sequence[other] = sequence[other], sequence[at]


@compiled
def build(links: Ints, rows: Words, sequence: Ints, max_depth: int, overhead: int, noise: Ints, random: Words) -> int:
    """Attach the nodes of ``sequence`` one after another, each where it is cheapest; return the total cost."""
    total = 0
    for at in range(sequence.size):
        place, cost = cheapest_place(links, rows, sequence[at], max_depth, overhead, 0, noise, random)
        put(links, rows, sequence[at], place)
        total += cost
    return total


@compiled
def anneal(  # noqa: PLR0917 - no keywords in machine code
    links: Ints, rows: Words, steps: int, hot: int, cold: int, max_depth: int, overhead: int, noise: Ints, random: Words
) -> int:
    """Regraft ``steps`` random subtrees by the heat bath while the heat falls linearly from ``hot`` to ``cold``.

    Returns the change of cost. Heats are in units of cost per unit of ``noise``.
    """
    change = 0
    slots = links.shape[1]
    for step in range(steps):
        heat = hot + (cold - hot) * step // steps
        node = ROOTS + random_below(random, slots - ROOTS)
        while links[KIND, node] == UNUSED:
            node = ROOTS + random_below(random, slots - ROOTS)
        origin = prune(links, rows, node)
        before = price(links, rows, node, origin, overhead)
        place, cost = cheapest_place(links, rows, node, max_depth, overhead, heat, noise, random)
        if place == NONE:
            place, cost = origin, before
        put(links, rows, node, place)
        change += cost - before
    return change


@compiled
def descend(links: Ints, rows: Words, sequence: Ints, max_depth: int, overhead: int, noise: Ints, random: Words) -> int:
    """Regraft each node of ``sequence`` to its cheapest place; return the change of cost (never positive)."""
    change = 0
    for at in range(sequence.size):
        node = sequence[at]
        if links[KIND, node] == UNUSED:
            continue
        origin = prune(links, rows, node)
        before = price(links, rows, node, origin, overhead)
        place, cost = cheapest_place(links, rows, node, max_depth, overhead, 0, noise, random)
        if place == NONE or cost >= before:
            place, cost = origin, before
        put(links, rows, node, place)
        change += cost - before
    return change


@compiled
def resolve(links: Ints, rows: Words, vectors: Words) -> int:
    """Write optimal vectors of all nodes, uint64[n, W], and return their cost: mismatches over all edges."""
    total = 0
    words = vectors.shape[1]
    for root in range(ROOTS):
        for w in range(words):
            vectors[root, w] = rows[2 * root, w]
        top = links[FIRST, root]
        while top != NONE:
            count = subtree(links, top)
            for at in range(count):
                node = links[ORDER, at]
                parent = links[PARENT, node]
                row = down_row(links, node)
                for w in range(words):
                    asked = rows[row, w]
                    if links[KIND, node] == FREE:
                        asked |= vectors[parent, w] & ~(rows[row, w] | rows[row + 1, w])
                    vectors[node, w] = asked
                    total += int(popcount(asked ^ vectors[parent, w]))
            top = links[NEXT, top]
    return total
