"""Inference forms of binary layers: signs and scales as constants, plain operators that every exporter knows."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .estimators import hard_sign
from .layers import BinaryActivation, BinaryConv2d, BinaryLinear, BinaryWeightConv2d, channel_scale, weight_signs


class FrozenActivation(nn.Module):
    """``where(x >= t, 1, -1)``: no ``Sign``, whose value at 0 would be 0."""

    threshold: Tensor

    def __init__(self, activation: BinaryActivation) -> None:
        """Copy the thresholds of ``activation``, or take 0 for all channels."""
        super().__init__()
        learned = activation.threshold
        self.register_buffer("threshold", torch.zeros(1) if learned is None else learned.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return ±1."""
        return torch.where(x >= self.threshold.reshape(-1, *[1] * (x.ndim - 2)), 1.0, -1.0)


class FrozenBinaryLayer(nn.Module):
    """A binary layer with ``weight`` ±1 and ``alpha`` [1, M, …] as buffers; the same floats as the layer it is of."""

    weight: Tensor
    alpha: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: BinaryConv2d | BinaryLinear | BinaryWeightConv2d) -> None:
        """Copy what inference needs; ``layer`` is kept for its geometry."""
        super().__init__()
        dimensions = layer.weight.ndim
        shape = (1, -1, *[1] * (dimensions - 2))
        self._layer = (layer,)  # in a tuple: no submodule, whose latent weights would be exported, too
        signs = hard_sign(layer.weight) if isinstance(layer, BinaryWeightConv2d) else weight_signs(layer)
        self.register_buffer("weight", signs.detach())
        scaled = isinstance(layer, BinaryWeightConv2d) or layer.scale
        self.register_buffer("alpha", channel_scale(layer.weight.detach()).reshape(shape) if scaled else None)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().reshape(shape))
        self.activation: nn.Module = nn.Identity()
        if not isinstance(layer, BinaryWeightConv2d):
            self.activation = FrozenActivation(layer.activation)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        (layer,) = self._layer
        y = self.activation(x)
        if isinstance(layer, BinaryLinear):
            y = functional.linear(y, self.weight)
        else:
            y = functional.conv2d(y, self.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        if self.alpha is not None:
            y = y * self.alpha
        if isinstance(layer, BinaryConv2d) and layer.input_scale:
            y = y * layer.window_means(x)
        elif isinstance(layer, BinaryLinear) and layer.input_scale:
            y = y * x.abs().mean(dim=1, keepdim=True)
        return cast(Tensor, y if self.bias is None else y + self.bias)


def freeze(model: nn.Module) -> nn.Module:
    """Copy ``model`` for inference, each binary layer replaced by its frozen form under the same name."""
    frozen = copy.deepcopy(model).eval()
    if isinstance(frozen, BinaryConv2d | BinaryLinear | BinaryWeightConv2d):
        return FrozenBinaryLayer(frozen).eval()
    for parent in list(frozen.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryConv2d | BinaryLinear | BinaryWeightConv2d):
                setattr(parent, name, FrozenBinaryLayer(child).eval())
            elif isinstance(child, BinaryActivation) and not isinstance(parent, BinaryConv2d | BinaryLinear):
                setattr(parent, name, FrozenActivation(child).eval())
    return frozen
