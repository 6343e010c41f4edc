"""Shorter trees for a trained network: flip the weights it holds least.

Post-training clustering along the tree. Flipping a component of a tree (``tree_components``) saves a known number of
planes and costs the sum of its latent magnitudes |w|, a measure of how firmly training decided its sign (Helwegen et
al., NeurIPS 2019, read it so). Components of least magnitude per plane saved are flipped, at most one per position at a
time, as one flip changes its neighbours' price; the tree is solved anew several times on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from bnn_compiler.errors import BnncError, UsageError
from bnn_compiler.trees.channel_tree import ChannelTree

from .layers import BinaryLayer
from .sign_matrices import Signs, like_weight, sign_matrices
from .tree_components import Floats, Ints, node_components, price_flips
from .tree_loss import tree_layers
from .tree_pull import TreeShape, solve_fast

_MOST_SOLVES = 60


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
) -> list[ShortenReport]:
    """Flip latent weights of ``model``, in place, until the layers' trees cost at most ``ratio`` of their weights.

    A flipped weight keeps its magnitude, so the scales α stay as they are. Accuracy falls; fine-tune behind it, with
    ``TiedWeights``, which holds the trees (``Trainer`` does both: ``TrainingOptions.hold_from``).

    Args:
        model: has binary layers; by default all binary convolutions are shortened.
        ratio: cost over weights, in (0, 1), the overhead of synthetic nodes included.
        tree: limits and prices of trees.
        layers: names of binary layers, instead of all convolutions.
        together: ``ratio`` is that of all layers together, and flips are made where they are cheapest, magnitudes
            measured by each layer's mean; else every layer reaches it.

    Raises:
        UsageError: no binary layer, or ``ratio`` is not in (0, 1).
        BnncError: a layer cannot get that short.
    """
    if not 0 < ratio < 1:
        raise UsageError(f"the cost ratio to reach is {ratio}: it must lie between 0 and 1")
    shape = tree or TreeShape()
    states = [_LayerState(name, layer) for name, layer in tree_layers(model, layers).items()]
    for some in [states] if together else [[state] for state in states]:
        _shorten(some, ratio, shape)
    for state in states:
        state.write()
    return [state.report() for state in states]


class _LayerState:
    """A layer's signs, one matrix per group, and what its flips cost."""

    def __init__(self, name: str, layer: BinaryLayer) -> None:
        self.name, self.layer = name, layer
        self.signs = sign_matrices(layer)
        latent = layer.weight.detach().abs().double().cpu().numpy().reshape(len(self.signs), *self.signs[0].shape)
        # A layer of zeros has no preference.
        self.magnitudes = latent / (latent.mean() or 1.0)
        self.before, self.costs = list(self.signs), [0.0, 0.0]

    def solve(self, shape: TreeShape) -> list[ChannelTree]:
        trees = [solve_fast(signs, shape) for signs in self.signs]
        cost = sum(tree.cost for tree in trees)
        self.costs = [self.costs[0] or cost, cost]
        return trees

    def write(self) -> None:
        mask = like_weight([old != new for old, new in zip(self.before, self.signs, strict=True)], self.layer.weight)
        with torch.no_grad():
            weight = self.layer.weight
            # A latent 0 counts as +1, and has no negative but a small one.
            opposite = torch.where(weight == 0, torch.full_like(weight, -1e-6), -weight)
            weight.copy_(torch.where(mask.bool(), opposite, weight))

    def report(self) -> ShortenReport:
        flipped = sum(int((old != new).sum()) for old, new in zip(self.before, self.signs, strict=True))
        size = self.layer.weight.numel()
        return ShortenReport(self.name, self.costs[0] / size, self.costs[1] / size, flipped, size)


def _shorten(states: list[_LayerState], ratio: float, shape: TreeShape) -> None:
    size = sum(state.layer.weight.numel() for state in states)
    names = ", ".join(state.name for state in states)
    goal = ratio * size
    for _ in range(_MOST_SOLVES):
        trees = [(state, group, tree) for state in states for group, tree in enumerate(state.solve(shape))]
        missing = sum(tree.cost for _, _, tree in trees) - goal
        if missing <= 0:
            return
        # Half of what is missing on these trees, the rest on better ones; the last planes at once.
        wanted = max(missing / 2, min(missing, 0.01 * goal + 1))
        vectors = [tree.vectors.copy() for _, _, tree in trees]
        while wanted > 0:
            found = [node_components(tree, some) for (_, _, tree), some in zip(trees, vectors, strict=True)]
            offers = [
                _offers(tree, some, numbers, state.magnitudes[group])
                for (state, group, tree), some, numbers in zip(trees, vectors, found, strict=True)
            ]
            chosen, saved = _cheapest(offers, wanted)
            if saved == 0:
                raise BnncError(f"{names}: no flip brings the cost ratio from {(missing + goal) / size:.3f} to {ratio}")
            wanted -= saved
            for index, (numbers, flips) in enumerate(zip(found, chosen, strict=True)):
                vectors[index] ^= np.isin(numbers, flips).astype(np.uint8)
        for (state, group, tree), some in zip(trees, vectors, strict=True):
            state.signs[group] = np.ascontiguousarray(some[: tree.channels])
    raise BnncError(f"{names}: a cost ratio of {ratio} was not reached in {_MOST_SOLVES} solves; allow more")


@dataclass(frozen=True, eq=False)
class _Offers:
    """The cheapest component to flip at each position: its number, the planes it saves, magnitude per plane."""

    numbers: Ints
    planes: Ints
    rates: Floats


def _offers(tree: ChannelTree, vectors: Signs, found: Ints, magnitudes: Floats) -> _Offers:
    flips = price_flips(tree, vectors, found, magnitudes)
    rates = np.where(flips.planes > 0, flips.price / np.maximum(flips.planes, 1), np.inf).reshape(vectors.shape)
    nodes, columns = rates.argmin(axis=0), np.arange(vectors.shape[1])
    numbers = nodes * vectors.shape[1] + columns
    return _Offers(numbers, flips.planes[numbers], rates[nodes, columns])


def _cheapest(offers: list[_Offers], wanted: float) -> tuple[list[Ints], int]:
    """The numbers to flip, per tree, and the planes they save: as many as are wanted, but of the cheaper half only.

    What is dear at a position may have a cheap neighbour there once others are flipped.
    """
    rates = np.concatenate([offer.rates for offer in offers])
    planes = np.concatenate([offer.planes for offer in offers])
    order = np.argsort(rates, kind="stable")
    order = order[np.isfinite(rates[order])][: max(1, order.size // 2)]
    order = order[: int(np.searchsorted(np.cumsum(planes[order]), wanted)) + 1]
    taken = np.zeros(rates.size, np.bool_)
    taken[order] = True
    ends = np.cumsum([offer.rates.size for offer in offers])[:-1]
    chosen = [offer.numbers[part] for offer, part in zip(offers, np.split(taken, ends), strict=True)]
    return chosen, int(planes[order].sum())
