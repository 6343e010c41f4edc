from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch
from torch import Tensor

from bnn_compiler.errors import UsageError
from bnn_compiler.train import (
    BinaryActivation,
    BinaryConv2d,
    BinaryLinear,
    BinaryWeightConv2d,
    Estimator,
    binary_layers,
    clip_latent_weights,
    freeze,
    sign,
)
from bnn_compiler.train.estimators import ESTIMATORS


def test_sign_is_plus_at_zeros_and_minus_at_nan() -> None:
    x = torch.tensor([-2.0, -0.0, 0.0, 1e-45, -1e-45, float("nan"), float("inf")])
    for estimator in ESTIMATORS:
        assert sign(x, estimator).tolist() == [-1, 1, 1, 1, -1, -1, 1]


def gradient_of_sign(values: list[float], estimator: Estimator) -> list[float]:
    x = torch.tensor(values, requires_grad=True)
    sign(x, estimator).sum().backward()
    return list(x.grad.tolist())


def test_estimators() -> None:
    values = [-1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5]
    assert gradient_of_sign(values, "clipped_identity") == [0, 1, 1, 1, 1, 1, 0]
    assert gradient_of_sign(values, "approx_sign") == [0, 0, 1, 2, 1.5, 0, 0]
    with pytest.raises(UsageError, match="'tanh' is none of clipped_identity, approx_sign"):
        sign(torch.zeros(1), "tanh")  # type: ignore[arg-type]


def test_learned_threshold_moves_against_its_input() -> None:
    activation = BinaryActivation(3, learned_threshold=True)
    assert activation.threshold is not None
    with torch.no_grad():
        activation.threshold.copy_(torch.tensor([0.0, 0.5, -0.5]))
    x = torch.tensor([[[0.25]], [[0.25]], [[-0.5]]]).reshape(1, 3, 1, 1).requires_grad_()
    y = activation(x)
    assert y.flatten().tolist() == [1, -1, 1]
    y.sum().backward()
    assert torch.equal(activation.threshold.grad, -x.grad.reshape(3))


def reference_conv(x: Tensor, layer: BinaryConv2d) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """XNOR-Net's formula in NumPy, in double precision, one output at a time."""
    signs = np.where(layer.weight.detach().numpy() >= 0, 1.0, -1.0)
    alpha = np.abs(layer.weight.detach().numpy().astype(np.float64)).mean(axis=(1, 2, 3))
    data = x.numpy().astype(np.float64)
    pad, step = int(layer.padding[0]), int(layer.stride[0])
    bits = np.pad(np.where(data >= 0, 1.0, -1.0), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    means = np.pad(np.abs(data).mean(axis=1), ((0, 0), (pad, pad), (pad, pad)))
    size = layer.kernel_size[0]
    outputs = (data.shape[2] + 2 * pad - size) // step + 1
    result = np.zeros((len(data), len(signs), outputs, outputs))
    for row in range(outputs):
        for column in range(outputs):
            window = np.s_[row * step : row * step + size, column * step : column * step + size]
            z = np.einsum("nchw,mchw->nm", bits[(slice(None), slice(None), *window)], signs)
            k = means[(slice(None), *window)].mean(axis=(1, 2)) if layer.input_scale else np.ones(len(data))
            result[:, :, row, column] = z * alpha * k[:, None]
    return result


@pytest.mark.parametrize("input_scale", [False, True])
@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 1), (1, 2)])
def test_convolution_is_xnor_nets(padding: int, stride: int, input_scale: bool) -> None:
    layer = BinaryConv2d(5, 7, 3, padding=padding, stride=stride, input_scale=input_scale)
    x = torch.randn(2, 5, 6, 6)
    # Integers are exact; α, K and two products round: 4 half-ulps, the sums behind α and K some more.
    np.testing.assert_allclose(layer(x).detach().numpy(), reference_conv(x, layer), rtol=2e-6)


def test_without_scale_a_layer_gives_integers() -> None:
    y = BinaryConv2d(64, 8, 3, scale=False)(torch.randn(1, 64, 5, 5))
    assert torch.equal(y, y.round()) and y.abs().max() > 1
    dense = BinaryLinear(9, 4, scale=False)
    x = torch.randn(3, 9)
    wanted = torch.where(x >= 0, 1.0, -1.0) @ torch.where(dense.weight >= 0, 1.0, -1.0).T
    assert torch.equal(dense(x), wanted)


def test_binary_weights_with_real_activations() -> None:
    layer = BinaryWeightConv2d(3, 4, 3, bias=True)
    x = torch.randn(2, 3, 5, 5)
    alpha = layer.weight.abs().mean(dim=(1, 2, 3), keepdim=True)
    wanted = torch.nn.functional.conv2d(x, alpha * torch.where(layer.weight >= 0, 1.0, -1.0), layer.bias)
    # Sums of 27 products in another order.
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)


def test_groups_with_input_scale_are_refused() -> None:
    with pytest.raises(UsageError, match="set groups=1"):
        BinaryConv2d(4, 4, 3, groups=2, input_scale=True)


LAYERS = [
    BinaryConv2d(6, 4, 3, padding=1, groups=2, bias=True, learned_threshold=True, estimator="approx_sign"),
    BinaryConv2d(6, 4, 3, stride=2, dilation=2, input_scale=True),
    BinaryConv2d(6, 4, (1, 3), scale=False),
    BinaryWeightConv2d(6, 4, 3),
    BinaryLinear(6, 4, bias=True, input_scale=True, learned_threshold=True),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_layers_give_the_same_floats(layer: torch.nn.Module) -> None:
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 6) if isinstance(layer, BinaryLinear) else torch.randn(3, 6, 9, 9)
    assert torch.equal(freeze(layer)(x), layer(x))


def test_freezing_leaves_the_model_alone() -> None:
    model = torch.nn.Sequential(BinaryActivation(2), torch.nn.Sequential(BinaryConv2d(2, 3, 1)))
    frozen = freeze(model)
    assert not list(frozen.parameters()) and frozen(torch.zeros(1, 2, 2, 2)).shape == (1, 3, 2, 2)
    assert isinstance(model[1][0], BinaryConv2d) and model.training


def test_binary_layers_are_found_by_name() -> None:
    inner = torch.nn.Sequential(BinaryConv2d(2, 2, 1))
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), inner, BinaryLinear(2, 2))
    assert list(binary_layers(model)) == ["1.0", "2"]
    with pytest.raises(UsageError, match="Conv2d has no binary layer"):
        binary_layers(torch.nn.Conv2d(1, 1, 1))


def test_latent_weights_are_clipped_and_others_not() -> None:
    model = torch.nn.Sequential(BinaryConv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1), BinaryWeightConv2d(1, 1, 1))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(-3.0)
    clip_latent_weights(model)
    assert [float(layer.weight.detach()) for layer in model] == [-1.0, -3.0, -1.0]
