"""Shorter trees for a trained network: flip the weights it holds least.

Post-training clustering along the tree. Flipping a component of a tree (``tree_components``) saves a known number of
planes and costs the sum of its latent magnitudes |w|, a measure of how firmly training decided its sign (Helwegen et
al., NeurIPS 2019, read it so). Components of least magnitude per plane saved are flipped, at most one per position at a
time, as one flip changes its neighbours' price; the tree is solved anew several times on the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bnn_compiler.errors import BnncError, UsageError

from .sign_matrices import Signs, groups_of, like_weight, sign_matrices
from .tree_components import node_components, price_flips
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
    model: nn.Module, ratio: float, tree: TreeShape | None = None, *, layers: list[str] | None = None
) -> list[ShortenReport]:
    """Flip latent weights of ``model``, in place, until each layer's trees cost at most ``ratio`` of its weights.

    A flipped weight keeps its magnitude, so the scales α stay as they are. Accuracy falls; fine-tune behind it, with
    ``TiedWeights``, which holds the trees (``Trainer`` does both: ``TrainingOptions.hold_from``).

    Args:
        model: has binary layers; by default all binary convolutions are shortened.
        ratio: cost over weights, in (0, 1), the overhead of synthetic nodes included.
        tree: limits and prices of trees.
        layers: names of binary layers, instead of all convolutions.

    Raises:
        UsageError: no binary layer, or ``ratio`` is not in (0, 1).
        BnncError: a layer cannot get that short.
    """
    if not 0 < ratio < 1:
        raise UsageError(f"the cost ratio to reach is {ratio}: it must lie between 0 and 1")
    shape = tree or TreeShape()
    reports = []
    for name, layer in tree_layers(model, layers).items():
        before = sign_matrices(layer)
        magnitudes = layer.weight.detach().abs().double().cpu().numpy().reshape(groups_of(layer), *before[0].shape)
        results = [_shorten_group(name, *pair, ratio, shape) for pair in zip(before, magnitudes, strict=True)]
        flips = [old != new.signs for old, new in zip(before, results, strict=True)]
        with torch.no_grad():
            mask = like_weight(flips, layer.weight).bool()
            # A latent 0 counts as +1, and has no negative but a small one.
            opposite = torch.where(layer.weight == 0, torch.full_like(layer.weight, -1e-6), -layer.weight)
            layer.weight.copy_(torch.where(mask, opposite, layer.weight))
        size = layer.weight.numel()
        reports.append(
            ShortenReport(
                name,
                sum(result.cost_before for result in results) / size,
                sum(result.cost_after for result in results) / size,
                int(sum(flip.sum() for flip in flips)),
                size,
            )
        )
    return reports


@dataclass(frozen=True, eq=False)
class _Shortened:
    signs: Signs
    cost_before: float
    cost_after: float


def _shorten_group(
    name: str, signs: Signs, magnitudes: npt.NDArray[np.float64], ratio: float, shape: TreeShape
) -> _Shortened:
    goal = ratio * signs.size
    first: float | None = None
    for _ in range(_MOST_SOLVES):
        tree = solve_fast(signs, shape)
        first = tree.cost if first is None else first
        if tree.cost <= goal:
            return _Shortened(signs, first, tree.cost)
        # Half of what is missing on this tree, the rest on better ones; the last planes at once.
        wanted = max((tree.cost - goal) / 2, min(tree.cost - goal, 0.01 * goal + 1))
        vectors = tree.vectors.copy()
        while wanted > 0:
            found = node_components(tree, vectors)
            flips = price_flips(tree, vectors, found, magnitudes)
            worth = flips.planes > 0
            rate = np.where(worth, flips.price / np.maximum(flips.planes, 1), np.inf).reshape(vectors.shape)
            cheapest = rate.argmin(axis=0)
            rates = rate.min(axis=0)
            order = np.argsort(rates, kind="stable")
            # The cheaper half of the positions only: what is dear here may have a cheap neighbour elsewhere afterwards.
            order = order[np.isfinite(rates[order])][: max(1, order.size // 2)]
            if order.size == 0:
                raise BnncError(
                    f"layer {name}: no tree of cost ratio {ratio} by flips; at {tree.cost / signs.size:.3f}"
                )
            numbers = cheapest[order] * vectors.shape[1] + order
            saved = np.cumsum(flips.planes[numbers])
            numbers = numbers[: int(np.searchsorted(saved, wanted)) + 1]
            wanted -= float(flips.planes[numbers].sum())
            vectors ^= np.isin(found, numbers).astype(np.uint8)
        signs = np.ascontiguousarray(vectors[: tree.channels])
    raise BnncError(f"layer {name}: a cost ratio of {ratio} was not reached in {_MOST_SOLVES} solves; allow more")
