from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.trees.bounds import plain_bound, synthetic_bound
from bnn_compiler.trees.exact import improve_exactly
from bnn_compiler.trees.plain_search import search_plain, spanning_tree
from bnn_compiler.trees.problem import TreeOptions, sign_matrix

from .matrices import cheapest_plain_tree, cheapest_steiner_tree, related_channels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_depth", [2, 3, 4])
def test_cp_sat_agrees_with_the_search(max_depth: int, seed: int) -> None:
    matrix = sign_matrix(related_channels(24, 150, seed))
    options = TreeOptions(max_depth=max_depth, synthetic=False, effort="thorough")
    found, _ = search_plain(matrix.distances, matrix.to_root, 150, options, lambda _: None)
    cost = int(np.where(found < 0, matrix.to_root, matrix.distances[np.arange(24), found]).sum())
    # From a poor tree, so that the solver has to find the optimum by itself.
    star = np.full(24, -1)
    bound = plain_bound(matrix.distances, matrix.to_root, max_depth, int(matrix.to_root.sum()), "default")
    proof = improve_exactly(matrix.distances, matrix.to_root, star, bound, seed=0)
    solved = int(np.where(proof.parents < 0, matrix.to_root, matrix.distances[np.arange(24), proof.parents]).sum())
    assert solved == proof.bound == cost


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_depth", [1, 2, 3, 5])
def test_plain_bound_is_below_the_cheapest_tree(max_depth: int, seed: int) -> None:
    signs = related_channels(5, 41, seed)
    matrix = sign_matrix(signs)
    best = cheapest_plain_tree(signs, max_depth)
    for upper in (best, best + 50, int(matrix.to_root.sum())):
        assert plain_bound(matrix.distances, matrix.to_root, max_depth, upper, "default").value <= best


def test_lagrangian_bound_is_better_than_the_spanning_tree() -> None:
    matrix = sign_matrix(related_channels(60, 300, 8))
    _, spanning = spanning_tree(matrix.distances, matrix.to_root)
    options = TreeOptions(max_depth=2, synthetic=False)
    found, _ = search_plain(matrix.distances, matrix.to_root, 300, options, lambda _: None)
    cost = int(np.where(found < 0, matrix.to_root, matrix.distances[np.arange(60), found]).sum())
    bound = plain_bound(matrix.distances, matrix.to_root, 2, cost, "default").value
    assert spanning < bound <= cost
    assert cost - bound < 0.5 * (cost - spanning)


@pytest.mark.parametrize("seed", range(4))
def test_synthetic_bound_is_below_the_cheapest_tree(seed: int) -> None:
    signs = np.random.default_rng(seed).integers(0, 2, (5, 7), dtype=np.uint8)
    matrix = sign_matrix(signs)
    for overhead in (0.0, 1.5):
        bound = synthetic_bound(matrix.distances, matrix.to_root, overhead)
        assert bound <= cheapest_steiner_tree(signs, overhead)


def test_distances_are_exact() -> None:
    signs = related_channels(20, 5000, 9)
    expected = (signs[:, None, :] != signs[None, :, :]).sum(axis=2)
    distances = sign_matrix(signs).distances
    off = ~np.eye(20, dtype=np.bool_)
    assert np.array_equal(distances[off], expected[off])
