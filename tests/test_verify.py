"""Verification can fail: here the artifact is a network of its own in ONNX Runtime, with one thing wrong at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bnn_compiler.errors import ModelError, VerificationError
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.inner_tensors import FlipCheck
from bnn_compiler.verification.reference import Array, Reference, expose, extract, sample_feeds, take_zero_as_plus_one
from bnn_compiler.verification.verify import VerificationResult, verify_model

SHAPE = (1, 8, 6, 6)
CHANNELS = 8


@dataclass(frozen=True)
class Network:
    """What the front end hands to verification."""

    onnx_model: ModelProto
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", SHAPE, "float32"),)


@dataclass(frozen=True)
class OnnxArtifact:
    """An artifact that computes with ONNX Runtime, from a model that may differ from the reference's."""

    model: ModelProto
    layers: tuple[BinaryLayer, ...]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return Reference(self.model).run(feeds)

    def run_function(self, name: str, value: Array) -> Array:
        layer = next(layer for layer in self.layers if layer.function == name)
        assert layer.input_tensor is not None and layer.output_tensor is not None
        part = extract(self.model, layer.input_tensor, layer.output_tensor, value.shape)
        return Reference(part).run({layer.input_tensor: value})[layer.output_tensor]

    def activation_bits(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {}


def make_model(*, scale: float = 1.0, float_tail: bool = False) -> ModelProto:
    """X + shift -> Sign -> Conv -> + threshold -> Sign -> Conv (-> Mul 0.1 -> Sigmoid)."""
    generator = np.random.default_rng(3)
    shape = (CHANNELS, CHANNELS, 3, 3)
    initializers = {
        "shift": np.array([[[0.25]]], np.float32),
        "w0": generator.choice([-1.0, 1.0], shape).astype(np.float32),
        "threshold": (2 * generator.integers(-4, 4, (1, CHANNELS, 1, 1)) + 1).astype(np.float32),
        "w1": (generator.choice([-1.0, 1.0], shape) * scale).astype(np.float32),
    }
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Add", ["x", "shift"], ["a0"], name="shift_input"),
        helper.make_node("Sign", ["a0"], ["s0"], name="sign0"),
        helper.make_node("Conv", ["s0", "w0"], ["y0"], name="conv0", **conv),
        helper.make_node("Add", ["y0", "threshold"], ["a1"], name="add_threshold"),
        helper.make_node("Sign", ["a1"], ["s1"], name="sign1"),
        helper.make_node("Conv", ["s1", "w1"], ["y1"], name="conv1", **conv),
    ]
    output = "y1"
    if float_tail:
        initializers["tenth"] = np.array(0.01, np.float32)
        nodes += [
            helper.make_node("Mul", ["y1", "tenth"], ["t"], name="tail_mul"),
            helper.make_node("Sigmoid", ["t"], ["out"], name="tail"),
        ]
        output = "out"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, SHAPE)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_layers(*, scale: float = 1.0) -> tuple[BinaryLayer, ...]:
    first = BinaryLayer(
        name="conv0", function="layer_0", input_tensor="a0", output_tensor="y0", scale=np.ones(CHANNELS, np.float32),
        bias=None, macs=0, fan_in=CHANNELS * 9, input_shape=SHAPE, channel_axis=1, exact=True,
    )  # fmt: skip
    second = replace(
        first, name="conv1", function="layer_1", input_tensor="a1", output_tensor="y1",
        scale=np.full(CHANNELS, scale, np.float32), exact=scale == 1.0,
    )  # fmt: skip
    return first, second


def verify(artifact_model: ModelProto, model: ModelProto, layers: tuple[BinaryLayer, ...]) -> VerificationResult:
    return verify_model(OnnxArtifact(artifact_model, layers), Network(model), layers)


def with_initializer(model: ModelProto, name: str, change: tuple[int, ...], value: float) -> ModelProto:
    changed = ModelProto()
    changed.CopyFrom(model)
    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[change] += np.float32(value)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    return changed


def flipped_weight(model: ModelProto, name: str) -> ModelProto:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    weight = numpy_helper.to_array(tensor)[2, 3, 1, 1]
    return with_initializer(model, name, (2, 3, 1, 1), -2 * float(weight))


def test_an_equal_integer_network_is_verified_exactly() -> None:
    model, layers = make_model(), make_layers()
    result = verify(model, model, layers)
    assert result.passed and result.integer_only and result.inputs == 7
    assert [(layer.name, layer.mismatches) for layer in result.layers] == [("conv0", 0), ("conv1", 0)]
    assert result.outputs[0].tolerance == 0 and result.reference_sign_flips == 0
    report = result.to_report()
    assert report["passed"] and len(report["layers"]) == 2 and report["outputs"][0]["name"] == "y1"


