"""The paper's setting: one channel is computed in full, and all others on a minimum spanning tree below it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .kernels.levels import shallow_spanning_tree
from .plain_search import spanning_tree
from .problem import Distances

Ints = npt.NDArray[np.int64]


def shallowest_spanning_tree(distances: Distances, max_depth: int) -> tuple[Ints | None, int]:
    """A minimum spanning tree of the channels and its cost: parents (-1 for the one root), None if too deep.

    Every channel is tried as the root of Prim's algorithm, which prefers, among edges of equal length, the one that
    ends nearest to the root. Which of the minimum trees is the shallowest is a hard problem; this finds a shallow one.
    """
    channels = distances.shape[0]
    _, cost = spanning_tree(distances[1:, 1:], distances[0, 1:].astype(np.int64)) if channels > 1 else (None, 0)
    parents, depth = shallow_spanning_tree(distances)
    return (parents if depth <= max_depth else None), cost
