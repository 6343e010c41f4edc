"""From a sign matrix to a checked tree: searches, and bounds on what any tree costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bnn_compiler.errors import UsageError

from .bounds import plain_bound, synthetic_bound
from .channel_tree import ALL_MINUS, ALL_PLUS, IN_FULL, INNER, ChannelTree
from .exact import improve_exactly, worth_proving
from .plain_search import search_plain
from .problem import FAR, Distances, SignMatrix, TreeOptions
from .single_root import shallowest_spanning_tree
from .synthetic_search import Interrupted, search_synthetic

Ints = npt.NDArray[np.int64]
Progress = Callable[[float], None]

_STEINER = "Steiner tree of the channels and the root, any depth"


def search_tree(matrix: SignMatrix, options: TreeOptions, progress: Progress) -> ChannelTree:
    """The best tree found, with a lower bound; interrupted, the best so far, and ``method`` says so.

    Raises:
        UsageError: no tree has the options.
        KeyboardInterrupt: interrupted before there was a tree.
    """
    if options.synthetic:
        tree = _solve_synthetic(matrix, options, progress)
    elif options.single_root:
        tree = _solve_single_root(matrix, options, progress)
    else:
        tree = _solve_plain(matrix, options, progress)
    tree.check(matrix.signs)
    return tree


def _solve_synthetic(matrix: SignMatrix, options: TreeOptions, progress: Progress) -> ChannelTree:
    interrupted = False
    try:
        found = search_synthetic(matrix, options, progress)
    except Interrupted as stop:
        if stop.found is None:
            raise KeyboardInterrupt from None
        found, interrupted = stop.found, True
    parents, vectors = found.parents, found.vectors
    tree = ChannelTree(
        parents=np.maximum(parents, -1),
        roots=tuple({-1: ALL_MINUS, -2: ALL_PLUS}.get(parent, INNER) for parent in parents.tolist()),
        negated=np.zeros(parents.size, np.bool_),
        vectors=vectors,
        channels=matrix.channels,
        max_depth=options.max_depth,
        node_overhead=options.node_overhead,
        lower_bound=synthetic_bound(matrix.distances, matrix.to_root, options.node_overhead),
        bound_problem=_STEINER,
        method="regrafting, interrupted" if interrupted else "regrafting",
    )
    if interrupted:
        return tree
    # Where synthetic nodes hardly pay, the search over labels is the better one, and costs next to nothing.
    plain = _solve_plain(matrix, replace(options, synthetic=False, effort="fast"), lambda _: None)
    if plain.cost < tree.cost:
        return replace(plain, lower_bound=tree.lower_bound, bound_problem=_STEINER)
    return tree


@dataclass(frozen=True, eq=False)
class _PlainResult:
    """Parents of channels (-1 the root), a lower bound on their edges, and how they came about."""

    parents: Ints
    bound: int
    method: str


def _search_and_bound(
    distances: Distances, to_root: Ints, weights: int, options: TreeOptions, progress: Progress
) -> _PlainResult:
    parents, interrupted = search_plain(distances, to_root, weights, options, lambda part: progress(0.6 * part))
    cost = _plain_cost(distances, to_root, parents)
    if interrupted:
        return _PlainResult(parents, 0, "level search, interrupted")
    bound = plain_bound(distances, to_root, options.max_depth, cost, options.effort)
    method = "minimum spanning tree" if options.max_depth > 1 and bound.value == cost else "level search"
    progress(0.7)
    if bound.prices is not None and bound.value < cost and worth_proving(to_root.size, options.effort):
        proof = improve_exactly(distances, to_root, parents, bound, options.seed)
        return _PlainResult(proof.parents, proof.bound, "level search, CP-SAT")
    return _PlainResult(parents, bound.value, method)


def _plain_cost(distances: Distances, to_root: Ints, parents: Ints) -> int:
    below = np.flatnonzero(parents >= 0)
    return int(to_root[parents < 0].sum()) + int(distances[below, parents[below]].sum(dtype=np.int64))


def _reach(matrix: SignMatrix, options: TreeOptions) -> tuple[Distances, npt.NDArray[np.bool_]]:
    """Costs between channels, and where the complement of the parent is cheaper."""
    distances = matrix.distances
    if not options.negated_parents:
        return distances, np.zeros(distances.shape, np.bool_)
    flipped = matrix.weights - distances + 1
    np.fill_diagonal(flipped, FAR)
    return np.minimum(distances, flipped), flipped < distances


def _solve_plain(matrix: SignMatrix, options: TreeOptions, progress: Progress) -> ChannelTree:
    distances, flipped = _reach(matrix, options)
    result = _search_and_bound(distances, matrix.to_root, matrix.weights, options, progress)
    nearer = np.where(matrix.ones <= matrix.weights - matrix.ones, ALL_MINUS, ALL_PLUS)
    return _plain_tree(matrix, options, result, flipped, nearer.tolist())


def _solve_single_root(matrix: SignMatrix, options: TreeOptions, progress: Progress) -> ChannelTree:
    distances, flipped = _reach(matrix, options)
    parents, cost = shallowest_spanning_tree(distances, options.max_depth)
    method, bound = "minimum spanning tree", cost
    if parents is None:
        if options.max_depth == 1:
            raise UsageError(f"max_depth is 1, so {matrix.channels} channels cannot hang on one of them")
        # Any channel may be the root; the one nearest to all others is the best centre known.
        root = int(np.argmin(np.where(distances == FAR, 0, distances).sum(axis=1)))
        parents = np.full(matrix.channels, root)
        parents[root] = -1
        if options.max_depth > 2:
            others = np.delete(np.arange(matrix.channels), root)
            inner = TreeOptions(options.max_depth - 1, options.node_overhead, False, options.effort, options.seed)
            between, below = distances[np.ix_(others, others)], distances[root, others].astype(np.int64)
            found, interrupted = search_plain(between, below, matrix.weights, inner, progress)
            parents[others] = np.where(found < 0, root, others[found])
            method = "level search, interrupted" if interrupted else "level search"
    roots = [IN_FULL] * matrix.channels
    result = _PlainResult(parents, bound + matrix.weights, method)
    return _plain_tree(matrix, options, result, flipped, roots)


def _plain_tree(
    matrix: SignMatrix, options: TreeOptions, result: _PlainResult, flipped: npt.NDArray[np.bool_], roots: list[str]
) -> ChannelTree:
    parents = result.parents
    below = parents >= 0
    negated = np.zeros(matrix.channels, np.bool_)
    negated[below] = flipped[np.flatnonzero(below), parents[below]]
    return ChannelTree(
        parents=parents,
        roots=tuple(INNER if inner else root for inner, root in zip(below.tolist(), roots, strict=True)),
        negated=negated,
        vectors=matrix.signs,
        channels=matrix.channels,
        max_depth=options.max_depth,
        node_overhead=options.node_overhead,
        lower_bound=float(result.bound),
        bound_problem=f"plain tree of depth <= {options.max_depth}",
        method=result.method,
    )
