"""The sign function and what stands for its derivative in training.

The value is exactly that of the exported graph, ``x >= 0 ? 1 : -1``: zero and -0 count as +1, NaN as -1. The gradient
is that of another function (a *straight-through estimator*):

clipped_identity
    of a clip to [-1, 1]: 1 for |x| <= 1, else 0. Binarized Neural Networks (Hubara et al., NIPS 2016) and
    XNOR-Net (Rastegari et al., ECCV 2016, section 3.1).
approx_sign
    of a piecewise parabola: 2 - 2|x| for |x| < 1, else 0, a better fit to a sign. Bi-Real Net (Liu et al., ECCV
    2018).
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bnn_compiler.errors import UsageError

Estimator = Literal["clipped_identity", "approx_sign"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


def hard_sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0``, else -1, in the dtype of ``x``; no gradient."""
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)


class _HardSign(torch.autograd.Function):
    """The sign; estimators add the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return hard_sign(x)


class _ClippedIdentity(_HardSign):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class _ApproxSign(_HardSign):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (2 - 2 * x.abs()).clamp_min(0)


def sign(x: Tensor, estimator: Estimator = "clipped_identity") -> Tensor:
    """Sign of ``x`` (float, any shape), +1 at zero, with the gradient of ``estimator``."""
    function = _ApproxSign if check_estimator(estimator) == "approx_sign" else _ClippedIdentity
    return function.apply(x)


def check_estimator(estimator: str) -> Estimator:
    """Return ``estimator``, if there is one of that name.

    Raises:
        UsageError: there is none.
    """
    for known in ESTIMATORS:
        if estimator == known:
            return known
    raise UsageError(f"estimator {estimator!r} is none of {', '.join(ESTIMATORS)}")
