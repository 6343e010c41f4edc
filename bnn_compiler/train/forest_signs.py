"""The signs of a layer's latent weights that are best for the task's memory and the tree's cost together.

Where a binary layer takes sign(w), which minimises Σ |w|·[s ≠ sign(w)] over signs s, this takes the minimiser of

    Σ |w|·[s ≠ sign(w)]  +  J · Σ strength·[s_u ≠ s_v] over the edges (u, v) of a forest, at each weight position,

that is, the proximal operator of J/2 times the tree's cost, of which the sign is the case J = 0. Hidden nodes take part
without a weight of their own. On a forest the minimum is found exactly in one pass up and one down (the max-product
algorithm; Pearl, Probabilistic Reasoning in Intelligent Systems, 1988, chapter 5): in terms of w, with both sides times
two, what a child tells its parent is its own preference, cut off at ±J·strength, since overruling one edge never costs
more than that; a node then takes the sign of all it was told, and of J·strength times its parent's sign.

The gradient passes to w as it does through a plain sign: a weight that is overruled still gathers what the task wants
of it, and takes its sign back once its |w| outweighs the edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .estimators import hard_sign
from .forest import Forest


def forest_signs(latent: Tensor, forest: Forest, coupling: float) -> Tensor:
    """Signs ±1 [K, N] of all nodes, channels first, that minimise the energy above.

    ``latent`` float [M, N] are the weights; ``coupling`` is J/mean |w|, at least 0. A tie goes to +1, from the roots
    downwards.
    """
    limit = coupling * latent.abs().mean() * forest.strengths
    wants = torch.cat([latent, latent.new_zeros(forest.parents.numel() - forest.channels, latent.shape[1])])
    for level in reversed(forest.levels[1:]):
        bound = limit[level, None]
        wants.index_add_(0, forest.parents[level], wants[level].clamp(-bound, bound))
    signs = torch.empty_like(wants)
    roots = forest.levels[0]
    signs[roots] = hard_sign(wants[roots] + (limit * forest.constants)[roots, None])
    for level in forest.levels[1:]:
        signs[level] = hard_sign(wants[level] + limit[level, None] * signs[forest.parents[level]])
    return signs


class StraightThroughSigns(torch.autograd.Function):
    """``signs`` as the value, the clipped identity's gradient to ``latent``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, signs: Tensor) -> Tensor:
        """Return ``signs``."""
        ctx.save_for_backward(latent)
        return signs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient where |latent| <= 1."""
        (latent,) = ctx.saved_tensors
        return gradient * (latent.abs() <= 1), None
