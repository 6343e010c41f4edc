from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bnn_compiler.errors import UsageError
from bnn_compiler.train import (
    BinaryConv2d,
    BinaryLinear,
    TreeShape,
    TreeSigns,
    TreeSignsOptions,
    Variant,
    cost_ratios,
    export,
    total_ratio,
)
from bnn_compiler.train.forest import VARIANTS, Forest, centre_forest, solve_fast, tree_forest
from bnn_compiler.train.forest_signs import forest_signs
from bnn_compiler.train.layers import weight_signs
from bnn_compiler.train.sign_matrices import sign_matrices

SHAPE = TreeShape(max_depth=5, node_overhead=1.0)


def energy(latent: Tensor, forest: Forest, coupling: float, signs: Tensor) -> Tensor:
    """Of every position, as ``forest_signs`` states it, edge by edge; [N]."""
    price = coupling * latent.abs().mean()
    total = (latent.abs() * (signs[: forest.channels] * latent < 0)).sum(dim=0)
    for node, parent in enumerate(forest.parents.tolist()):
        above = signs[parent] if parent >= 0 else forest.constants[node] * torch.ones_like(signs[node])
        total = total + price * forest.strengths[node] * ((signs[node] != above) & (above != 0))
    return total


def random_forest(variant: Variant, channels: int, seed: int, depth_weight: float = 0.0) -> tuple[Tensor, Forest]:
    latent = torch.randn(channels, 12, generator=torch.Generator().manual_seed(seed))
    signs = (latent >= 0).to(torch.uint8).numpy()
    if variant == "centres":
        return latent, centre_forest([signs], 2, seed)
    return latent, tree_forest([solve_fast(signs, SHAPE, synthetic=variant == "synthetic")], depth_weight)


@settings(max_examples=40, deadline=None)
@given(
    variant=st.sampled_from(VARIANTS),
    channels=st.integers(1, 6),
    seed=st.integers(0, 1000),
    coupling=st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.5, 100.0]),
    depth_weight=st.sampled_from([0.0, 2.0]),
)
def test_signs_minimise_the_energy(
    variant: Variant, channels: int, seed: int, coupling: float, depth_weight: float
) -> None:
    """Against all assignments of signs to channels and hidden nodes."""
    latent, forest = random_forest(variant, channels, seed, depth_weight)
    nodes = forest.parents.numel()
    found = energy(latent, forest, coupling, forest_signs(latent, forest, coupling))
    least = torch.full_like(found, float("inf"))
    for choice in itertools.product((-1.0, 1.0), repeat=nodes):
        signs = torch.tensor(choice)[:, None].expand(nodes, latent.shape[1])
        least = torch.minimum(least, energy(latent, forest, coupling, signs))
    # Sums of a dozen float32 terms, in another order.
    torch.testing.assert_close(found, least, rtol=1e-5, atol=1e-5)


def test_without_coupling_they_are_the_signs() -> None:
    latent, forest = random_forest("synthetic", 6, 3)
    assert torch.equal(forest_signs(latent, forest, 0.0)[:6] > 0, latent >= 0)


def test_planes_are_the_trees_cost() -> None:
    signs = np.random.default_rng(1).integers(0, 2, (2, 12, 40), np.uint8)
    trees = [solve_fast(group, SHAPE) for group in signs]
    forest = tree_forest(trees)
    assert forest.parents.numel() > forest.channels == 24
    hidden = [tree.vectors[tree.channels :] for tree in trees]
    rows = torch.from_numpy(np.concatenate([*signs, *hidden]).astype(np.float32) * 2 - 1)
    assert forest.planes(rows) == sum(tree.edge_cost for tree in trees)
    assert forest.overhead == sum(tree.synthetic_nodes for tree in trees)
    assert [len(level) for level in forest.levels] == np.bincount(
        np.concatenate([tree.depths for tree in trees]) - 1
    ).tolist()


