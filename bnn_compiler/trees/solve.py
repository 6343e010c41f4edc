"""From a sign matrix to a tree: kept from an earlier run, or searched for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy.typing as npt

from .cache import cached
from .channel_tree import ChannelTree
from .problem import Effort, TreeOptions, sign_matrix

Progress = Callable[[float], None]


def solve_channel_tree(
    weights: npt.ArrayLike,
    *,
    max_depth: int = 8,
    node_overhead: float = 24.0,
    synthetic: bool = True,
    effort: Effort = "default",
    seed: int = 0,
    single_root: bool = False,
    negated_parents: bool = False,
    keep_on_interrupt: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ChannelTree:
    """Find the cheapest tree over the output channels of a binary layer.

    Args:
        weights: uint8[M, N], M output channels of N weights each, 1 for +1 and 0 for -1.
        max_depth: most edges between a channel and the root.
        node_overhead: planes that a synthetic node must save beyond its own edge.
        synthetic: allow nodes that are no channels.
        effort: how many steps are spent; ``thorough`` also proves small plain trees optimal.
        seed: the same seed gives the same tree on every machine.
        single_root: the setting of MST-compression (ICCV 2023): one channel is computed in full (N planes), on the
            shallowest minimum spanning tree found. Plain trees only.
        negated_parents: a channel may be computed from the complement of another, for one plane more. Plain trees.
        keep_on_interrupt: on Ctrl-C return the best tree so far (``method`` ends in ``interrupted``), do not raise.
        cache: a folder of solved trees; None does without. An interrupted solve is never stored.
        progress: called with the fraction done.

    Returns:
        A checked tree, with a lower bound.

    Raises:
        UsageError: the matrix or an option is not allowed, or they contradict each other.
        KeyboardInterrupt: unless ``keep_on_interrupt`` and there is a tree to return.
    """
    options = TreeOptions(max_depth, node_overhead, synthetic, effort, seed, single_root, negated_parents)
    matrix = sign_matrix(weights)
    report = progress or (lambda _fraction: None)

    def solve() -> ChannelTree:
        # Brings numba and OR-tools, which take a second to load, and a place to keep machine code.
        from .search import search_tree  # noqa: PLC0415

        return search_tree(matrix, options, report)

    tree = cached(cache, matrix, options, solve)
    if tree.method.endswith("interrupted") and not keep_on_interrupt:
        raise KeyboardInterrupt
    report(1.0)
    return tree
