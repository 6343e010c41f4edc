from __future__ import annotations

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


OPTIONS = TrainingOptions(epochs=4, learning_rate=5e-3, hold_from=3, hold_ratio=0.2, hold_until=4, pull_held=True)
PULL = PullOptions(warm_up=4, total=18, solve_every=5, schedule="linear")


def trainer(checkpoint: Path | None = None, weight: float = 0.1, options: TrainingOptions = OPTIONS) -> Trainer:
    torch.manual_seed(11)
    model = TinyNet()
    return Trainer(model, batches, options, tree_loss=ChannelTreeLoss(model, weight, PULL), checkpoint=checkpoint)


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
    """In the warm-up's epoch, between two solves of the tree, and where trees are held."""
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


def test_training_learns_and_holds_the_ratio() -> None:
    running = trainer(options=TrainingOptions(epochs=8, learning_rate=1e-2, hold_from=6, hold_ratio=0.15))
    losses = running.run()
    assert losses[-1] < 0.75 * losses[0]
    # A tree found anew may cost more than the one that was held, and roots are free to differ: by little.
    assert total_ratio(running.model) < 0.17


def test_gradual_shortening_goes_by_equal_factors() -> None:
    ratios = []
    running = trainer(options=TrainingOptions(epochs=5, hold_from=2, hold_ratio=0.1, hold_until=4))
    shape = running._tree
    while running.epoch < 5:
        before = total_ratio(running.model, shape)
        running._train_epoch(running.epoch + 1, lambda _epoch, _step, _loss: None)
        running.epoch += 1
        ratios.append((before, total_ratio(running.model, shape)))
    # Shortened at the start of epochs 2 to 4; while held, roots alone may cost more than they did.
    start = ratios[1][0]
    assert start > 0.25
    for index, part in ((1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 1.0)):
        assert ratios[index][1] < 1.1 * start ** (1 - part) * 0.1**part


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


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="epochs is 0"):
        TrainingOptions(epochs=0)
    with pytest.raises(UsageError, match="learning_rate"):
        TrainingOptions(epochs=1, learning_rate=float("nan"))
    with pytest.raises(UsageError, match="hold_from is 3"):
        TrainingOptions(epochs=2, hold_from=3)
    with pytest.raises(UsageError, match="hold_ratio needs hold_from"):
        TrainingOptions(epochs=2, hold_ratio=0.1)
    with pytest.raises(UsageError, match="hold_until needs hold_from and hold_ratio"):
        TrainingOptions(epochs=2, hold_from=1, hold_until=2)
    with pytest.raises(UsageError, match="hold_until is 1: it must be an epoch, 2 to 3"):
        TrainingOptions(epochs=3, hold_from=2, hold_ratio=0.1, hold_until=1)
    with pytest.raises(UsageError, match="no binary layer"):
        Trainer(nn.Linear(1, 1), batches, TrainingOptions(epochs=1))


def test_an_epoch_without_batches_is_an_error() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="epoch 1 has no batches"):
        Trainer(TinyNet(), lambda _: iter(()), TrainingOptions(epochs=1)).run()
