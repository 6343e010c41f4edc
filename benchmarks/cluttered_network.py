"""The network of the experiment on cluttered digits: three binary convolutions at 14x14 pixels.

At the default width of 64 they have 64 and 128 output channels and 258,048 weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from cluttered_digits import SIZE, Split
from torch import Tensor, nn

from bnn_compiler.train import BinaryConv2d

BATCH = 32


class ClutteredNet(nn.Module):
    """Float [N, 1, 28, 28] to scores [N, 10]; stem and classifier are float, as usual."""

    input_shape = (1, SIZE, SIZE)

    def __init__(self, width: int = 64) -> None:
        """Fresh weights from torch's generator; ``width``: channels of the stem and the first binary layer."""
        super().__init__()
        wide = 2 * width
        self.stem = nn.Conv2d(1, width, 5, stride=2, padding=2)
        self.norm1, self.conv1 = nn.BatchNorm2d(width), BinaryConv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), BinaryConv2d(width, wide, 3, padding=1)
        self.norm3, self.conv3 = nn.BatchNorm2d(wide), BinaryConv2d(wide, wide, 3, padding=1)
        self.norm4 = nn.BatchNorm2d(wide)
        self.head = nn.Linear(wide * 9, 10)
        # Convolutions of this memory format take half the time on CPUs.
        self.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores."""
        x = self.conv1(self.norm1(self.stem(image)))
        x = self.conv2(self.norm2(x))
        x = self.conv3(self.norm3(x))
        x = nn.functional.avg_pool2d(torch.relu(self.norm4(x)), 4)
        return cast(Tensor, self.head(x.flatten(1)))


class Epochs:
    """Shuffled batches of a part of a split, drawn from the seed and the epoch's number."""

    def __init__(self, split: Split, seed: int, images: int) -> None:
        """``images``: of the split that are seen in an epoch."""
        self.images, self.labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        self.seed, self.count = seed, images

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-self.count // BATCH)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch."""
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(self.seed * 10_000 + epoch))
        for batch in order[: self.count].split(BATCH):
            yield self.images[batch].contiguous(memory_format=torch.channels_last), self.labels[batch]


def accuracy(model: nn.Module, split: Split) -> float:
    """Per cent of a split's images that are classified right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(split.labels), 250):
            images = torch.from_numpy(split.images[start : start + 250])
            right += int((model(images).argmax(1).numpy() == split.labels[start : start + 250]).sum())
    return 100 * right / len(split.labels)
