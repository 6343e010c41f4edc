from __future__ import annotations

import dataclasses
import hashlib
import json

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_compiler import solve_channel_tree
from bnn_compiler.errors import UsageError
from bnn_compiler.trees.channel_tree import ChannelTree, TreeError

from .matrices import Signs, cheapest_plain_tree, cheapest_steiner_tree, related_channels, sign_matrices


def _independent_cost(tree: ChannelTree, signs: Signs) -> float:
    """Walk the networkx graph from the roots and count mismatches one by one."""
    graph = tree.to_networkx()
    assert networkx.is_forest(graph.to_undirected())
    weights = signs.shape[1]
    vectors: dict[object, list[int]] = {"minus": [0] * weights, "plus": [1] * weights}
    vectors |= {node: tree.vectors[node].tolist() for node in range(len(tree.vectors))}
    reached = {node for root in {"minus", "plus", "full"} & set(graph) for node in networkx.descendants(graph, root)}
    assert reached == set(range(len(tree.vectors)))
    cost = tree.node_overhead * (len(tree.vectors) - len(signs))
    for parent, node, edge in graph.edges(data=True):
        if parent == "full":
            cost += weights
            continue
        flip = 1 if edge["negated"] else 0
        cost += flip + sum(a != b ^ flip for a, b in zip(vectors[node], vectors[parent], strict=True))
    return cost


