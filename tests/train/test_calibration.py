from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch
from torch import nn

from bnn_compiler.errors import UsageError
from bnn_compiler.train import BinaryConv2d, calibrate_batch_norms, shorten, total_ratio


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(8), BinaryConv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16, momentum=0.3), nn.ReLU()
    )


def batches(count: int) -> list[torch.Tensor]:
    return list(3 + 2 * torch.randn(count, 32, 8, 6, 6))


def test_statistics_are_those_of_the_batches() -> None:
    model, inputs = network().eval(), batches(5)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    calibrate_batch_norms(model, inputs)
    pixels = torch.stack(inputs).transpose(0, 2).flatten(1)
    # A mean of five means and variances of 1152 values each: single precision is good to 1e-6 of the largest value.
    torch.testing.assert_close(model[0].running_mean, pixels.mean(1), rtol=1e-4, atol=1e-4)
    # The mean over batches of their variances lacks the variance of their means, which is 1/1152 of the whole.
    torch.testing.assert_close(model[0].running_var, pixels.var(1), rtol=5e-3, atol=0)
    with torch.no_grad():
        y = torch.stack([model[1](model[0](x)) for x in inputs])
    # Behind the first norm, whose statistics vary from batch to batch while it is measured: signs near 0 may differ.
    torch.testing.assert_close(model[2].running_mean, y.mean(dim=(0, 1, 3, 4)), rtol=0, atol=0.05 * float(y.std()))
    assert model[2].momentum == 0.3 and not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())


def test_shortening_with_calibration_flips_the_same_weights() -> None:
    model, inputs = network(), batches(3)
    for x in inputs:
        model(x)
    other = network()
    other.load_state_dict(model.state_dict())
    shorten(model, 0.15)
    shorten(other, 0.15, calibration=inputs)
    assert torch.equal(model[1].weight, other[1].weight) and total_ratio(other) <= 0.15
    assert torch.equal(other[0].num_batches_tracked, torch.tensor(3))
    with torch.no_grad():
        spread = other.eval()[:3](inputs[0]).std(dim=(0, 2, 3))
    assert float((spread - 1).abs().max()) < 0.1, "outputs of a calibrated batch-norm have deviation 1"
    assert not torch.equal(model[2].running_mean, other[2].running_mean)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([], "no batches"), ([torch.full((4, 8, 6, 6), float("nan"))], "not finite")],
)
def test_what_cannot_be_measured_leaves_the_model_as_it_was(inputs: list[torch.Tensor], message: str) -> None:
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=message):
        calibrate_batch_norms(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[2].momentum == 0.3 and not model.training


def test_an_error_in_the_model_leaves_it_as_it_was() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        calibrate_batch_norms(model, [*batches(1), torch.zeros(2, 7, 6, 6)])
    assert model[2].momentum == 0.3 and int(model[0].num_batches_tracked) == 0


def test_without_batch_norms_there_is_nothing_to_do() -> None:
    calibrate_batch_norms(BinaryConv2d(8, 8, 3), iter(()))
