"""Train VGG-Small or ResNet-20 with binary weights and activations on CIFAR-10, and write it as ONNX.

    pip install 'bnn-compiler[train]'
    python examples/train_cifar10.py --data cifar-10-batches-bin --network vgg-small --tree-ratio 0.12

Nothing is downloaded. DATA is the folder of CIFAR-10 as it is distributed, in its binary form (data_batch_1.bin to
data_batch_5.bin, test_batch.bin) or its Python form (the same without .bin). A GPU is used if PyTorch finds one.

Errors on the test images to compare with, from XNOR-Net (Rastegari et al., 2016), of a network like VGG-Small
after full training: 10.17 % with binary weights and activations (XNOR-Net), 9.88 % with binary weights alone (BWN).
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from bnn_compiler.errors import BnncError, UsageError
from bnn_compiler.train import (
    BinaryConv2d,
    Trainer,
    TrainingOptions,
    TreeSigns,
    cost_ratios,
    export,
)

TRAIN_FILES = [f"data_batch_{index}" for index in range(1, 6)]
TEST_FILES = ["test_batch"]
PIXELS = 3 * 32 * 32

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class ArraysOnly(pickle.Unpickler):
    """Reads CIFAR-10's pickles: NumPy arrays, lists, strings and numbers. A pickle could call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse all but what an array is made of."""
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer"}
        if (module.split(".", maxsplit=1)[0] == "numpy" and name in allowed) or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise UsageError(f"the pickle wants {module}.{name}: this is no file of CIFAR-10")


def read_batch(folder: Path, name: str) -> tuple[Images, Labels]:
    """One file's images uint8 [n, 3, 32, 32] and labels [n], in whichever form it is there."""
    try:
        if (folder / f"{name}.bin").is_file():
            raw = np.fromfile(folder / f"{name}.bin", np.uint8)
            if raw.size == 0 or raw.size % (1 + PIXELS):
                raise UsageError(f"{folder / name}.bin has {raw.size} bytes: not a whole number of {1 + PIXELS}")
            records = raw.reshape(-1, 1 + PIXELS)
            images, labels = records[:, 1:], records[:, 0].astype(np.int64)
        else:
            with (folder / name).open("rb") as file:
                batch = ArraysOnly(file, encoding="bytes").load()
            images, labels = np.asarray(batch[b"data"], np.uint8), np.asarray(batch[b"labels"], np.int64)
    except FileNotFoundError:
        raise UsageError(f"{folder}: neither {name}.bin nor {name}; give the folder of CIFAR-10") from None
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / name}: not a file of CIFAR-10: {error}") from error
    if images.shape != (labels.size, PIXELS) or labels.min() < 0 or labels.max() > 9:
        raise UsageError(f"{folder / name}: {images.shape} pixels for {labels.size} labels, or labels above 9")
    return images.reshape(-1, 3, 32, 32), labels


def read_split(folder: Path, names: list[str]) -> tuple[Tensor, Tensor]:
    """Images float32 [n, 3, 32, 32], of mean 0 and deviation 1 per colour over the training set, and labels [n]."""
    batches = [read_batch(folder, name) for name in names]
    images = torch.from_numpy(np.concatenate([images for images, _ in batches])).float() / 255
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    deviation = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(3, 1, 1)
    return (images - mean) / deviation, torch.from_numpy(np.concatenate([labels for _, labels in batches]))


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """XNOR-Net's block: batch-norm, sign, convolution (the layer holds the sign), with a learned threshold."""
    conv = BinaryConv2d(inputs, outputs, 3, stride=stride, padding=1, learned_threshold=True, estimator="approx_sign")
    return nn.Sequential(nn.BatchNorm2d(inputs), conv)


