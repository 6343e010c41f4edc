"""Certificates: how cheap could any tree be?

Plain trees, with a depth limit D:

1. The minimum spanning tree ignores D, so it bounds the problem from below.
2. Lagrangian bound. Let y[j, k] say that channel j has level k and x[i, j, k] that its parent is then i, so that
   x[i, j, k] <= y[i, k - 1] with levels taken exactly (parents one level above). Pricing these conditions with u >= 0
   separates the channels; for any u the sum over j of

       min over k of  ( min over i of (d[i, j] + u[i, j, k]) - sum over l of u[j, l, k + 1] )

   is a lower bound (Gouveia's hop-indexed model, Networks 2001). u is found by subgradient ascent in floating point,
   then rounded down to integers in units of 1/256: the bound itself is evaluated in integers.

Trees with synthetic nodes:

3. A tree without any is bounded by 1. A Steiner tree of k terminals (the channels and the root) costs at least
   k / (2 (k - 1)) of their minimum spanning tree (Gilbert and Pollak 1968; any metric), and the overhead of one
   synthetic node. This holds at every depth. It is weak: for random vectors it gives 1/4 of M·N, where no tree is known
   below 0.32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .kernels.lagrangian import ascend, evaluate
from .plain_search import spanning_tree
from .problem import Distances, Effort

Ints = npt.NDArray[np.int64]

UNITS = 256
_ITERATIONS = {"fast": 0, "default": 600, "thorough": 3000}
_PATIENCE = 15
# About five arrays of 4·(D - 1)·M² bytes are alive at once; beyond this (4096 channels at depth 4) the spanning tree's
# bound has to do.
_MOST_MULTIPLIERS = 1 << 24


@dataclass(frozen=True, eq=False)
class PlainBound:
    """A lower bound on the edges of any plain tree, and the integer prices that prove it (None: the spanning tree)."""

    value: int
    prices: npt.NDArray[np.int32] | None = None


def plain_bound(distances: Distances, to_root: Ints, max_depth: int, upper: int, effort: Effort) -> PlainBound:
    """Bound plain trees of depth <= ``max_depth`` from below; ``upper`` is the cost of a known one."""
    _, bound = spanning_tree(distances, to_root)
    channels = to_root.size
    multipliers = channels * channels * (max_depth - 1)
    if bound >= upper or max_depth == 1 or multipliers > _MOST_MULTIPLIERS:
        return PlainBound(int(to_root.sum()) if max_depth == 1 else bound)
    prices = ascend(distances, to_root, max_depth, upper, _ITERATIONS[effort], _PATIENCE)
    scaled = np.floor(np.maximum(prices, 0) * np.float32(UNITS)).astype(np.int32)
    # Costs are whole planes, so a bound may be rounded up.
    return PlainBound(max(bound, -(-evaluate(distances, to_root, scaled, UNITS) // UNITS)), scaled)


def synthetic_bound(distances: Distances, to_root: Ints, node_overhead: float) -> float:
    """A lower bound on the cost of any tree with or without synthetic nodes, at any depth."""
    _, spanning = spanning_tree(distances, to_root)
    terminals = to_root.size + 1
    return min(float(spanning), -(-spanning * terminals // (2 * (terminals - 1))) + node_overhead)
