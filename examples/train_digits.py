"""Train a small binary network on scikit-learn's handwritten digits and write it as ONNX.

    pip install torch==2.13.0 scikit-learn onnx onnxscript
    python examples/train_digits.py            # under two minutes on two cores

Writes ``digits.onnx`` and ``digits_test.npz`` (the held-out images ``image``, float32 [360, 1, 8, 8], and ``label``,
int64 [360]) beside this file. Seeded: the same versions on the same machine give the same network.

The layout is XNOR-Net's (Rastegari et al., 2016): batch-norm, sign, convolution, pooling. The first convolution and
the classifier stay in floating point, as usual; two 3x3 convolutions and a dense layer have weights and activations
in {-1, +1} and hold 98 % of the multiply-accumulates. Gradients pass the sign by the straight-through estimator.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 7
BATCH = 64


def binarise(x: Tensor) -> Tensor:
    """Sign of ``x``; the gradient is that of a clip to [-1, 1] (straight-through estimator)."""
    clipped = x.clamp(-1.0, 1.0)
    # Addition of a detached difference: the value of sign, the gradient of clip.
    return clipped + (torch.sign(x) - clipped).detach()


class BinaryBlock(nn.Module):
    """Batch-norm, sign, binary convolution or dense layer: latent float weights, used as their signs."""

    def __init__(self, features: int, layer: nn.Conv2d | nn.Linear) -> None:
        """``features``: channels of the input, normalised per channel before the sign."""
        super().__init__()
        convolution = isinstance(layer, nn.Conv2d)
        self.normalise = nn.BatchNorm2d(features) if convolution else nn.BatchNorm1d(features)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output: integers, as floats."""
        x = self.normalise(x)
        if not self.training:
            # What is exported: plain Sign and weights that freeze() has made +-1.
            return cast(Tensor, self.layer(torch.sign(x)))
        weight = binarise(self.layer.weight)
        if isinstance(self.layer, nn.Conv2d):
            return functional.conv2d(binarise(x), weight, padding=self.layer.padding)
        return functional.linear(binarise(x), weight)


class DigitsNet(nn.Module):
    """Float [N, 1, 8, 8] images to [N, 10] class scores."""

    def __init__(self) -> None:
        """Build with fresh random weights."""
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.conv1 = BinaryBlock(64, nn.Conv2d(64, 64, 3, padding=1, bias=False))
        self.conv2 = BinaryBlock(64, nn.Conv2d(64, 128, 3, padding=1, bias=False))
        self.dense = BinaryBlock(512, nn.Linear(512, 128, bias=False))
        self.head_norm = nn.BatchNorm1d(128)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return class scores."""
        x = functional.max_pool2d(self.conv1(self.stem(image)), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        x = self.dense(x.flatten(1))
        # The ReLU also keeps the exporter from folding this batch-norm into the dense layer, whose weights stay +-1.
        return cast(Tensor, self.head(self.head_norm(functional.relu(x))))

    def blocks(self) -> list[BinaryBlock]:
        """Return the binary blocks, input to output."""
        return [self.conv1, self.conv2, self.dense]

    def clip_latent_weights(self) -> None:
        """Keep latent weights in [-1, 1], where the straight-through estimator still moves them."""
        with torch.no_grad():
            for block in self.blocks():
                block.layer.weight.clamp_(-1.0, 1.0)

    def freeze(self) -> None:
        """Switch to inference and replace latent weights by their signs; a latent zero becomes +1."""
        self.eval()
        with torch.no_grad():
            for block in self.blocks():
                weight = block.layer.weight
                weight.copy_(torch.where(weight >= 0, torch.ones_like(weight), -torch.ones_like(weight)))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to one pixel each way (augmentation), filling with background."""
    padded = functional.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator)
    rows = [padded[i, :, y : y + 8, x : x + 8] for i, (y, x) in enumerate(offsets.tolist())]
    return torch.stack(rows)


def train(net: DigitsNet, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train in place with Adam and a cosine schedule, printing progress."""
    generator = torch.Generator().manual_seed(SEED)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    start = time.perf_counter()
    for epoch in range(1, epochs + 1):
        net.train()
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = functional.cross_entropy(net(shifted(images[batch], generator)), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            net.clip_latent_weights()
            total += float(loss.detach()) * len(batch)
        schedule.step()
        if epoch == 1 or epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch:3d}/{epochs}  loss {total / len(images):.4f}  {time.perf_counter() - start:.0f} s")


def export(net: DigitsNet, path: Path) -> None:
    """Write ``net`` with a symbolic batch dimension; binary weights become int8 behind a Cast: 1/4 of the size."""
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["score"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = onnx.load_from_string(program.model_proto.SerializeToString())
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2 and np.isin(values, (-1.0, 1.0)).all():
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.int8), f"{name}_int8"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"cast_{name}", to=TensorProto.FLOAT))
    if len(casts) != len(net.blocks()):
        raise RuntimeError(f"expected {len(net.blocks())} binary weights in the exported graph, found {len(casts)}")
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    # The exporter records source locations of the machine it ran on: not part of the network.
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    graph.name = "digits"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def main() -> None:
    """Train, report held-out accuracy, write both files."""
    parser = argparse.ArgumentParser(description="Train a binary network on scikit-learn's digits.")
    parser.add_argument("--epochs", type=int, default=80)
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
    net = DigitsNet()
    train(net, torch.from_numpy(train_x), torch.from_numpy(train_y), arguments.epochs)
    net.freeze()
    with torch.no_grad():
        correct = int((net(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).sum())
    print(f"held-out accuracy: {correct}/{len(test_y)} = {100 * correct / len(test_y):.1f} %")

    arguments.out.mkdir(parents=True, exist_ok=True)
    export(net, arguments.out / "digits.onnx")
    np.savez_compressed(arguments.out / "digits_test.npz", image=test_x, label=test_y)
    for name in ("digits.onnx", "digits_test.npz"):
        print(f"{arguments.out / name}: {(arguments.out / name).stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
