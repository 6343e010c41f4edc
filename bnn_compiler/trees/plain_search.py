"""Trees over the channels alone: Prim's tree under the depth limit, then annealing and descent over level labels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .kernels.levels import BEST, BEST_COST, LEVEL, anneal_levels, find_all_parents, prim
from .noise import gumbel_table, heat
from .problem import Distances, TreeOptions
from .step_budgets import plain_budget

Ints = npt.NDArray[np.int64]

# In mismatches, times the square root of N; measured on trained layers between 64 and 1024 channels.
_HEAT_PER_SQRT_N = 0.8


def spanning_tree(distances: Distances, to_root: Ints) -> tuple[Ints, int]:
    """A minimum spanning tree without a depth limit (Prim): parents (-1 the root) and cost; ``to_root`` int64[M]."""
    channels = to_root.size
    near, parents = to_root.copy(), np.full(channels, -1)
    reached = np.zeros(channels, bool)
    far = np.int64(1) << 60
    total = 0
    for _ in range(channels):
        node = int(np.argmin(np.where(reached, far, near)))
        total += int(near[node])
        reached[node] = True
        closer = ~reached & (distances[node] < near)
        near[closer] = distances[node][closer]
        parents[closer] = node
    return parents, total


def search_plain(
    distances: Distances, to_root: Ints, weights: int, options: TreeOptions, progress: Callable[[float], None]
) -> tuple[Ints, bool]:
    """Find a cheap tree of depth <= ``options.max_depth``: its parents (-1 the root), and whether Ctrl-C stopped it."""
    parents, _ = spanning_tree(distances, to_root)
    if tree_depth(parents) <= options.max_depth:
        return parents, False
    # More levels than channels are never used, and tables are as long as there are levels.
    max_depth = min(options.max_depth, to_root.size)
    budget = plain_budget(options.effort, to_root.size)
    random, noise = np.array([options.seed], np.uint64), gumbel_table()
    hot = heat(_HEAT_PER_SQRT_N * math.sqrt(weights))
    start = prim(distances, to_root, max_depth)
    best, best_cost, interrupted = np.full(to_root.size, -1), int(to_root.sum()), False
    best_levels = start
    try:
        for restart in range(budget.restarts):
            # By turns from Prim's levels with all the heat, and from the best so far with less.
            again = restart % 2 == 1
            table = find_all_parents(distances, to_root, best_levels if again else start)
            from_heat = hot >> 2 if again else hot
            anneal_levels(table, distances, to_root, budget.sweeps, from_heat, max_depth, noise, random)
            cost = int(table[BEST_COST].sum())
            if cost < best_cost:
                best, best_cost, best_levels = table[BEST].copy(), cost, table[LEVEL].copy()
            progress((restart + 1) / budget.restarts)
    except KeyboardInterrupt:
        interrupted = True
    return best, interrupted


def tree_depth(parents: Ints) -> int:
    """Edges on the longest way to the root."""
    depth, above = 0, np.unique(parents)
    while np.any(above >= 0):
        depth += 1
        above = np.unique(parents[above[above >= 0]])
    return depth + 1