@pytest.mark.parametrize(("name", "layer"), [("w0", "conv0"), ("w1", "conv1")])
@pytest.mark.parametrize("scale", [1.0, 0.0371])
def test_one_flipped_weight_names_the_layer(name: str, layer: str, scale: float) -> None:
    model, layers = make_model(scale=scale), make_layers(scale=scale)
    result = verify(flipped_weight(model, name), model, layers)
    assert not result.passed
    with pytest.raises(VerificationError, match=f"layer '{layer}' differs from ONNX Runtime in"):
        result.raise_for_failure()
    # Fed ONNX Runtime's own input, the other layer is right: the first wrong layer is the culprit.
    assert [check.name for check in result.layers if not check.passed] == [layer]


def test_one_wrong_threshold_is_found_end_to_end() -> None:
    """The threshold lies between two layers: each alone is right, the network is not."""
    model, layers = make_model(), make_layers()
    result = verify(with_initializer(model, "threshold", (0, 3, 0, 0), 2.0), model, layers)
    assert all(layer.passed for layer in result.layers)
    assert result.failure is not None and "output 'y1' differs" in result.failure


def test_one_wrong_threshold_is_found_behind_a_float_tail() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    result = verify(with_initializer(model, "threshold", (0, 3, 0, 0), 2.0), model, layers)
    assert not result.integer_only
    assert result.failure is not None and "output 'out' differs" in result.failure


def test_one_wrong_pad_names_the_layer() -> None:
    model, layers = make_model(), make_layers()
    changed = ModelProto()
    changed.CopyFrom(model)
    nodes = list(changed.graph.node)
    conv = next(node for node in nodes if node.name == "conv1")
    next(attribute for attribute in conv.attribute if attribute.name == "pads").ints[:] = [0, 0, 0, 0]
    conv.input[0] = "padded"
    pads = numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pad_widths")
    value = numpy_helper.from_array(np.array(-1.0, np.float32), "pad_value")
    changed.graph.initializer.extend([pads, value])
    pad = helper.make_node("Pad", ["s1", "pad_widths", "pad_value"], ["padded"], name="pad")
    del changed.graph.node[:]
    changed.graph.node.extend([*nodes[:-1], pad, conv])
    result = verify(changed, model, layers)
    assert [check.name for check in result.layers if not check.passed] == ["conv1"]


def test_rounding_of_a_float_tail_is_tolerated_and_nothing_more() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    assert verify(with_initializer(model, "tenth", (), 1e-8), model, layers).passed
    assert not verify(with_initializer(model, "tenth", (), 1e-4), model, layers).passed


