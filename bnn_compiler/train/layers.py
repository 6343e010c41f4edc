"""Binary layers: latent float weights, used as their signs.

XNOR-Net (Rastegari et al., ECCV 2016, sections 3.1 and 3.2) gives a binary weight the scale of its output channel,
α = mean |w|, so that the layer computes

    y = α · conv(sign(x − t), sign(w)) · K + bias

with t = 0 or a learned threshold per input channel (ReActNet's RSign: Liu et al., ECCV 2020) and K = 1 or
the mean of |x| under the kernel's window. The binary convolution comes first and gives integers, exactly representable
in float32; α and K multiply its result. So PyTorch, ONNX Runtime and the compiled kernels agree bit for bit as far as
α·z, in whatever order they sum.

Zeros that the convolution pads with stay zeros, as in ONNX. The order of a block is XNOR-Net's: batch-norm, sign,
convolution; each layer contains its sign, so the block is ``Sequential(BatchNorm2d(c), BinaryConv2d(c, …))``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.errors import UsageError

from .estimators import Estimator, check_estimator, sign

Size: TypeAlias = int | tuple[int, int]
#: Signs ±1 of latent weights, in their shape and with a gradient to them, where they are not simply their signs.
SignsOf: TypeAlias = Callable[[Tensor], Tensor]


class BinaryActivation(nn.Module):
    """Sign of a float tensor [N, C, …], with a learned threshold per channel if asked for.

    ``threshold`` is a parameter [C] or None. Approximating the derivative by that of x − t, the threshold learns from
    the same estimator as the input does.
    """

    threshold: nn.Parameter | None

    def __init__(
        self, channels: int, *, estimator: Estimator = "clipped_identity", learned_threshold: bool = False
    ) -> None:
        """``channels``: C, the size of axis 1."""
        super().__init__()
        self.estimator: Estimator = check_estimator(estimator)
        self.threshold = nn.Parameter(torch.zeros(channels)) if learned_threshold else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ±1 in the shape and dtype of ``x``."""
        if self.threshold is not None:
            # x - t >= 0 is x >= t for all finite floats: gradual underflow keeps a difference from vanishing.
            x = x - self.threshold.reshape(-1, *[1] * (x.ndim - 2))
        return sign(x, self.estimator)


class BinaryConv2d(nn.Conv2d):
    """Convolution of signs: activations and weights ±1 (XNOR-Net).

    ``weight`` float [M, C / groups, kh, kw] are latent weights. ``scale=False`` leaves α out. ``input_scale=True``
    multiplies each pixel by K, the box-filtered mean of |x| over the channels (XNOR-Net, section 3.2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        scale: bool = True,
        input_scale: bool = False,
        estimator: Estimator = "clipped_identity",
        learned_threshold: bool = False,
    ) -> None:
        """Initialise latent weights as ``nn.Conv2d`` does."""
        if input_scale and groups > 1:
            raise UsageError(f"input_scale with {groups} groups: K is one mean over all channels; set groups=1")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation=dilation, groups=groups, bias=bias
        )
        self.activation = BinaryActivation(in_channels, estimator=estimator, learned_threshold=learned_threshold)
        self.scale, self.input_scale = scale, input_scale
        self.signs_of: SignsOf | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] to float [N, M, H', W']."""
        y = self.convolve(self.activation(x), weight_signs(self))
        if self.scale:
            y = y * channel_scale(self.weight).reshape(1, -1, 1, 1)
        if self.input_scale:
            y = y * self.window_means(x)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """Convolve with this layer's geometry."""
        return functional.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def window_means(self, x: Tensor) -> Tensor:
        """K of XNOR-Net: mean of |x| over channels and window, zeros of the padding included; [N, 1, H', W']."""
        height, width = self.kernel_size
        box = x.new_full((1, 1, height, width), 1 / (height * width))
        means = x.abs().mean(dim=1, keepdim=True)
        return functional.conv2d(means, box, None, self.stride, self.padding, self.dilation)


class BinaryLinear(nn.Linear):
    """Matrix product of signs, ``weight`` float [M, N] latent; options as of ``BinaryConv2d``, K the mean of |x|."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        scale: bool = True,
        input_scale: bool = False,
        estimator: Estimator = "clipped_identity",
        learned_threshold: bool = False,
    ) -> None:
        """Initialise latent weights as ``nn.Linear`` does."""
        super().__init__(in_features, out_features, bias=bias)
        self.activation = BinaryActivation(in_features, estimator=estimator, learned_threshold=learned_threshold)
        self.scale, self.input_scale = scale, input_scale
        self.signs_of: SignsOf | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, N] to float [B, M]."""
        y = functional.linear(self.activation(x), weight_signs(self))
        if self.scale:
            y = y * channel_scale(self.weight)
        if self.input_scale:
            y = y * x.abs().mean(dim=1, keepdim=True)
        return y if self.bias is None else y + self.bias


class BinaryWeightConv2d(nn.Conv2d):
    """Convolution of real activations with ±α: the Binary-Weight-Network of XNOR-Net's section 3.1.

    The compiler reports such a layer as ``binary_weight`` and computes it in floating point.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Float [N, C, H, W] to float [N, M, H', W']."""
        y = functional.conv2d(x, sign(self.weight), None, self.stride, self.padding, self.dilation, self.groups)
        y = y * channel_scale(self.weight).reshape(1, -1, 1, 1)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


BinaryLayer: TypeAlias = BinaryConv2d | BinaryLinear


def weight_signs(layer: BinaryLayer) -> Tensor:
    """The ±1 that ``layer`` computes with, in the shape of its weight, with a gradient to it."""
    return sign(layer.weight) if layer.signs_of is None else layer.signs_of(layer.weight)


def channel_scale(weight: Tensor) -> Tensor:
    """α = mean |w| per output channel: the best scale of a sign in the least squares (XNOR-Net, section 3.1); [M]."""
    return cast(Tensor, weight.abs().mean(dim=tuple(range(1, weight.ndim))))


def binary_layers(model: nn.Module) -> dict[str, BinaryLayer]:
    """The layers of ``model`` that compile to binary kernels, by module name, in the model's order.

    Raises:
        UsageError: there is none.
    """
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, BinaryConv2d | BinaryLinear)}
    if not found:
        raise UsageError(f"{type(model).__name__} has no binary layer: use BinaryConv2d or BinaryLinear")
    return found


def clip_latent_weights(model: nn.Module) -> None:
    """Clip latent weights to [-1, 1], where the estimator still moves them; for after each step of the optimiser."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BinaryConv2d | BinaryLinear | BinaryWeightConv2d):
                layer.weight.clamp_(-1.0, 1.0)
