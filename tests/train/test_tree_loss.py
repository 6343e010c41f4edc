from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch

from bnn_compiler import solve_channel_tree
from bnn_compiler.errors import UsageError
from bnn_compiler.train import (
    BinaryConv2d,
    BinaryLinear,
    ChannelTreeLoss,
    PullOptions,
    Variant,
    cost_ratios,
    total_ratio,
)
from bnn_compiler.train.forest import VARIANTS
from bnn_compiler.train.sign_matrices import sign_matrices
from bnn_compiler.train.tree_pull import centre_pull, tree_pull
from bnn_compiler.trees.channel_tree import ALL_PLUS, ChannelTree


def tree_of(signs: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], *, synthetic: bool) -> ChannelTree:
    return solve_channel_tree(signs, node_overhead=2.0, max_depth=4, synthetic=synthetic, effort="fast")


def cost_with_vectors(tree: ChannelTree, vectors: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    """Edges of ``tree`` for other vectors, counted one by one."""
    cost = 0
    for node, (parent, root) in enumerate(zip(tree.parents.tolist(), tree.roots, strict=True)):
        above = vectors[parent] if parent >= 0 else np.full(vectors.shape[1], int(root == ALL_PLUS))
        cost += int((vectors[node] != above).sum())
    return cost


@pytest.mark.parametrize("synthetic", [False, True])
def test_the_pull_is_the_change_of_cost_by_a_flip(synthetic: bool) -> None:
    """Flipping one weight changes the cost by the pull on it, with the weight's sign: for all weights of a tree."""
    signs = np.random.default_rng(1).integers(0, 2, (9, 40), np.uint8)
    tree = tree_of(signs, synthetic=synthetic)
    assert synthetic == (tree.synthetic_nodes > 0)
    pull = tree_pull(tree)
    for channel in range(9):
        for position in range(40):
            vectors = tree.vectors.copy()
            vectors[channel, position] ^= 1
            change = cost_with_vectors(tree, vectors) - tree.edge_cost
            assert change == pull[channel, position] * (1 if signs[channel, position] else -1)


def test_depth_weight_pulls_harder_far_from_the_root() -> None:
    signs = np.random.default_rng(2).integers(0, 2, (12, 32), np.uint8)
    tree = tree_of(signs, synthetic=False)
    leaves = sorted(set(range(12)) - set(tree.parents.tolist()))
    depths = tree.depths[leaves]
    assert depths.max() > 1
    pull = np.abs(tree_pull(tree, depth_weight=3.0)[leaves])
    # A leaf has one neighbour; at the depth limit, 4, its edge counts 1 + 3.
    np.testing.assert_allclose(pull, np.broadcast_to(1 + (depths[:, None] - 1), pull.shape))


def test_centres_are_those_of_the_clusters() -> None:
    random = np.random.default_rng(3)
    centres = random.integers(0, 2, (3, 64), np.uint8)
    member = np.arange(24) % 3
    signs = (centres[member] ^ (random.random((24, 64)) < 0.1)).astype(np.uint8)
    np.testing.assert_array_equal(centre_pull(signs, 3, seed=0), centres[member].astype(np.float32) * 2 - 1)
    # More clusters than different channels: every channel is its own centre.
    same = np.repeat(signs[:2], 3, axis=0)
    np.testing.assert_array_equal(centre_pull(same, 5, seed=0), same.astype(np.float32) * 2 - 1)


def pull_norm(channels: int, variant: Variant = "synthetic") -> float:
    torch.manual_seed(0)
    layer = BinaryConv2d(channels, channels, 3)
    loss = ChannelTreeLoss(layer, 0.5, PullOptions(variant=variant))
    loss().backward()
    return float(layer.weight.grad.norm())


def test_lambda_means_the_same_for_all_layer_sizes() -> None:
    """Of random layers of 576 to 36,864 weights the pull has the same norm, and it grows with λ."""
    norms = [pull_norm(channels) for channels in (8, 16, 32, 64)]
    assert max(norms) / min(norms) < 1.25
    # λ √(share pulled): all but the weights that agree by more than the margin.
    assert 0.5 * math.sqrt(0.1) < norms[-1] < 0.5 * 3


def test_penalty_is_the_formula() -> None:
    layer = BinaryConv2d(4, 6, 3)
    options = PullOptions(margin=0.02)
    loss = ChannelTreeLoss(layer, 0.25, options)
    value = loss()
    (signs,) = sign_matrices(layer)
    pull = torch.from_numpy(tree_pull(solve_channel_tree(signs, effort="fast"))).reshape(layer.weight.shape)
    wanted = sum(
        abs(t) * max(0.0, 0.02 - math.copysign(1.0, t) * w)
        for t, w in zip(pull.flatten().tolist(), layer.weight.flatten().tolist(), strict=True)
        if t
    )
    # The sum is in double precision here, in single precision there.
    assert float(value.detach()) == pytest.approx(0.25 * wanted / math.sqrt(6 * 36), rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_penalty_alone_makes_trees_cheap(variant: Variant) -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(16, 24, 3)
    before = cost_ratios(layer)[""]
    loss = ChannelTreeLoss(layer, 1.0, PullOptions(variant=variant, solve_every=10))
    optimiser = torch.optim.Adam(layer.parameters(), lr=5e-3)
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert cost_ratios(layer)[""] < 0.5 * before


def test_warm_up_and_schedule() -> None:
    layer = BinaryConv2d(2, 4, 3)
    loss = ChannelTreeLoss(layer, 1.0, PullOptions(warm_up=2, total=6, schedule="linear"))
    factors = []
    for _ in range(7):
        factors.append(loss.schedule_factor())
        loss()
    assert factors == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert float(ChannelTreeLoss(layer, 0.0)()) == 0.0


def test_groups_have_trees_of_their_own() -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(8, 12, 3, groups=2)
    first, second = sign_matrices(layer)
    assert first.shape == second.shape == (6, 36)
    cost = sum(solve_channel_tree(signs, effort="fast").cost for signs in (first, second))
    assert cost_ratios(layer)[""] == cost / layer.weight.numel()


def test_total_ratio_weighs_layers_by_their_weights() -> None:
    model = torch.nn.Sequential(BinaryConv2d(4, 8, 1), BinaryConv2d(8, 16, 3), BinaryLinear(4, 4))
    ratios = cost_ratios(model)
    assert list(ratios) == ["0", "1"]  # dense layers are not computed along trees
    assert total_ratio(model) == pytest.approx((ratios["0"] * 32 + ratios["1"] * 1152) / 1184)
    assert list(cost_ratios(model, names=["2"])) == ["2"]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_wrong_lambda_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match="λ is"):
        ChannelTreeLoss(BinaryConv2d(1, 1, 1), weight)


def test_models_without_binary_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="Conv2d has no binary layer"):
        ChannelTreeLoss(torch.nn.Conv2d(1, 1, 1), 0.1)
    with pytest.raises(UsageError, match="no binary convolution"):
        ChannelTreeLoss(BinaryLinear(2, 2), 0.1)
    with pytest.raises(UsageError, match="'head' is no binary layer; there are"):
        ChannelTreeLoss(BinaryLinear(2, 2), 0.1, layers=["head"])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="'moon' is none of"):
        PullOptions(variant="moon")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="'step' is none of"):
        PullOptions(schedule="step")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs total"):
        PullOptions(schedule="linear", warm_up=5, total=5)
    with pytest.raises(UsageError, match="solve_every"):
        PullOptions(solve_every=0)
    with pytest.raises(UsageError, match="margin"):
        PullOptions(margin=-1.0)
