"""Sign matrices of layers, one per group: what the tree solver reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .layers import BinaryConv2d, BinaryLayer, weight_signs

Signs = npt.NDArray[np.uint8]


def groups_of(layer: BinaryLayer) -> int:
    """Groups of a convolution; 1 for a dense layer."""
    return layer.groups if isinstance(layer, BinaryConv2d) else 1


def sign_matrices(layer: BinaryLayer) -> list[Signs]:
    """Signs that the layer computes with, 1 for +1 (latent zeros included): one uint8 [M / groups, N] per group."""
    with torch.no_grad():
        signs = (weight_signs(layer) > 0).to(torch.uint8).cpu().numpy()
    return list(signs.reshape(groups_of(layer), layer.weight.shape[0] // groups_of(layer), -1))


def like_weight(groups: Sequence[npt.NDArray[Any]], weight: Tensor) -> Tensor:
    """Arrays [M / groups, N], one per group, in the shape, dtype and place of ``weight``."""
    return torch.from_numpy(np.concatenate(groups)).reshape(weight.shape).to(weight)
