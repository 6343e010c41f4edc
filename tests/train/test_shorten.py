from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch

from bnn_compiler import solve_channel_tree
from bnn_compiler.errors import UsageError
from bnn_compiler.train import BinaryConv2d, BinaryLinear, TiedWeights, TreeShape, cost_ratios, shorten
from bnn_compiler.train.sign_matrices import sign_matrices
from bnn_compiler.train.tree_components import node_components, price_flips

from .test_tree_loss import cost_with_vectors

TREE = TreeShape(max_depth=6, node_overhead=4.0)


@pytest.mark.parametrize("synthetic", [False, True])
def test_flipping_a_component_saves_what_its_price_says(synthetic: bool) -> None:
    random = np.random.default_rng(4)
    signs = random.integers(0, 2, (8, 24), np.uint8)
    magnitudes = random.random((8, 24))
    tree = solve_channel_tree(signs, max_depth=5, node_overhead=2.0, synthetic=synthetic, effort="fast")
    found = node_components(tree, tree.vectors)
    flips = price_flips(tree, tree.vectors, found, magnitudes)
    for number in np.unique(found).tolist():
        members = found == number
        assert len(np.unique(tree.vectors[members])) == 1 and len({*np.nonzero(members)[1].tolist()}) == 1
        after = cost_with_vectors(tree, tree.vectors ^ members.astype(np.uint8))
        assert tree.edge_cost - after == flips.planes[number]
        assert flips.price[number] == pytest.approx(magnitudes[members[:8]].sum())


def test_shortening_reaches_the_ratio_by_the_weakest_weights() -> None:
    layer = BinaryConv2d(16, 32, 3)
    latent = layer.weight.detach().clone()
    ratio_before = cost_ratios(layer, TREE)[""]
    (report,) = shorten(layer, 0.15, TREE)
    assert report.ratio_before == ratio_before > 0.3
    assert report.ratio_after == cost_ratios(layer, TREE)[""] <= 0.15
    flipped = (latent >= 0) != (layer.weight >= 0)
    assert int(flipped.sum()) == report.flipped > 0
    assert torch.equal(layer.weight.abs(), latent.abs())
    assert latent.abs()[flipped].mean() < 0.8 * latent.abs()[~flipped].mean()


def test_a_short_tree_is_left_alone() -> None:
    layer = BinaryConv2d(8, 8, 3)
    latent = layer.weight.detach().clone()
    (report,) = shorten(layer, 0.9)
    assert report.flipped == 0 and torch.equal(layer.weight, latent)


def test_latent_zeros_can_be_flipped() -> None:
    layer = BinaryConv2d(8, 8, 3)
    with torch.no_grad():
        layer.weight[layer.weight > 0] = 0.0
    (report,) = shorten(layer, 0.1)
    assert report.ratio_after == cost_ratios(layer)[""] <= 0.1


def test_several_layers_and_groups() -> None:
    model = torch.nn.Sequential(BinaryConv2d(8, 16, 3, groups=2), BinaryConv2d(16, 8, 1), BinaryLinear(8, 8))
    dense = model[2].weight.detach().clone()
    assert [report.name for report in shorten(model, 0.2, TREE)] == ["0", "1"]
    assert max(cost_ratios(model, TREE).values()) <= 0.2 and torch.equal(model[2].weight, dense)
    assert shorten(model, 0.2, TREE, layers=["2"])[0].name == "2"


def test_together_flips_where_it_is_cheapest() -> None:
    """A layer whose signs training hardly holds gives more, however large its weights are as numbers."""
    model = torch.nn.Sequential(BinaryConv2d(16, 16, 3), BinaryConv2d(16, 16, 3))
    with torch.no_grad():
        model[0].weight.copy_(100 * (torch.sign(model[0].weight) + 0.01 * model[0].weight))  # all held alike
        model[1].weight.pow_(5)  # most of them hardly
    first, second = shorten(model, 0.2, TREE, together=True)
    assert (first.ratio_after + second.ratio_after) / 2 <= 0.2 < first.ratio_after
    assert second.ratio_after < 0.2 and second.flipped > first.flipped


@pytest.mark.parametrize("ratio", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        shorten(BinaryConv2d(1, 1, 1), ratio)


def test_models_without_binary_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="no binary layer"):
        shorten(torch.nn.Linear(1, 1), 0.2)


def test_tied_weights_hold_the_cost_under_any_gradients() -> None:
    torch.manual_seed(2)
    layer = BinaryConv2d(16, 24, 3, groups=2)
    shorten(layer, 0.2, TREE)
    signs = sign_matrices(layer)
    trees = [solve_channel_tree(group, max_depth=6, node_overhead=4.0, effort="fast") for group in signs]
    tied = TiedWeights(layer, TREE)
    assert all(np.array_equal(old, new) for old, new in zip(signs, sign_matrices(layer), strict=True))
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(5):
        layer.weight.grad = torch.randn_like(layer.weight)
        tied.tie_gradients()
        optimiser.step()
        tied.tie_weights()
    after = sign_matrices(layer)
    assert any((old != new).any() for old, new in zip(signs, after, strict=True))
    for tree, old, new in zip(trees, signs, after, strict=True):
        # Where the tree joins two channels, weights that were equal still are.
        for channel, parent in enumerate(tree.parents[: tree.channels].tolist()):
            if 0 <= parent < tree.channels:
                equal = old[channel] == old[parent]
                assert np.array_equal(new[channel][equal], new[parent][equal])


def test_tied_weights_are_restored_from_their_state() -> None:
    torch.manual_seed(2)
    layer = BinaryConv2d(8, 12, 3)
    tied = TiedWeights(layer)
    again = TiedWeights.of_state(layer, tied.state_dict())
    layer.weight.grad = torch.randn_like(layer.weight)
    gradient = layer.weight.grad.clone()
    tied.tie_gradients()
    first, layer.weight.grad = layer.weight.grad, gradient
    again.tie_gradients()
    assert torch.equal(first, layer.weight.grad) and not torch.equal(first, torch.zeros_like(first))
