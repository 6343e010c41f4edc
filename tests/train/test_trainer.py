from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")

import torch
from torch import Tensor, nn

from bnn_compiler.errors import ArtifactError, UsageError
from bnn_compiler.train import (
    BinaryConv2d,
    ChannelTreeLoss,
    PullOptions,
    Trainer,
    TrainingError,
    TrainingOptions,
    TreeSigns,
    TreeSignsOptions,
    binary_layers,
    total_ratio,
)


class TinyNet(nn.Module):
    """Dropout makes the result depend on torch's own generator, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(8), BinaryConv2d(8, 16, 3, padding=1, learned_threshold=True)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), BinaryConv2d(16, 16, 3, padding=1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv2(self.norm2(self.conv1(self.norm1(self.stem(x))))))


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Which half of the image is brighter."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(6):
        x = torch.randn(16, 1, 6, 6, generator=generator)
        yield x, (x[:, 0, :3].mean(dim=(1, 2)) > x[:, 0, 3:].mean(dim=(1, 2))).long()


OPTIONS = TrainingOptions(epochs=4, learning_rate=5e-3, steps=24)
PULL = PullOptions(warm_up=4, total=18, solve_every=5, schedule="linear")
SIGNS = TreeSignsOptions(start=0.4, until=0.8, settle=0.9, solve_every=4)


def trainer(
    checkpoint: Path | None = None,
    weight: float = 0.1,
    options: TrainingOptions = OPTIONS,
    ratio: float | None = 0.15,
) -> Trainer:
    torch.manual_seed(11)
    model = TinyNet()
    return Trainer(
        model,
        batches,
        options,
        tree_loss=ChannelTreeLoss(model, weight, PULL),
        tree_signs=None if ratio is None else TreeSigns(model, 6 * options.epochs, ratio=ratio, options=SIGNS),
        checkpoint=checkpoint,
    )


def test_batch_norms_are_calibrated_where_weights_are_flipped_at_the_end() -> None:
    """λ starts at 0.1 and cannot follow with one solve: most of the way is flipped behind the last step."""
    torch.manual_seed(11)
    model = TinyNet()
    once = TreeSignsOptions(start=0.5, until=0.6, settle=0.7, solve_every=1000)
    Trainer(model, batches, OPTIONS, tree_signs=TreeSigns(model, 24, ratio=0.05, options=once)).run()
    assert total_ratio(model) <= 0.05
    assert int(model.norm1.num_batches_tracked) == 6, "measured over the last epoch alone"
    unhurried = trainer(ratio=None)
    unhurried.run()
    assert int(unhurried.model.get_submodule("norm1").num_batches_tracked) == 24


class _StopError(Exception):
    pass


def run_until(step: int, running: Trainer) -> None:
    """Interrupt a run as Ctrl-C would, in the middle of an epoch."""

    def interrupt(_epoch: int, at: int, _loss: float) -> None:
        if at == step:
            raise _StopError

    with pytest.raises(_StopError):
        running.run(interrupt)


@pytest.mark.parametrize("step", [8, 15, 22])
def test_interrupted_and_resumed_is_the_same_bit_for_bit(tmp_path: Path, step: int) -> None:
    """In the warm-up's epoch, where the ratio falls, and where it is held."""
    whole = trainer()
    losses = whole.run()
    run_until(step, trainer(tmp_path / "run.pt"))
    resumed = trainer(tmp_path / "run.pt")
    torch.manual_seed(99)  # another process has another state
    resumed.resume()
    assert 0 < resumed.epoch < 4
    assert resumed.run() == losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_training_learns_and_reaches_the_ratio() -> None:
    running = trainer(options=TrainingOptions(epochs=8, learning_rate=1e-2))
    losses = running.run()
    assert losses[-1] < 0.75 * losses[0]
    assert total_ratio(running.model) <= 0.15 < total_ratio(TinyNet())
    # The latent weights' own signs are what was trained.
    assert all(layer.signs_of is None for layer in binary_layers(running.model).values())


