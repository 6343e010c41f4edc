"""The binary stages on a module from TVM's PyTorch importer.

pip install torch
python examples/tvm_torch_user.py
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from tvm.relax.frontend.torch import from_exported_program
from tvm_user import HERE, Array, check, compile_and_run


class BinaryNet(nn.Module):
    """Convolution, batch-norm, sign, binary convolution, pooling, classifier; random weights."""

    def __init__(self) -> None:
        """Make the binary weights +-1."""
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.binary = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.head = nn.Linear(128, 10)
        with torch.no_grad():
            self.binary.weight.copy_(torch.where(self.binary.weight >= 0, 1.0, -1.0))

    def forward(self, image: Tensor) -> Tensor:
        """Return [N, 10] scores of [N, 1, 8, 8] images."""
        x = torch.sign(self.norm(self.stem(image)))
        return cast(Tensor, self.head(self.binary(x).mean(dim=(2, 3))))


def main() -> None:
    """Export, import into TVM, compile, run, and compare with PyTorch."""
    torch.manual_seed(0)
    image: Array = np.load(HERE / "digits_test.npz")["image"][:1]
    net = BinaryNet().eval()
    with torch.no_grad():
        expected = net(torch.from_numpy(image)).numpy()
        program = torch.export.export(net, (torch.from_numpy(image),))
        module = from_exported_program(program)
    check(compile_and_run(module, image), expected)


if __name__ == "__main__":
    main()
