"""Train a small binary network on scikit-learn's handwritten digits and write it as ONNX.

    pip install 'bnn-compiler[train]' scikit-learn
    python examples/train_digits.py                     # under two minutes on two cores
    python examples/train_digits.py --tree-ratio 0.12   # output channels that differ in fewer weights
    python examples/train_digits.py --shorten 0.18      # the same made of the network once it is trained

Writes ``digits.onnx`` and ``digits_test.npz`` (the held-out images ``image``, float32 [360, 1, 8, 8], and ``label``,
int64 [360]) beside this file. Seeded: the same versions on the same machine give the same network.

The layout is XNOR-Net's (Rastegari et al., 2016): batch-norm, sign, convolution, pooling. The first convolution and
the classifier stay in floating point, as usual; two 3x3 convolutions and a dense layer have weights and activations
in {-1, +1} and hold 98 % of the multiply-accumulates. Gradients pass the sign by the straight-through estimator.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.train import (
    FINE_TUNING,
    BinaryConv2d,
    BinaryLinear,
    Distillation,
    Trainer,
    TrainingOptions,
    TreeSigns,
    cost_ratios,
    export,
    total_ratio,
)

SEED = 7
BATCH = 64
LEARNING_RATE = 5e-3


class DigitsNet(nn.Module):
    """Float [N, 1, 8, 8] images to [N, 10] class scores."""

    input_shape = (1, 8, 8)

    def __init__(self) -> None:
        """Build with fresh random weights."""
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(64), BinaryConv2d(64, 64, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(64), BinaryConv2d(64, 128, 3, padding=1)
        self.norm3, self.dense = nn.BatchNorm1d(512), BinaryLinear(512, 128)
        self.head_norm = nn.BatchNorm1d(128)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores."""
        x = functional.max_pool2d(self.conv1(self.norm1(self.stem(image))), 2)
        x = functional.max_pool2d(self.conv2(self.norm2(x)), 2)
        x = self.dense(self.norm3(x.flatten(1)))
        return cast(Tensor, self.head(functional.relu(self.head_norm(x))))


def batches(images: Tensor, labels: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, every image shifted by up to one pixel each way."""
    generator = torch.Generator().manual_seed(SEED * 1000 + epoch)
    padded = functional.pad(images, (1, 1, 1, 1))
    for batch in torch.randperm(len(images), generator=generator).split(BATCH):
        offsets = torch.randint(0, 3, (len(batch), 2), generator=generator).tolist()
        shifted = [image[:, y : y + 8, x : x + 8] for image, (y, x) in zip(padded[batch], offsets, strict=True)]
        yield torch.stack(shifted), labels[batch]


def train(net: DigitsNet, images: Tensor, labels: Tensor, options: argparse.Namespace) -> None:
    """Train ``net``, continuing from its checkpoint if there is one; then shorten its trees, if asked to."""
    steps = -(-len(images) // BATCH)

    def digits(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return batches(images, labels, epoch)

    def run(trainer: Trainer, epochs: int) -> None:
        with Progress() as bar:
            task = bar.add_task("training", total=steps * epochs, completed=trainer.step)
            trainer.run(lambda _epoch, step, loss: bar.update(task, completed=step, description=f"loss {loss:.3f}"))

    tree_signs = None
    if options.tree_ratio is not None:
        tree_signs = TreeSigns(net, steps * options.epochs, ratio=options.tree_ratio)
    trainer = Trainer(
        net,
        digits,
        TrainingOptions(options.epochs, LEARNING_RATE),
        tree_signs=tree_signs,
        checkpoint=options.checkpoint,
    )
    if options.checkpoint is not None and options.checkpoint.exists():
        trainer.resume()
    run(trainer, options.epochs)

    if options.shorten is not None:
        print(f"before shortening, trees cost {total_ratio(net):.3f} of the weights")
        epochs = max(1, options.epochs // 5)
        distillation = Distillation(net)
        trainer = Trainer(
            net,
            distillation.batches(digits),
            TrainingOptions(epochs, LEARNING_RATE / 8, steps * epochs),
            tree_signs=TreeSigns(net, steps * epochs, ratio=options.shorten, options=FINE_TUNING),
            loss=distillation.loss,
        )
        run(trainer, epochs)


def main() -> None:
    """Train, report held-out accuracy and what the channel trees cost, write both files."""
    parser = argparse.ArgumentParser(description="Train a binary network on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument(
        "--tree-ratio", type=float, metavar="RATIO", help="cost of the channel trees over their weights"
    )
    parser.add_argument(
        "--shorten",
        type=float,
        metavar="RATIO",
        help="bring the trained network's trees to this cost, by a fifth more epochs",
    )
    parser.add_argument("--checkpoint", type=Path, help="written after each epoch, continued from if it is there")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder to write to")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)

    digits = load_digits()
    # Pixels are counts from 0 to 16.
    pixels = (digits.images / 16.0).astype(np.float32)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, digits.target.astype(np.int64), test_size=360, random_state=SEED, stratify=digits.target
    )
    images, labels = torch.from_numpy(train_x), torch.from_numpy(train_y)

    net = DigitsNet()
    train(net, images, labels, arguments)

    net.eval()
    with torch.no_grad():
        correct = int((net(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).sum())
    print(f"held-out accuracy: {correct}/{len(test_y)} = {100 * correct / len(test_y):.1f} %")
    for name, ratio in cost_ratios(net).items():
        print(f"{name}: a tree over its output channels costs {ratio:.3f} of its weights")

    arguments.out.mkdir(parents=True, exist_ok=True)
    export(net, arguments.out / "digits.onnx", input_name="image", output_name="score")
    np.savez_compressed(arguments.out / "digits_test.npz", image=test_x, label=test_y)
    for name in ("digits.onnx", "digits_test.npz"):
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
