"""Shorter trees for a trained network: flip the weights it holds least.

Post-training clustering along the tree. On a given tree, ``forest_signs`` finds which flips save the most planes for
the least sum of latent magnitudes |w|, a measure of how firmly training decided a sign (Helwegen et al., NeurIPS 2019,
read it so), exactly; how much |w| a plane is worth, λ, is found by bisection. Trees are solved anew for the signs that
result, and flips chosen anew on these, from the original weights, until the tree is short enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn_compiler.errors import BnncError, UsageError

from .calibration import calibrate_batch_norms
from .forest import Forest, TreeShape, solve_fast, tree_forest
from .forest_signs import forest_signs
from .layers import BinaryLayer, weight_signs
from .sign_matrices import groups_of
from .tree_layers import tree_layers

_STEPS, _MOST_SOLVES, _BISECTIONS = 6, 60, 20
_MOST_COUPLING = 1e4
_MARGIN = 0.002


@dataclass(frozen=True)
class ShortenReport:
    """One layer's cost ratio before and after, and how many of its weights were flipped."""

    name: str
    ratio_before: float
    ratio_after: float
    flipped: int
    weights: int


def shorten(
    model: nn.Module,
    ratio: float,
    tree: TreeShape | None = None,
    *,
    layers: list[str] | None = None,
    together: bool = False,
    calibration: Iterable[Tensor] | None = None,
) -> list[ShortenReport]:
    """Flip latent weights of ``model``, in place, until the layers' trees cost at most ``ratio`` of their weights.

    A flipped weight keeps its magnitude, so the scales α stay as they are. But what a layer gives is distributed
    differently behind flips: the running statistics of batch-norms are those of another network, and most of what
    accuracy loses is lost by that. ``calibration`` measures them anew, forward passes being all it takes. Fine-tune
    behind it, if that is possible, with ``TreeSigns`` of the same ratio, which keeps the trees short.

    Args:
        model: has binary layers; by default all binary convolutions are shortened.
        ratio: cost over weights, in (0, 1), the overhead of synthetic nodes included.
        tree: limits and prices of trees.
        layers: names of binary layers, instead of all convolutions.
        together: ``ratio`` is that of all layers together, and flips are made where they are cheapest, magnitudes
            measured by each layer's mean; else every layer reaches it.
        calibration: batches of inputs, as ``calibrate_batch_norms`` takes them.

    Raises:
        UsageError: no binary layer, ``ratio`` is not in (0, 1), or ``calibration`` has no batch.
        BnncError: a layer cannot get that short.
    """
    if not 0 < ratio < 1:
        raise UsageError(f"the cost ratio to reach is {ratio}: it must lie between 0 and 1")
    states = [_LayerState(name, layer, tree or TreeShape()) for name, layer in tree_layers(model, layers).items()]
    for some in [states] if together else [[state] for state in states]:
        _shorten(some, ratio)
    for state in states:
        write_signs(state.layer, state.signs.reshape(state.layer.weight.shape))
    if calibration is not None:
        calibrate_batch_norms(model, calibration)
    return [state.report() for state in states]


def write_signs(layer: BinaryLayer, signs: Tensor) -> None:
    """Give latent weights other signs, ±1 in their shape, and leave their magnitudes; a 0 cannot be -1 and moves."""
    with torch.no_grad():
        size = layer.weight.abs()
        size = torch.where((size == 0) & (signs < 0), torch.full_like(size, 1e-6), size)
        layer.weight.copy_(size * signs)


class _LayerState:
    """A layer's latent weights and signs, both [M, N], and the trees of these signs."""

    def __init__(self, name: str, layer: BinaryLayer, shape: TreeShape) -> None:
        self.name, self.layer, self.shape = name, layer, shape
        weight = layer.weight.detach()
        rows = weight.shape[0]
        self.signs = weight_signs(layer).detach().reshape(rows, -1).cpu()
        self.latent = weight.abs().reshape(rows, -1).cpu() * self.signs
        self.before = self.signs
        self.forest, self.cost = self.solve()
        self.cost_before = self.cost

    def solve(self) -> tuple[Forest, float]:
        groups = (self.signs > 0).to(torch.uint8).reshape(groups_of(self.layer), -1, self.signs.shape[1]).numpy()
        trees = [solve_fast(signs, self.shape) for signs in groups]
        return tree_forest(trees), sum(tree.cost for tree in trees)

    def report(self) -> ShortenReport:
        size = self.layer.weight.numel()
        flipped = int((self.signs != self.before).sum())
        return ShortenReport(self.name, self.cost_before / size, self.cost / size, flipped, size)


def _shorten(states: Sequence[_LayerState], ratio: float) -> None:
    goal = ratio * sum(state.layer.weight.numel() for state in states)
    for solve in range(_MOST_SOLVES):
        cost = sum(state.cost for state in states)
        if cost <= goal:
            return
        # By equal factors: trees of signs that are closer to the goal are better trees for it. A new tree may cost a
        # little more than the one that the flips were chosen on, so late rounds aim lower and lower.
        aim = goal * (1 - _MARGIN * max(0, solve - _STEPS))
        coupling = _coupling_of_cost(states, (aim / cost) ** (1 / max(1, _STEPS - solve)))
        for state in states:
            state.signs = forest_signs(state.latent, state.forest, coupling)[: state.forest.channels]
            state.forest, state.cost = state.solve()
    names = ", ".join(state.name for state in states)
    raise BnncError(f"{names}: a cost ratio of {ratio} was not reached in {_MOST_SOLVES} solves; allow more")


def _coupling_of_cost(states: Sequence[_LayerState], factor: float) -> float:
    """The smallest λ, as far as bisection finds it, at which the edges of the present forests cost that much less.

    Hidden nodes are left out of it: those that are worth their overhead no more go when the trees are solved anew.
    """
    wanted = factor * sum(state.cost - state.forest.overhead for state in states)

    def enough(coupling: float) -> bool:
        rows = [forest_signs(state.latent, state.forest, coupling) for state in states]
        return sum(state.forest.planes(some) for state, some in zip(states, rows, strict=True)) <= wanted

    low, high = 0.0, 0.1
    while not enough(high) and high < _MOST_COUPLING:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