def test_a_finished_run_resumes_as_finished(tmp_path: Path) -> None:
    first = trainer(tmp_path / "run.pt")
    first.run()
    again = trainer(tmp_path / "run.pt")
    again.resume()
    again.run()
    x = next(batches(1))[0]
    assert torch.equal(first.model.eval()(x), again.model.eval()(x))
    assert all(layer.signs_of is None for layer in binary_layers(again.model).values())


def test_nan_input_stops_with_step_and_layer_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    running = trainer(path)

    def spoiled(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index, (x, y) in enumerate(batches(epoch)):
            yield (torch.full_like(x, float("nan")) if epoch == 2 and index == 1 else x), y

    running._batches = spoiled
    with pytest.raises(TrainingError, match=r"step 8: .* begins in layer stem; the checkpoint of epoch 1"):
        running.run()
    again = trainer(path)
    again.resume()
    assert again.epoch == 1
    assert all(torch.isfinite(value).all() for value in again.model.state_dict().values())


def test_a_nan_that_a_sign_hides_is_found() -> None:
    """sign(NaN) is -1: the loss stays finite, the gradient does not."""
    running = trainer()
    with torch.no_grad():
        running.model.get_submodule("norm2").weight[3] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1: the gradient of .* begins in layer norm2 \(weight\)"):
        running.run()


def test_a_loss_that_breaks_by_itself_is_named_so() -> None:
    running = trainer()
    running._loss = lambda scores, _: scores.sum() / 0
    with pytest.raises(TrainingError, match=r"step 1: the loss is not finite; it begins in the loss$"):
        running.run()


def test_checkpoints_of_other_runs_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(ArtifactError, match="cannot be read"):
        trainer(path).resume()
    run_until(8, trainer(path))
    with pytest.raises(UsageError, match="written with tree loss"):
        trainer(path, weight=0.2).resume()
    with pytest.raises(UsageError, match="written with tree signs"):
        trainer(path, ratio=0.2).resume()
    with pytest.raises(UsageError, match="written with options"):
        trainer(path, options=TrainingOptions(epochs=5)).resume()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match="not a training checkpoint"):
        trainer(path).resume()
    torch.save({"epoch": 3}, path)
    with pytest.raises(ArtifactError, match="another format"):
        trainer(path).resume()
    with pytest.raises(UsageError, match="no checkpoint"):
        trainer().resume()


def test_the_learning_rate_falls_by_epochs_or_by_steps() -> None:
    by_epochs, by_steps = TrainingOptions(2, 0.1), TrainingOptions(2, 0.1, steps=8)
    first, second = range(1, 5), range(5, 9)
    assert [by_epochs.learning_rate_at(1, step) for step in first] == [0.1] * 4
    assert [by_epochs.learning_rate_at(2, step) for step in second] == pytest.approx([0.05] * 4)
    rates = [by_steps.learning_rate_at(1, step) for step in first] + [by_steps.learning_rate_at(2, s) for s in second]
    assert rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])
    # More steps than were announced are taken at the end of the cosine.
    assert by_steps.learning_rate_at(2, 20) == pytest.approx(0.0)


@pytest.mark.parametrize("steps", [None, 24])
def test_each_step_is_taken_at_its_learning_rate(steps: int | None) -> None:
    running = trainer(options=TrainingOptions(epochs=4, learning_rate=5e-3, steps=steps), ratio=None)
    rates = []
    running.run(lambda _epoch, _step, _loss: rates.append(running._optimiser.param_groups[0]["lr"]))
    assert len(set(rates)) == (4 if steps is None else 24) and sorted(rates, reverse=True) == rates


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="steps is 0"):
        TrainingOptions(epochs=1, steps=0)
    with pytest.raises(UsageError, match="epochs is 0"):
        TrainingOptions(epochs=0)
    with pytest.raises(UsageError, match="learning_rate"):
        TrainingOptions(epochs=1, learning_rate=float("nan"))
    with pytest.raises(UsageError, match="no binary layer"):
        Trainer(nn.Linear(1, 1), batches, TrainingOptions(epochs=1))


def test_an_epoch_without_batches_is_an_error() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="epoch 1 has no batches"):
        Trainer(TinyNet(), lambda _: iter(()), TrainingOptions(epochs=1)).run()
