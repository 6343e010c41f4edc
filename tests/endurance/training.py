"""A small training with a checkpoint: ``python -m tests.endurance.training FILE EPOCHS`` goes on for so many epochs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_compiler.train import BinaryConv2d, Trainer, TrainingOptions


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One batch of noise."""
    generator = torch.Generator().manual_seed(epoch)
    yield torch.randn(8, 8, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)


def main() -> None:
    """Go on where the checkpoint was written, or begin."""
    path, epochs = Path(sys.argv[1]), int(sys.argv[2])
    torch.manual_seed(0)
    layers = [BinaryConv2d(8, 64, 3), nn.BatchNorm2d(64), BinaryConv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 4)]
    trainer = Trainer(nn.Sequential(*layers), batches, TrainingOptions(10**6, 1e-3), checkpoint=path)
    if path.exists():
        trainer.resume()
    last = trainer.epoch + epochs

    def stop(epoch: int, _step: int, _loss: float) -> None:
        if epoch > last:
            sys.exit()

    trainer.run(stop)


if __name__ == "__main__":
    main()