def test_gradients_pass_to_overruled_weights() -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(8, 8, 3)
    tree_signs = TreeSigns(layer, 10, weight=1.0, options=TreeSignsOptions(start=0.0, until=0.0))
    plain = layer.weight.detach() >= 0
    tree_signs.begin_step()
    signs = weight_signs(layer)
    overruled = (signs.detach() > 0) != plain
    assert 0.02 < overruled.float().mean() < 0.5
    (signs * 3.0).sum().backward()
    assert torch.equal(layer.weight.grad, torch.full_like(layer.weight, 3.0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lambda_alone_makes_trees_cheap(variant: Variant) -> None:
    """On the signs of a random layer, more with a larger λ; and the signs stay when it is finished."""
    ratios = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        layer = BinaryConv2d(16, 24, 3)
        options = TreeSignsOptions(variant, solve_every=1, start=0.0, until=0.5, settle=1.0)
        tree_signs = TreeSigns(layer, 8, weight=weight, options=options)
        for _ in range(8):
            tree_signs.begin_step()
        before = sign_matrices(layer)
        tree_signs.finish()
        assert np.array_equal(before, sign_matrices(layer)) and layer.signs_of is None
        ratios.append(cost_ratios(layer)[""])
    assert ratios[0] > 0.35 and ratios[1] < 0.95 * ratios[0] and ratios[2] < 0.9 * ratios[1]


def test_a_ratio_is_reached_and_kept_by_all_layers_together() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(BinaryConv2d(8, 16, 3, groups=2), BinaryConv2d(16, 16, 3), BinaryLinear(8, 8))
    dense = model[2].weight.detach().clone()
    tree_signs = TreeSigns(model, 40, ratio=0.2, options=TreeSignsOptions(solve_every=2, start=0.0, until=0.5))
    seen = []
    for _ in range(40):
        tree_signs.begin_step()
        seen.append(total_ratio(model))
    assert seen[0] > 0.3 and max(seen[30:]) < 0.21
    tree_signs.finish()
    assert total_ratio(model) <= 0.2
    assert torch.equal(model[2].weight, dense)


def test_trees_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = BinaryConv2d(8, 8, 3)
    options = TreeSignsOptions(solve_every=3, start=0.2, until=0.4, settle=0.5)
    tree_signs = TreeSigns(layer, 20, ratio=0.2, options=options)
    solved: list[int] = []
    solve = TreeSigns._solve

    def noted(self: TreeSigns) -> float:
        solved.append(self.step)
        return solve(self)

    monkeypatch.setattr(TreeSigns, "_solve", noted)
    for _ in range(20):
        tree_signs.begin_step()
    assert solved == [4, 7, 10]
    # A training that is shorter than that still gets its one tree.
    solved.clear()
    short = TreeSigns(layer, 1, ratio=0.2, options=TreeSignsOptions(start=0.0, until=0.0, settle=0.0))
    short.begin_step()
    assert solved == [0]


def test_an_export_before_the_end_has_the_signs_that_are_computed_with(tmp_path: object) -> None:
    import onnx  # noqa: PLC0415

    torch.manual_seed(0)
    model = torch.nn.Sequential(BinaryConv2d(4, 8, 3)).eval()
    tree_signs = TreeSigns(model, 4, weight=2.0, options=TreeSignsOptions(start=0.0, until=0.0))
    tree_signs.begin_step()
    path = f"{tmp_path}/model.onnx"
    export(model, path, torch.zeros(1, 4, 6, 6))
    wanted = sign_matrices(model[0])[0].reshape(8, 4, 3, 3) * 2.0 - 1
    assert not np.array_equal(wanted > 0, model[0].weight.detach().numpy() >= 0)
    arrays = [onnx.numpy_helper.to_array(value) for value in onnx.load(path).graph.initializer]
    assert any(array.shape == wanted.shape and np.array_equal(array, wanted) for array in arrays)


def test_wrong_arguments_are_refused() -> None:
    layer = BinaryConv2d(4, 4, 3)
    with pytest.raises(UsageError, match="λ is -1"):
        TreeSigns(layer, 10, weight=-1.0)
    with pytest.raises(UsageError, match="λ is nan"):
        TreeSigns(layer, 10, weight=float("nan"))
    with pytest.raises(UsageError, match="between 0 and 1"):
        TreeSigns(layer, 10, ratio=1.5)
    with pytest.raises(UsageError, match="either weight"):
        TreeSigns(layer, 10)
    with pytest.raises(UsageError, match="either weight"):
        TreeSigns(layer, 10, weight=1.0, ratio=0.5)
    with pytest.raises(UsageError, match="steps is 0"):
        TreeSigns(layer, 0, weight=1.0)
    with pytest.raises(UsageError, match="no cost ratio to steer by"):
        TreeSigns(layer, 10, ratio=0.5, options=TreeSignsOptions("centres"))
    with pytest.raises(UsageError, match="no binary layer"):
        TreeSigns(torch.nn.Linear(2, 2), 10, weight=1.0)
    with pytest.raises(UsageError, match="in this order"):
        TreeSignsOptions(start=0.7)
    with pytest.raises(UsageError, match="variant 'star'"):
        TreeSignsOptions("star")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="depth_weight"):
        TreeSignsOptions(depth_weight=-1)
    with pytest.raises(UsageError, match="solve_every"):
        TreeSignsOptions(solve_every=0)
