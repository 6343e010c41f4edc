"""Chains of layers that hand bits to each other, against ONNX Runtime and layer by layer."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from bnn_compiler.errors import VerificationError
from bnn_compiler.kernels import bitsliced_layer
from bnn_compiler.kernels.layer_kernels import PARTS_ATTR, LayerKernels
from bnn_compiler.passes import expose_activation_bits
from bnn_compiler.schedules.isa import Isa

CHANNELS = [70, 65, 24, 130, 9]


def chain(*, output_of: int | None = None, pads: int = 1) -> onnx.ModelProto:
    """Four convolutions of signs with batch-norms; the result of layer ``output_of`` is an output too."""
    rng = np.random.default_rng(7)
    nodes, constants = [], []
    value = "x"
    for i, (inputs, outputs) in enumerate(itertools.pairwise(CHANNELS)):
        weights = rng.choice([-1.0, 1.0], (outputs, inputs, 3, 3)).astype(np.float32)
        # Of both signs, and one channel whose sign never changes.
        gamma = rng.choice([-1.5, -0.5, 0.5, 1.5], outputs).astype(np.float32)
        gamma[0] = 0
        statistics = {
            "gamma": gamma,
            "beta": rng.standard_normal(outputs).astype(np.float32),
            "mean": (10 * rng.standard_normal(outputs)).astype(np.float32),
            "variance": rng.uniform(50, 200, outputs).astype(np.float32),
        }
        constants.append(numpy_helper.from_array(weights, f"w{i}"))
        constants += [numpy_helper.from_array(array, f"{name}{i}") for name, array in statistics.items()]
        border = (i + 1) % 2 * pads
        nodes += [
            helper.make_node("Sign", [value], [f"s{i}"], f"sign{i}"),
            helper.make_node("Conv", [f"s{i}", f"w{i}"], [f"z{i}"], f"conv{i}", pads=[border] * 4),
            helper.make_node("BatchNormalization", [f"z{i}", *(f"{name}{i}" for name in statistics)], [f"y{i}"]),
        ]
        value = f"y{i}"
    names = [value] if output_of is None else [value, f"y{output_of}"]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, CHANNELS[0], 14, 13])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names],
        constants,
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model


def compiled(model: onnx.ModelProto, tmp_path: Path, algorithm: str) -> bnn_compiler.CompiledNetwork:
    path = tmp_path / "chain.onnx"
    onnx.save(model, path)
    return bnn_compiler.compile_model(path, algorithm=algorithm)


def gives_bits(network: bnn_compiler.CompiledNetwork) -> list[bool]:
    return [bool(entry.get("gives_bits")) for entry in network.report["layers"]]


@pytest.mark.parametrize("algorithm", ["popcount", "bitsliced"])
@pytest.mark.parametrize(
    ("output_of", "pads", "expected"),
    [(None, 1, [True, True, True, False]), (1, 0, [True, False, True, False])],
)
def test_chains(output_of: int | None, pads: int, expected: list[bool], algorithm: str, tmp_path: Path) -> None:
    model = chain(output_of=output_of, pads=pads)
    network = compiled(model, tmp_path, algorithm)  # verified layer by layer and end to end
    assert gives_bits(network) == expected
    x = np.random.default_rng(1).standard_normal((2, CHANNELS[0], 14, 13)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = network.run({"x": x})
    for name, array in zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True):
        # The last batch-norm is one multiplication and addition in float32, on equal integers below 2^11.
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
    assert expose_activation_bits.FUNCTION in network.model.functions, "verification sees the bits of main"


def test_a_wrong_threshold_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers' own functions give floats: the kernels that give bits are checked through ``main``."""
    original = bitsliced_layer.bitsliced_kernels

    def wrong(spec, isa: Isa, plan) -> LayerKernels:  # type: ignore[no-untyped-def]
        kernels = original(spec, isa, plan)

        def bits_for(reader):  # type: ignore[no-untyped-def]
            stages = kernels.bits_for(reader)
            if stages is None:
                return None
            tables = int(stages[0].function.attrs[PARTS_ATTR][1])
            bounds = stages[0].constants[tables]  # behind the program's
            bounds[1:3] += 40  # type: ignore[index]
            return stages

        return LayerKernels(kernels.algorithm, kernels.stages, kernels.output, bits_for)

    monkeypatch.setattr("bnn_compiler.kernels.kernel_choice.bitsliced_kernels", wrong)
    with pytest.raises(VerificationError):
        compiled(chain(), tmp_path, "bitsliced")