@settings(max_examples=60, deadline=None)
@given(
    signs=sign_matrices,
    max_depth=st.integers(1, 9),
    overhead=st.sampled_from([0.0, 2.5, 24.0]),
    mode=st.sampled_from(["synthetic", "plain", "negated"]),
    effort=st.sampled_from(["fast", "default"]),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_matrix_gets_a_valid_tree(
    signs: Signs, max_depth: int, overhead: float, mode: str, effort: str, seed: int
) -> None:
    def solve() -> ChannelTree:
        return solve_channel_tree(
            signs, max_depth=max_depth, node_overhead=overhead, synthetic=mode == "synthetic",
            negated_parents=mode == "negated", effort=effort, seed=seed,  # type: ignore[arg-type]
        )  # fmt: skip

    tree = solve()
    tree.check(signs)
    assert np.array_equal(tree.vectors[: len(signs)], signs)
    assert tree.depth <= max_depth
    assert tree.cost == pytest.approx(_independent_cost(tree, signs))
    assert tree.lower_bound <= tree.cost <= np.minimum(signs.sum(axis=1), (1 - signs).sum(axis=1)).sum()
    position = np.argsort(tree.order)
    below = tree.parents >= 0
    assert np.all(position[tree.parents[below]] < position[np.flatnonzero(below)])
    again = solve()
    assert np.array_equal(tree.parents, again.parents)
    assert np.array_equal(tree.vectors, again.vectors)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_depth", [1, 2, 3, 5])
def test_plain_trees_are_the_cheapest_of_all(max_depth: int, seed: int) -> None:
    signs = related_channels(5, 37, seed)
    tree = solve_channel_tree(signs, synthetic=False, max_depth=max_depth)
    assert tree.cost == cheapest_plain_tree(signs, max_depth)


def test_plain_tree_of_six_channels_is_the_cheapest_of_all() -> None:
    signs = related_channels(6, 24, 11)
    assert solve_channel_tree(signs, synthetic=False, max_depth=3).cost == cheapest_plain_tree(signs, 3)


@pytest.mark.parametrize("overhead", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_synthetic_trees_are_the_cheapest_of_all(seed: int, overhead: float) -> None:
    signs = np.random.default_rng(seed).integers(0, 2, (6, 8), dtype=np.uint8)
    tree = solve_channel_tree(signs, max_depth=12, node_overhead=overhead)
    best = cheapest_steiner_tree(signs, overhead)
    assert tree.lower_bound <= best
    assert tree.cost == pytest.approx(best)


@pytest.mark.parametrize(("channels", "weights"), [(2, 5), (40, 65), (90, 300)])
def test_without_limits_a_plain_tree_is_the_minimum_spanning_tree(channels: int, weights: int) -> None:
    signs = related_channels(channels, weights, 3)
    graph = networkx.Graph()
    for node in range(channels):
        ones = int(signs[node].sum())
        graph.add_edge("root", node, weight=min(ones, weights - ones))
        for other in range(node):
            graph.add_edge(other, node, weight=int((signs[node] != signs[other]).sum()))
    tree = solve_channel_tree(signs, synthetic=False, max_depth=channels)
    assert tree.cost == networkx.minimum_spanning_tree(graph).size(weight="weight")
    assert tree.gap == 0


def test_single_root_is_the_papers_tree() -> None:
    signs = related_channels(30, 200, 5)
    tree = solve_channel_tree(signs, synthetic=False, single_root=True, max_depth=30)
    graph = networkx.Graph()
    for node in range(30):
        for other in range(node):
            graph.add_edge(other, node, weight=int((signs[node] != signs[other]).sum()))
    spanning = networkx.minimum_spanning_tree(graph)
    assert tree.cost == 200 + spanning.size(weight="weight")
    assert list(tree.roots).count("full") == 1
    # Edges differ in length here but for few, so the centre of networkx' tree is as shallow as a root can be.
    assert tree.depth <= networkx.radius(spanning) + 1
    shallow = solve_channel_tree(signs, synthetic=False, single_root=True, max_depth=3)
    assert shallow.depth <= 3
    assert shallow.cost >= tree.cost


def test_synthetic_nodes_pay() -> None:
    signs = related_channels(60, 576, 1)
    plain = solve_channel_tree(signs, synthetic=False)
    tree = solve_channel_tree(signs)
    assert tree.synthetic_nodes > 0
    assert tree.cost < 0.9 * plain.cost
    assert tree.cost <= solve_channel_tree(signs, effort="fast").cost
    # Nothing pays an overhead of all the weights.
    assert solve_channel_tree(signs, node_overhead=1e6, effort="fast").synthetic_nodes == 0


def test_complements_are_cheap_with_negated_parents() -> None:
    half = related_channels(8, 120, 2)
    signs = np.concatenate([half, 1 - half])
    tree = solve_channel_tree(signs, synthetic=False, negated_parents=True)
    assert tree.negated.sum() >= 8 - 1
    assert tree.cost < 0.7 * solve_channel_tree(signs, synthetic=False).cost


def test_duplicate_and_equal_rows_cost_nothing() -> None:
    row = related_channels(1, 90, 0)
    tree = solve_channel_tree(np.repeat(row, 7, axis=0))
    assert tree.edge_cost == min(row.sum(), 90 - row.sum())
    assert tree.synthetic_nodes == 0
    assert solve_channel_tree(np.zeros((4, 9), np.uint8)).cost == 0
    assert solve_channel_tree(np.ones((4, 9), np.uint8)).cost == 0


def test_one_channel() -> None:
    tree = solve_channel_tree(np.array([[1, 1, 0]], np.uint8))
    assert (tree.cost, tree.roots, tree.gap) == (1, ("plus",), 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros((0, 3), np.uint8), "there must be a channel"),
        (np.zeros((3, 0), np.uint8), "there must be a channel"),
        (np.zeros(4, np.uint8), "a matrix"),
        (np.array([[0, 2]], np.uint8), r"weights\[0, 1\] is 2"),
        (np.array([[0, 1], [-1, 1]]), r"weights\[1, 0\] is -1"),
        (np.array([[0.0, np.nan]]), "is nan"),
        (np.array([["a"]]), "dtype"),
    ],
)
def test_bad_weights_are_refused(weights: Signs, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        solve_channel_tree(weights)


def test_bad_options_are_refused() -> None:
    signs = np.eye(3, dtype=np.uint8)
    with pytest.raises(UsageError, match="max_depth is 0"):
        solve_channel_tree(signs, max_depth=0)
    with pytest.raises(UsageError, match="node_overhead is -1"):
        solve_channel_tree(signs, node_overhead=-1)
    with pytest.raises(UsageError, match="effort 'slow'"):
        solve_channel_tree(signs, effort="slow")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed is -1"):
        solve_channel_tree(signs, seed=-1)
    with pytest.raises(UsageError, match="settings of plain trees"):
        solve_channel_tree(signs, single_root=True)
    with pytest.raises(UsageError, match="cannot hang on one"):
        solve_channel_tree(signs, synthetic=False, single_root=True, max_depth=1)


def test_a_golden_tree_is_the_same_on_every_machine() -> None:
    """Decisions are integer arithmetic, so these trees come out everywhere; only another search gives others."""
    word = 1
    rows: list[list[int]] = []
    for _ in range(40):
        bits = 0
        for _ in range(4):
            word = (word * 6364136223846793005 + 1442695040888963407) % 2**64
            bits = bits << 32 | word >> 32
        # Neighbours share half their bits, so that synthetic nodes pay.
        rows.append([(bits >> at) & 1 if at % 2 else (len(rows) // 5 >> (at // 2 % 3)) & 1 for at in range(128)])
    signs = np.array(rows, np.uint8)
    found = {}
    for synthetic, depth in ((True, 5), (False, 2)):
        tree = solve_channel_tree(signs, max_depth=depth, node_overhead=3.5, synthetic=synthetic, seed=7)
        text = json.dumps([tree.parents.tolist(), tree.vectors.tolist()])
        found[synthetic] = (tree.cost, tree.synthetic_nodes > 0, hashlib.sha256(text.encode()).hexdigest()[:16])
    assert found == GOLDEN


GOLDEN = {True: (1053.0, True, "2137c14ea0606b8c"), False: (1324.0, False, "65c51176c1566596")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: {"parents": np.roll(tree.parents, 1)}, "root"),
        (lambda tree: {"max_depth": 1}, "depth"),
        (lambda tree: {"vectors": 1 - tree.vectors}, "are not the weights"),
        (lambda tree: {"lower_bound": tree.cost + 1}, "below the lower bound"),
        (lambda tree: {"parents": np.full_like(tree.parents, 999)}, "is no node"),
        (lambda tree: {"channels": tree.channels - 1}, "no children|are not the weights"),
    ],
)
def test_check_finds_violations(change: object, message: str) -> None:
    signs = related_channels(12, 200, 4)
    tree = solve_channel_tree(signs, effort="fast")
    assert tree.synthetic_nodes > 0
    assert callable(change)
    with pytest.raises(TreeError, match=message):
        dataclasses.replace(tree, **change(tree)).check(signs)


def test_check_finds_cycles() -> None:
    signs = related_channels(3, 20, 0)
    tree = solve_channel_tree(signs, synthetic=False)
    broken = dataclasses.replace(tree, parents=np.array([1, 2, 0]), roots=("", "", ""))
    with pytest.raises(TreeError, match="cycle"):
        broken.check(signs)