@dataclass(frozen=True)
class ShowsBits(OnnxArtifact):
    """Also shows its activations: one byte each, 1 for +1; ``wrong`` values of ``s1`` differ from what layers take."""

    wrong: int = 0
    on_input: Array | None = None

    def activation_bits(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = Reference(expose(self.model, ["s0", "s1"]), optimise=False).run(feeds)
        bits = {f"layer_{index}": (values[f"s{index}"] > 0).astype(np.uint8) for index in (0, 1)}
        if self.on_input is None or np.array_equal(feeds["x"], self.on_input):
            bits["layer_1"].reshape(-1)[: self.wrong] ^= 1
        return bits

    def run_function(self, name: str, value: Array) -> Array:
        return (value > 0).astype(np.uint8) if name.endswith("_bits") else super().run_function(name, value)


@dataclass(frozen=True)
class OffOnOneInput(ShowsBits):
    """On one input a value next to the threshold is on its other side; ``shows`` says whether its bit is, too."""

    shows: bool = True

    def _moved(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["x"].copy()
        if self.on_input is not None and np.array_equal(x, self.on_input):
            x[PIXEL] = BELOW
        return {"x": x}

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return super().run(self._moved(feeds))

    def activation_bits(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return super().activation_bits(self._moved(feeds) if self.shows else feeds)


PIXEL, BELOW, ABOVE = (0, 0, 3, 3), np.float32(-0.250001), np.float32(-0.249999)


def test_layers_without_tensor_names_are_named() -> None:
    model, (first, second) = make_model(), make_layers()
    layers = (replace(first, input_tensor=None), second)
    result = verify(model, model, layers)
    assert result.passed and [layer.name for layer in result.layers] == ["conv1"]
    assert result.to_report()["layers_not_compared"] == ["conv0"]


def test_an_input_beyond_tolerance_needs_a_flip() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    feeds = [sample_feeds(Network(model).inputs, 0, index) for index in range(4)]
    feeds[1]["x"][PIXEL] = ABOVE

    def outcome(*, shows: bool) -> VerificationResult:
        artifact = OffOnOneInput(model, layers, on_input=feeds[1]["x"], shows=shows)
        return verify_model(artifact, Network(model), layers, feeds=feeds)

    flipped, unexplained = outcome(shows=True), outcome(shows=False)
    assert flipped.passed and flipped.outputs[0].beyond_tolerance == 1
    assert flipped.flips[1][0] == FlipCheck("conv0", 1, 288, 1)
    assert flipped.own is not None and not flipped.own.agrees, "it passes, and is not said to agree on every input"
    assert flipped.to_report()["outputs"][0]["inputs_beyond_tolerance"] == 1
    assert unexplained.sign_flips == 0
    assert unexplained.failure is not None and "output 'out' differs" in unexplained.failure


def test_more_flips_than_rounding_explains() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    results = [verify_model(ShowsBits(model, layers, wrong), Network(model), layers) for wrong in (0, 1)]
    assert [result.sign_flips for result in results] == [0, 7]
    assert [result.passed for result in results] == [True, False], "one sign far from its threshold is one too many"
    assert "1 of 288 activations of layer 'conv1' have another sign" in str(results[1].failure)


def test_values_at_a_threshold_are_named_as_the_cause() -> None:
    """Sums of channel 3 that cancel are 2^-18 above its threshold in the one network, and below in the other."""
    model, layers = make_model(float_tail=True), make_layers()
    above, below = (with_initializer(model, "threshold", (0, 3, 0, 0), 1 + side * 2.0**-18) for side in (1, -1))
    result = verify_model(ShowsBits(below, layers), Network(above), layers)
    (first, *_), *_ = result.flips
    assert first.layer == "conv1" and first.flips == first.near > 2
    with pytest.raises(
        VerificationError, match="'conv1' sees otherwise lie within rounding of its thresholds"
    ) as caught:
        result.raise_for_failure()
    assert "bug" not in str(caught.value) and "--no-verify" in str(caught.value)


def test_wrong_signs_away_from_a_threshold_are_a_bug() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    result = verify_model(ShowsBits(model, layers, 3), Network(model), layers)
    assert result.flips[0][0].near == 0 and result.undecided is None
    with pytest.raises(VerificationError, match="this is a bug of the compiler"):
        result.raise_for_failure()


def test_without_shown_activations_both_causes_are_named() -> None:
    model, layers = make_model(float_tail=True), make_layers()
    result = verify(with_initializer(model, "threshold", (0, 3, 0, 0), 2.0), model, layers)
    with pytest.raises(VerificationError, match=r"values within rounding of a threshold may be the cause, or a bug"):
        result.raise_for_failure()


def test_an_integer_only_network_has_no_flips() -> None:
    model, layers = make_model(), make_layers()
    assert verify_model(ShowsBits(model, layers), Network(model), layers).passed
    assert not verify_model(ShowsBits(model, layers, 1), Network(model), layers).passed


def test_the_original_model_is_the_reference_end_to_end() -> None:
    """A front end that changes the network is found, although layers agree with its own output."""
    model, layers = make_model(), make_layers()
    imported = with_initializer(model, "shift", (0, 0, 0), 0.5)
    artifact = OnnxArtifact(imported, layers)
    assert verify_model(artifact, Network(imported), layers).passed
    assert not verify_model(artifact, Network(imported), layers, original=model).passed


def test_an_original_that_onnx_runtime_refuses_is_replaced() -> None:
    model, layers = make_model(), make_layers()
    custom = ModelProto()
    custom.CopyFrom(model)
    custom.opset_import.append(helper.make_opsetid("custom.domain", 1))
    custom.graph.node[1].domain = "custom.domain"
    artifact = OnnxArtifact(model, layers)
    assert verify_model(artifact, Network(model), layers, original=custom).passed
    wrong = OnnxArtifact(with_initializer(model, "threshold", (0, 3, 0, 0), 2.0), layers)
    assert not verify_model(wrong, Network(model), layers, original=custom).passed


def test_sign_of_zero_follows_the_option() -> None:
    model, layers = make_model(), make_layers()
    plus = take_zero_as_plus_one(model, ["a0"])
    zeros = {"x": np.full(SHAPE, -0.25, np.float32)}
    artifact = OnnxArtifact(plus, layers)
    assert not verify_model(artifact, Network(model), layers, feeds=[zeros]).passed
    for original in (None, model):
        result = verify_model(
            artifact, Network(model), layers, feeds=[zeros], zero_as_plus_one=["a0"], original=original
        )
        assert result.passed


def test_plus_one_at_both_zeros_and_only_there() -> None:
    node = helper.make_node("Sign", ["x"], ["y"], name="sign")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    x = np.array([0.0, -0.0, 1e-30, -1e-30, np.nan], np.float32)
    y = Reference(take_zero_as_plus_one(model, ["x"])).run({"x": x})["y"]
    assert y[:4].tolist() == [1, 1, 1, -1]
    assert node.input[0] == "x"


def test_extract_refuses_a_part_with_another_input() -> None:
    with pytest.raises(ValueError, match="depends on the input 'x'"):
        extract(make_model(), "s1", "y0", SHAPE)


def test_a_model_that_the_reference_refuses_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        Reference(b"no model")


def test_samples_repeat_and_fit_their_type() -> None:
    inputs = (TensorSpec("f", (2, 3), "float32"), TensorSpec("i", (64,), "uint8"), TensorSpec("b", (64,), "bool"))
    first, again, other = sample_feeds(inputs, 0, 0), sample_feeds(inputs, 0, 0), sample_feeds(inputs, 0, 1)
    for spec in inputs:
        assert first[spec.name].dtype == spec.dtype and first[spec.name].shape == spec.shape
        assert np.array_equal(first[spec.name], again[spec.name])
        assert not np.array_equal(first[spec.name], other[spec.name])
    assert other["f"].min() >= 0 > first["f"].min()
