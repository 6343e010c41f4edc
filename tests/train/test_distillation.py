from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.errors import UsageError
from bnn_compiler.train import BinaryConv2d, Distillation, Trainer, TrainingOptions, shorten


def network(dropout: float = 0.5) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(4), BinaryConv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Dropout(dropout), nn.Flatten(),
        nn.Linear(16 * 25, 3),
    )  # fmt: skip


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(8):
        yield torch.randn(16, 4, 5, 5, generator=generator), torch.zeros(16, dtype=torch.long)


def test_the_teacher_is_the_model_as_it_was_in_inference() -> None:
    model = network()
    distillation = Distillation(model)
    x, _ = next(batches(1))
    before = model.eval()(x).detach()
    shorten(model, 0.1)
    assert not torch.equal(model(x), before)
    inputs, scores = next(iter(distillation.batches(batches)(1)))
    assert torch.equal(inputs, x) and torch.equal(scores, before)
    assert not scores.requires_grad and torch.is_grad_enabled()
    assert len(list(distillation.batches(batches)(2))) == 8


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence(temperature: float) -> None:
    distillation = Distillation(network(), temperature)
    scores, teacher = 3 * torch.randn(5, 7, dtype=torch.float64), 3 * torch.randn(5, 7, dtype=torch.float64)
    p, q = (functional.softmax(some / temperature, dim=1) for some in (teacher, scores))
    expected = temperature**2 * (p * (p.log() - q.log())).sum(dim=1).mean()
    # The same sum in another order, in double precision.
    torch.testing.assert_close(distillation.loss(scores, teacher), expected, rtol=1e-10, atol=1e-12)
    assert float(distillation.loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-12)


def test_training_goes_back_to_the_teacher() -> None:
    model = network(dropout=0.0)
    for x, _ in batches(0):
        model(x)
    distillation = Distillation(model)
    shorten(model, 0.1)

    def distance() -> float:
        model.eval()
        with torch.no_grad():
            losses = [float(distillation.loss(model(x), scores)) for x, scores in distillation.batches(batches)(9)]
        return sum(losses) / len(losses)

    before = distance()
    Trainer(model, distillation.batches(batches), TrainingOptions(6, 5e-3), loss=distillation.loss).run()
    assert distance() < 0.6 * before


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature"):
        Distillation(network(), temperature)
