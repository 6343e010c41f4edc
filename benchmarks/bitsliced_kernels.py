"""Bit-sliced convolutions beside the popcount kernel and ONNX Runtime fp32: one thread, timed in turn in one run.

    python benchmarks/bitsliced_kernels.py [--cpu CPU] [--only SUBSTRING] [--effort fast|default|thorough]
    python benchmarks/bitsliced_kernels.py --model MODEL.onnx [--only SUBSTRING] [--batch N]

``star`` counts every channel from the nearer root, ``tree`` along the solved channel tree. Times are microseconds, of
kernels called on prepared buffers: ``pack`` is float to bits, which both ways need, ``planes`` is bits to bit planes.
Ratios are of the minima, packing included on both sides; ``ratio`` is planes counted over weights. First come the
costs of the inner loop (``bitsliced_loop.py``). ``bits`` is ``tree`` with thresholds and packing for the next layer in
place of floats: the last ratio is the gain of a layer that takes and gives bits. The layers are in
bitsliced_kernels.json, or they are the convolutions of signs in a model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import tvm
from bitsliced_loop import measure_loop
from kernel_calls import Kernels, tensor
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnn_compiler.bench import Call, cpu_name, time_in_turn
from bnn_compiler.composites import binary_composites, composite_names, read_composite
from bnn_compiler.frontend import import_onnx
from bnn_compiler.kernels.layer_kernels import alphabet_of
from bnn_compiler.passes import DecideSignZeros, FoldBatchNorm, PartitionBinaryOps
from bnn_compiler.schedules.bit_planes import make_bit_planes
from bnn_compiler.schedules.bitsliced_bits import (
    bitsliced_conv2d_bits,
    bitsliced_conv2d_bits_constants,
    pack_bit_rows,
)
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import (
    ALL_MINUS,
    ALL_PLUS,
    ChannelTree,
    make_program,
)
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.pack import pack_conv_activations
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.target import parse_target
from bnn_compiler.trees.solve import solve_channel_tree

LAYERS = Path(__file__).with_suffix(".json")
ROUNDS = 25
Effort = Literal["fast", "default", "thorough"]


@dataclass(frozen=True)
class Layer:
    """A convolution; ``signs`` of its weights are bool [O, Cg, kh, kw].

    From the layer file its weights are random ±1, or channels that differ from one vector in few weights (``flip``).
    """

    name: str
    geometry: ConvGeometry
    signs: NDArray[np.bool_]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Layer:
        """Read an entry of the layer file."""
        conv: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry["conv"].items()
        }
        geometry = ConvGeometry(batch=entry.get("batch", 1), **conv)
        rng = np.random.default_rng(0)
        shape = (geometry.out_channels, geometry.group_in_channels, *geometry.kernel)
        common = rng.random((1, *shape[1:])) < 0.5 if "flip" in entry else False
        return cls(entry["name"], geometry, common ^ (rng.random(shape) < entry.get("flip", 0.5)))


def layers_of_model(path: Path, batch: int) -> list[Layer]:
    """The convolutions of signs in a model that pad with zeros, at another batch size."""
    imported = import_onnx(path)
    with parse_target("native").tvm_target:
        module = tvm.transform.Sequential([FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps()])(imported.module)
    layers = []
    for function in binary_composites(module).values():
        spec = read_composite(function)
        if spec.geometry is not None and spec.ring is None and alphabet_of(spec) == "bipolar":
            geometry = replace(spec.geometry, batch=batch)
            sizes = f"{geometry.in_channels}->{geometry.out_channels} at {geometry.out_height}x{geometry.out_width}"
            layers.append(Layer(f"{sizes}, {composite_names(function).node}", geometry, spec.binary_weights.signs))
    return layers


def star(vectors: NDArray[np.bool_]) -> ChannelTree:
    """Every channel from the nearer root."""
    mostly_plus = 2 * vectors.sum(axis=1) > vectors.shape[1]
    return ChannelTree(vectors, np.where(mostly_plus, ALL_PLUS, ALL_MINUS).tolist())


def solved(vectors: NDArray[np.bool_], overhead: float, effort: Effort) -> ChannelTree:
    """The solver's tree."""
    tree = solve_channel_tree(vectors.astype(np.uint8), node_overhead=overhead, effort=effort)
    parents = [
        int(parent) if parent >= 0 else (ALL_PLUS if root == "plus" else ALL_MINUS)
        for parent, root in zip(tree.parents, tree.roots, strict=True)
    ]
    return ChannelTree(tree.vectors.astype(np.bool_), parents)


