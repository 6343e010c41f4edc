"""The paper's setting: one channel is computed in full, and all others on a minimum spanning tree below it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .kernels.levels import shallow_spanning_tree
from .plain_search import spanning_tree
from .problem import Distances

Ints = npt.NDArray[np.int64]

# Prim's algorithm takes M² steps per root; beyond the first few, roots farther from the centre were never better.
_ROOTS_TRIED = 64


def shallowest_spanning_tree(distances: Distances, max_depth: int) -> tuple[Ints | None, int]:
    """A minimum spanning tree of the channels and its cost: parents (-1 for the one root), None if too deep.

    The channels nearest to the centre of one minimum tree are tried as roots of Prim's algorithm, which prefers, among
    edges of equal length, the one that ends nearest to the root. Which of all minimum trees is the shallowest is a hard
    problem; this finds a shallow one.
    """
    channels = distances.shape[0]
    if channels == 1:
        return np.array([-1]), 0
    parents, cost = spanning_tree(distances[1:, 1:], distances[0, 1:].astype(np.int64))
    whole = np.concatenate([[-1], parents + 1])
    candidates = np.argsort(_eccentricities(whole), kind="stable")[:_ROOTS_TRIED]
    shallow, depth = shallow_spanning_tree(distances, candidates)
    return (shallow if depth <= max_depth else None), cost


def _eccentricities(parents: Ints) -> Ints:
    """Edges from each node of a tree to the node farthest from it: one end of a longest path is always farthest."""
    neighbours: list[list[int]] = [[] for _ in range(parents.size)]
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            neighbours[node].append(parent)
            neighbours[parent].append(node)
    one_end = int(np.argmax(_steps_from(neighbours, 0)))
    from_one = _steps_from(neighbours, one_end)
    return np.maximum(from_one, _steps_from(neighbours, int(np.argmax(from_one))))


def _steps_from(neighbours: list[list[int]], start: int) -> Ints:
    steps = np.full(len(neighbours), -1)
    steps[start], frontier = 0, [start]
    while frontier:
        reached = []
        for node in frontier:
            for other in neighbours[node]:
                if steps[other] < 0:
                    steps[other] = steps[node] + 1
                    reached.append(other)
        frontier = reached
    return steps
