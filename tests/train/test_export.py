from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")
pytest.importorskip("onnxscript", reason="PyTorch's exporter needs onnxscript")

import torch

import bnn_compiler
from bnn_compiler.errors import ArtifactError, UsageError
from bnn_compiler.train import BinaryConv2d, BinaryLinear, BinaryWeightConv2d, binary_layers, export
from bnn_compiler.verification.reference import Reference, expose


class SmallNet(torch.nn.Module):
    """A layer of each kind, and what stands between them."""

    input_shape = (3, 12, 12)

    def __init__(self) -> None:
        super().__init__()
        self.stem = BinaryWeightConv2d(3, 16, 3, padding=1, bias=True)
        self.norm1 = torch.nn.BatchNorm2d(16)
        self.conv1 = BinaryConv2d(16, 24, 3, padding=1)
        self.norm2 = torch.nn.BatchNorm2d(24)
        self.conv2 = BinaryConv2d(24, 16, 3, stride=2, learned_threshold=True, bias=True)
        self.norm3 = torch.nn.BatchNorm2d(16)
        self.conv3 = BinaryConv2d(16, 16, 3, padding=1, input_scale=True)
        self.norm4 = torch.nn.BatchNorm1d(16)
        self.dense = BinaryLinear(16, 12, learned_threshold=True)
        self.head = torch.nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.max_pool2d(self.conv1(self.norm1(self.stem(x))), 2)
        x = self.conv3(self.norm3(self.conv2(self.norm2(x))))
        return cast(torch.Tensor, self.head(self.dense(self.norm4(x.amax(dim=(2, 3))))))


def trained_net() -> SmallNet:
    """A net whose batch-norms and thresholds are anything but what they start as."""
    torch.manual_seed(3)
    net = SmallNet()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "norm" in name or "threshold" in name:
                parameter.copy_(torch.randn_like(parameter))
        for _ in range(3):
            net(torch.randn(8, 3, 12, 12))
    net.eval()
    return net


def test_every_layer_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    """ONNX Runtime's input of each binary layer, given to PyTorch's layer, gives ONNX Runtime's output."""
    net = trained_net()
    model = export(net, tmp_path / "net.onnx")
    produced = {name: node for node in model.graph.node for name in node.output}
    layers = binary_layers(net)
    tensors: dict[str, tuple[str, str]] = {}
    for name in layers:
        (compare,) = [node for node in model.graph.node if node.name == f"{name}.activation/GreaterOrEqual"]
        last = [node for node in model.graph.node if node.name.split("/")[0] == name][-1]
        tensors[name] = (compare.input[0], last.output[0])
    assert all(out in produced for _, out in tensors.values())
    reference = Reference(expose(model, sorted({name for pair in tensors.values() for name in pair})), optimise=False)
    x = np.random.default_rng(0).standard_normal((5, 3, 12, 12)).astype(np.float32)
    values = reference.run({"input": x})
    for name, (source, target) in tensors.items():
        ours = layers[name](torch.from_numpy(values[source])).detach().numpy()
        if name == "conv3":
            # K sums 16 magnitudes and 9 products in whatever order, all positive: 25 half-ulps at most.
            np.testing.assert_allclose(ours, values[target], rtol=25 * 2.0**-24)
        else:
            np.testing.assert_array_equal(ours, values[target])
        assert len(np.unique(values[target])) > 10
    # Float sums of another order in the head alone: no sign lies so near 0 here that it could flip.
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), values["output"], rtol=1e-4, atol=1e-5)


def test_every_binary_layer_is_recognised_and_compiles(tmp_path: Path) -> None:
    net = trained_net()
    export(net, tmp_path / "net.onnx")
    report = bnn_compiler.inspect_model(tmp_path / "net.onnx")
    binary = [layer["name"].split("/")[0] for layer in report["layers"] if layer["status"] == "binary"]
    assert binary == list(binary_layers(net))
    (stem,) = [layer for layer in report["layers"] if layer["name"] == "stem/Conv"]
    assert stem["status"] == "binary_weight" and stem["reason"]
    compiled = bnn_compiler.compile_model(tmp_path / "net.onnx", input_shapes={"input": (1, 3, 12, 12)})
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
    wanted = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(compiled.run({"input": x})["output"], wanted, rtol=1e-4, atol=1e-5)


def test_the_file_is_small_and_names_no_machine(tmp_path: Path) -> None:
    export(trained_net(), tmp_path / "net.onnx", torch.zeros(1, 3, 12, 12), input_name="image", dynamic_batch=False)
    model = onnx.load(tmp_path / "net.onnx")
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 12, 12]
    assert model.graph.input[0].name == "image"
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
    assert sum(init.data_type == onnx.TensorProto.INT8 for init in model.graph.initializer) == 5
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_wrong_calls_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no binary layer"):
        export(torch.nn.Conv2d(1, 1, 1), tmp_path / "x.onnx", torch.zeros(1, 1, 2, 2))
    with pytest.raises(UsageError, match="pass an example"):
        export(BinaryConv2d(1, 1, 1), tmp_path / "x.onnx")
    with pytest.raises(ArtifactError, match="cannot be written"):
        export(trained_net(), tmp_path / "missing" / "x.onnx")
    assert not list(tmp_path.iterdir())
