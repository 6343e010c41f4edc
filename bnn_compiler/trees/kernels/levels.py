"""Plain trees as level labels: parent = nearest node of a lower level. The root has level 0, channels 1 … D.

Any tree of depth <= D gives such labels, and labels give the best tree that respects them, so the search is over labels
alone. Each channel knows its nearest and second nearest lower node; then all labels of a channel v are priced in one
pass over its row of distances: with S[l] = Σ over channels w of level l of what v could save w,

    cost(level of v := k) = cost without v + min(d(u, v) over u below k) - Σ over l > k of S[l].

State: ``table`` int64[5, M]; the root is parent -1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .machine_code import Ints, Words, compiled, next_random, random_below

Distances = npt.NDArray[np.int32]

LEVEL, BEST, BEST_COST, SECOND, SECOND_COST, FIELDS = range(6)
ROOT = -1
FAR = 1 << 40
GUMBEL_MASK = 1023


@compiled
def find_parents(table: Ints, distances: Distances, to_root: Ints, node: int) -> None:
    """Find the nearest and second nearest node of a lower level."""
    best, best_cost, second, second_cost = ROOT, int(to_root[node]), ROOT, FAR
    level = table[LEVEL, node]
    for other in range(distances.shape[0]):
        if table[LEVEL, other] < level:
            cost = int(distances[node, other])
            if cost < second_cost:
                if cost < best_cost:
                    second, second_cost = best, best_cost
                    best, best_cost = other, cost
                else:
                    second, second_cost = other, cost
    table[BEST, node], table[BEST_COST, node] = best, best_cost
    table[SECOND, node], table[SECOND_COST, node] = second, second_cost


@compiled
def find_all_parents(distances: Distances, to_root: Ints, levels: Ints) -> Ints:
    """The state that belongs to ``levels`` int64[M]."""
    table = np.zeros((FIELDS, levels.size), np.int64)
    table[LEVEL] = levels
    for node in range(levels.size):
        find_parents(table, distances, to_root, node)
    return table


@compiled
def set_level(table: Ints, distances: Distances, to_root: Ints, node: int, level: int) -> None:
    """Give ``node`` a level and bring the parents of all channels up to date."""
    old = table[LEVEL, node]
    table[LEVEL, node] = level
    for other in range(distances.shape[0]):
        if other == node:
            continue
        before, after = old < table[LEVEL, other], level < table[LEVEL, other]
        if before and not after:
            if table[BEST, other] == node or table[SECOND, other] == node:
                find_parents(table, distances, to_root, other)
        elif after and not before:
            cost = np.int64(distances[node, other])
            if cost < table[BEST_COST, other]:
                table[SECOND, other], table[SECOND_COST, other] = table[BEST, other], table[BEST_COST, other]
                table[BEST, other], table[BEST_COST, other] = node, cost
            elif cost < table[SECOND_COST, other]:
                table[SECOND, other], table[SECOND_COST, other] = node, cost
    find_parents(table, distances, to_root, node)


@compiled
def prim(distances: Distances, to_root: Ints, max_depth: int) -> Ints:
    """Levels of Prim's tree grown from the root under the depth limit."""
    channels = distances.shape[0]
    level = np.zeros(channels, np.int64)
    near = to_root.copy()
    depth = np.ones(channels, np.int64)
    for _ in range(channels):
        node, least = 0, FAR
        for other in range(channels):
            if level[other] == 0 and near[other] < least:
                node, least = other, near[other]
        level[node] = depth[node]
        if depth[node] < max_depth:
            for other in range(channels):
                if level[other] == 0 and distances[node, other] < near[other]:
                    near[other] = distances[node, other]
                    depth[other] = depth[node] + 1
    return level


@compiled
def relabel(  # noqa: PLR0917 - no keywords in machine code
    table: Ints, distances: Distances, to_root: Ints, node: int, max_depth: int, heat: int, noise: Ints,
    random: Words, own: Ints, saved: Ints,
) -> int:  # fmt: skip
    """Choose a level for ``node``, by the heat bath if ``heat`` > 0, else the best; return the change of cost."""
    for level in range(max_depth + 1):
        own[level] = FAR
        saved[level] = 0
    own[0] = to_root[node]
    for other in range(distances.shape[0]):
        cost = np.int64(distances[node, other])
        level = table[LEVEL, other]
        own[level] = min(own[level], cost)
        without = table[SECOND_COST, other] if table[BEST, other] == node else table[BEST_COST, other]
        if cost < without:
            saved[level] += without - cost
    # The diagonal of the distances is far: no channel is its own parent. Let own[k] be the least up to level k.
    for level in range(1, max_depth + 1):
        own[level] = min(own[level], own[level - 1])
    gain = np.int64(0)
    current = table[LEVEL, node]
    best, best_value, cost_now, best_cost = current, np.int64(1) << 60, np.int64(0), np.int64(0)
    for level in range(max_depth, 0, -1):
        cost = own[level - 1] - gain
        gain += saved[level]
        if level == current:
            cost_now = cost
        value = cost << 16
        if heat > 0:
            value -= heat * noise[next_random(random) & np.uint64(GUMBEL_MASK)]
        elif level == current:
            value -= 1
        if value < best_value:
            best, best_value, best_cost = level, value, cost
    if best != current:
        set_level(table, distances, to_root, node, best)
    return int(best_cost - cost_now)


@compiled
def anneal_levels(
    table: Ints, distances: Distances, to_root: Ints, sweeps: int, hot: int, max_depth: int, noise: Ints, random: Words
) -> int:
    """Relabel M random channels per sweep while the heat falls from ``hot`` to 0, then descend; return the change.

    The heat is ``hot`` times the square of what is left: most steps are spent where it is low.
    """
    channels = distances.shape[0]
    own, saved = np.zeros(max_depth + 1, np.int64), np.zeros(max_depth + 1, np.int64)
    change = 0
    steps = sweeps * channels
    for step in range(steps):
        left = steps - step
        heat = hot * left // steps * left // steps
        node = random_below(random, channels)
        change += relabel(table, distances, to_root, node, max_depth, heat, noise, random, own, saved)
    while True:
        gain = 0
        for node in range(channels):
            gain += relabel(table, distances, to_root, node, max_depth, 0, noise, random, own, saved)
        change += gain
        if gain == 0:
            return change


@compiled
def shallow_spanning_tree(distances: Distances, roots: Ints) -> tuple[Ints, int]:
    """Parents (-1 for the root) and depth (1 for the root alone) of the shallowest of some minimum spanning trees.

    Each of ``roots`` is the root of Prim's algorithm; of equally long edges the one nearest to the root is taken.
    """
    channels = distances.shape[0]
    best, best_depth = np.full(channels, ROOT), channels + 1
    near, parent, depth = np.zeros(channels, np.int64), np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for root in roots:
        for node in range(channels):
            near[node], parent[node], depth[node] = distances[root, node], root, 2
        parent[root], depth[root], near[root] = ROOT, 1, -1
        deepest = 1
        for _ in range(channels - 1):
            node = -1
            for other in range(channels):
                if near[other] >= 0 and (
                    node < 0 or near[other] < near[node] or (near[other] == near[node] and depth[other] < depth[node])
                ):
                    node = other
            near[node] = -1
            deepest = max(deepest, depth[node])
            if deepest >= best_depth:
                break
            for other in range(channels):
                cost = np.int64(distances[node, other])
                if cost < near[other] or (cost == near[other] and depth[node] + 1 < depth[other]):
                    near[other], parent[other], depth[other] = cost, node, depth[node] + 1
        if deepest < best_depth:
            best_depth = deepest
            best[:] = parent
    return best, best_depth