def peer_call(geometry: ConvGeometry, signs: NDArray[np.bool_], x: NDArray[np.float32]) -> Call:
    """ONNX Runtime's fp32 convolution, without the sign."""
    shape = (geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width)
    weights = numpy_helper.from_array(np.where(signs, 1, -1).astype(np.float32), "w")
    attributes: dict[str, Any] = {"kernel_shape": geometry.kernel, "strides": geometry.strides, "pads": geometry.pads}
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)]
    graph = helper.make_graph([node], "layer", inputs, outputs, [weights])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def measure(layer: Layer, target: tvm.target.Target, effort: Effort) -> list[float]:
    """Time one layer every way, check that all agree, print its line, and return its ratios."""
    geometry, isa, signs = layer.geometry, detect_isa(target), layer.signs
    layout = make_layout(geometry, "bipolar", isa)
    vectors = signs.reshape(geometry.groups, geometry.group_out_channels, -1)
    programs = {
        "star": make_program(layout, [star(group) for group in vectors]),
        "tree": make_program(layout, [solved(group, 32.0, effort) for group in vectors]),
    }
    x = np.random.default_rng(1).standard_normal(
        (geometry.batch, geometry.in_channels, geometry.height, geometry.width)
    ).astype(np.float32)  # fmt: skip
    bits = tensor(np.zeros(conv_bits_shape(geometry, "bipolar"), np.uint64))
    planes = tensor(np.zeros(layout.shape, np.uint64))
    shape = (geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width)
    outputs = {name: tensor(np.zeros(shape, np.float32)) for name in ("popcount", "star", "tree")}
    kernels = Kernels(target)
    kernels.add("pack", pack_conv_activations(geometry, isa=isa), [tensor(x), bits])
    popcount = popcount_conv2d(geometry, alphabet="bipolar", zero_padded=True, has_scale=False, has_bias=False, isa=isa)
    constants = popcount_conv2d_constants(geometry, signs, alphabet="bipolar", zero_padded=True, isa=isa)
    kernels.add("popcount", popcount, [bits, *map(tensor, constants), outputs["popcount"]])
    kernels.add("planes", make_bit_planes(layout, "planes"), [bits, planes])
    for name, program in programs.items():
        constants = bitsliced_conv2d_constants(layout, signs, zero_padded=True)
        function = bitsliced_conv2d(layout, program, constants, has_scale=False, has_bias=False, isa=isa)
        tables = program.tables
        kernels.add(name, function, [planes, *map(tensor, (*tables, *constants)), outputs[name]])
    thresholds = np.zeros(len(signs), np.int64)
    bounds = bitsliced_conv2d_bits_constants(layout, signs, thresholds, thresholds > 0, zero_padded=True)
    bit_rows = tensor(np.zeros((len(signs), layout.words_per_row), np.uint64))
    reader = _reader(geometry)
    next_bits = tensor(np.zeros(conv_bits_shape(reader, "bipolar"), np.uint64))
    count_bits = bitsliced_conv2d_bits(layout, programs["tree"], bounds, isa=isa)
    kernels.add("count_bits", count_bits, [planes, *map(tensor, (*tables, *bounds)), bit_rows])
    kernels.add("pack_rows", pack_bit_rows(layout, reader, pad_bit=0), [bit_rows, next_bits])
    kernels.add("pack_next", pack_conv_activations(reader, isa=isa), [outputs["tree"], tensor(next_bits.numpy())])
    calls = kernels.calls()
    for call in calls.values():
        call()
    for name in programs:
        np.testing.assert_array_equal(outputs[name].numpy(), outputs["popcount"].numpy())
    np.testing.assert_array_equal(next_bits.numpy(), kernels.argument("pack_next", -1).numpy())
    times = [min(seconds) * 1e6 for seconds in time_in_turn([*calls.values(), peer_call(geometry, signs, x)], ROUNDS)]
    took = dict(zip([*calls, "fp32"], times, strict=True))
    ours = {name: took["pack"] + took["planes"] + took[name] for name in programs}
    bits = took["planes"] + took["count_bits"] + took["pack_rows"]
    popcount_us = took["pack"] + took["popcount"]
    ratios = [popcount_us / ours["star"], popcount_us / ours["tree"], took["fp32"] / ours["tree"], ours["tree"] / bits]
    print(
        f"{layer.name:36} {took['fp32']:8.0f} {took['pack']:6.1f} {took['popcount']:8.1f} {took['planes']:6.1f}"
        f" {took['star']:8.1f} {took['tree']:8.1f} {bits:8.1f} {programs['tree'].planes / signs.size:6.3f}"
        f" {ratios[0]:6.2f} {ratios[1]:6.2f} {ratios[2]:6.1f} {ratios[3]:6.2f}",
        flush=True,
    )
    return ratios


def _reader(writer: ConvGeometry) -> ConvGeometry:
    """A convolution of the writer's output, padded by one."""
    shape = (writer.batch, writer.out_channels, writer.out_height, writer.out_width)
    return ConvGeometry(*shape, 1, (3, 3), pads=(1, 1, 1, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", help="compile for this CPU instead of this machine's, to measure its kernels")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--effort", default="default", choices=("fast", "default", "thorough"), help="of the solver")
    parser.add_argument("--model", type=Path, help="measure the convolutions of signs of this ONNX model instead")
    parser.add_argument("--batch", type=int, default=1, help="of the model's layers")
    options = parser.parse_args()
    target_text = f"llvm -mcpu={options.cpu}" if options.cpu else "native"
    target = parse_target(target_text).tvm_target
    if options.model is not None:
        layers = layers_of_model(options.model, options.batch)
    else:
        layers = [Layer.from_json(entry) for entry in json.loads(LAYERS.read_text(encoding="utf-8"))]
    print(f"{cpu_name()}, target {target_text}, one thread; microseconds are minima")
    measure_loop(target)
    print(f"{'':36} {'':8} {'':6} {'':8} {'':6} {'':8} {'':8} {'':8} {'':6}  ÷ popcount    ÷ fp32 ÷ bits")
    print(
        f"{'':36} {'fp32':>8} {'pack':>6} {'popcount':>8} {'planes':>6} {'star':>8} {'tree':>8} {'bits':>8}"
        f" {'ratio':>6} {'star':>6} {'tree':>6} {'tree':>6} {'tree':>6}"
    )
    ratios = [measure(layer, target, options.effort) for layer in layers if options.only in layer.name]
    if len(ratios) > 1:
        means = np.exp(np.log(ratios).mean(axis=0))
        print(f"{'geometric mean':100} {means[0]:6.2f} {means[1]:6.2f} {means[2]:6.1f} {means[3]:6.2f}")


if __name__ == "__main__":
    main()