class VggSmall(nn.Module):
    """Six convolutions of 128 to 512 channels, the first one float; [N, 3, 32, 32] to scores [N, 10]."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        """Build with fresh random weights."""
        super().__init__()
        pool = nn.MaxPool2d(2)
        self.features = nn.Sequential(
            nn.Conv2d(3, 128, 3, padding=1), block(128, 128), pool, block(128, 256), block(256, 256), pool,
            block(256, 512), block(512, 512), pool,
        )  # fmt: skip
        self.head = nn.Sequential(nn.BatchNorm2d(512), nn.ReLU(), nn.Flatten(), nn.Linear(512 * 16, 10))

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return cast(Tensor, self.head(self.features(x)))


class Residual(nn.Module):
    """A binary convolution beside its own shortcut (Bi-Real Net, Liu et al., 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """With twice as many outputs as inputs the map halves."""
        super().__init__()
        self.widens = outputs > inputs
        self.block = block(inputs, outputs, stride=2 if self.widens else 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolution finds; a widening shortcut is the average of four pixels, twice."""
        shortcut = x
        if self.widens:
            pooled = functional.avg_pool2d(x, 2)
            shortcut = torch.cat([pooled, pooled], dim=1)
        return cast(Tensor, self.block(x)) + shortcut


class ResNet20(nn.Module):
    """A float convolution, 18 binary ones of 16, 32 and 64 channels, a classifier."""

    input_shape = (3, 32, 32)

    def __init__(self) -> None:
        """Build with fresh random weights."""
        super().__init__()
        widths = [16] * 7 + [32] * 6 + [64] * 6
        layers = [Residual(*pair) for pair in itertools.pairwise(widths)]
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), *layers)
        self.head = nn.Sequential(
            nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        return cast(Tensor, self.head(self.features(x)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg-small": VggSmall, "resnet-20": ResNet20}


def batches(images: Tensor, labels: Tensor, size: int, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, each image shifted by up to four pixels and mirrored at random."""
    generator = torch.Generator().manual_seed(seed * 100_000 + epoch)
    for batch in torch.randperm(len(images), generator=generator).split(size):
        padded = functional.pad(images[batch], (4, 4, 4, 4))
        moves = torch.randint(0, 9, (len(batch), 2), generator=generator).tolist()
        mirrored = (torch.rand(len(batch), generator=generator) < 0.5).tolist()
        moved = [image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, moves, strict=True)]
        yield torch.stack([i.flip(2) if m else i for i, m in zip(moved, mirrored, strict=True)]), labels[batch]


def error_rate(model: nn.Module, images: Tensor, labels: Tensor, device: torch.device) -> float:
    """Per cent of the images that are classified wrong."""
    model.eval()
    wrong = 0
    with torch.no_grad():
        for some, right in zip(images.split(250), labels.split(250), strict=True):
            wrong += int((model(some.to(device)).argmax(1).cpu() != right).sum())
    return 100 * wrong / len(labels)


def train(options: argparse.Namespace) -> None:
    """Read, train, report the error and the trees' cost, write the network."""
    torch.manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images, labels = read_split(options.data, TRAIN_FILES)
    test_images, test_labels = read_split(options.data, TEST_FILES)
    model = NETWORKS[options.network]().to(device)
    steps = -(-len(images) // options.batch)
    tree_signs = None
    if options.tree_ratio is not None:
        tree_signs = TreeSigns(model, steps * options.epochs, ratio=options.tree_ratio)

    def on_device(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for some, right in batches(images, labels, options.batch, options.seed, epoch):
            yield some.to(device), right.to(device)

    trainer = Trainer(
        model,
        on_device,
        TrainingOptions(options.epochs, options.learning_rate),
        tree_signs=tree_signs,
        checkpoint=options.checkpoint,
    )
    if options.checkpoint is not None and options.checkpoint.exists():
        trainer.resume()
        print(f"continuing behind epoch {trainer.epoch} of {options.checkpoint}")
    with Progress() as bar:
        task = bar.add_task("training", total=steps * options.epochs, completed=trainer.step)
        trainer.run(
            lambda epoch, step, loss: bar.update(
                task, completed=step, description=f"epoch {epoch}/{options.epochs} loss {loss:.3f}"
            )
        )
    print(f"test error {error_rate(model, test_images, test_labels, device):.2f} %")
    for name, ratio in cost_ratios(model).items():
        print(f"{name}: tree cost {ratio:.3f} of its weights")
    export(model, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")


def main() -> int:
    """Parse the command line, train, turn known errors into one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10, binary or Python form")
    parser.add_argument("--network", choices=list(NETWORKS), default="vgg-small")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--tree-ratio", type=float, metavar="RATIO", help="cost of the channel trees over their weights"
    )
    parser.add_argument("--checkpoint", type=Path, help="written after each epoch, continued from if it is there")
    parser.add_argument("--out", type=Path, default=Path("cifar10.onnx"))
    parser.add_argument("--seed", type=int, default=0)
    try:
        train(parser.parse_args())
    except BnncError as error:
        print(f"train_cifar10: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
