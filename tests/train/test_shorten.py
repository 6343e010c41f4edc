from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch

from bnn_compiler.errors import UsageError
from bnn_compiler.train import BinaryConv2d, BinaryLinear, TreeShape, cost_ratios, shorten
from bnn_compiler.train.forest import Forest
from bnn_compiler.train.shorten import _LayerState

TREE = TreeShape(max_depth=6, node_overhead=4.0)


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


def test_flips_are_the_cheap_ones() -> None:
    torch.manual_seed(1)
    layer = BinaryConv2d(16, 24, 3)
    latent = layer.weight.detach().clone()
    (report,) = shorten(layer, 0.2, TREE)
    flipped = (latent >= 0) != (layer.weight >= 0)
    spent = float(latent.abs()[flipped].sum())
    # Magnitude flipped per plane saved: below that of weights flipped one at a time at random, mean |w|.
    planes = (report.ratio_before - report.ratio_after) * report.weights
    assert spent / planes < 0.8 * float(latent.abs().mean())


def test_trees_that_cost_more_than_expected_do_not_stall_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The solver is a heuristic: the trees it finds for signs chosen on another tree may cost more than that one."""
    solve = _LayerState.solve

    def worse(self: _LayerState) -> tuple[Forest, float]:
        forest, cost = solve(self)
        return forest, 1.01 * cost

    monkeypatch.setattr(_LayerState, "solve", worse)
    layer = BinaryConv2d(16, 24, 3)
    (report,) = shorten(layer, 0.2, TREE)
    assert report.ratio_after <= 0.2 and cost_ratios(layer, TREE)[""] <= 0.2
