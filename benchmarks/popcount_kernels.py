"""Binary layers beside ONNX Runtime fp32: one thread, both timed in turn in one run.

    python benchmarks/popcount_kernels.py [--cpu CPU] [--only SUBSTRING] [--check]

``run`` is the whole path through the compiled model's Python ``run()`` on ordinary NumPy arrays: float in, sign, pack,
count, float out. ``pack`` and ``product`` are the two kernels alone, called back to back on prepared buffers. ONNX
Runtime runs the fp32 Conv or Gemm alone, without the sign. Ratios are ONNX Runtime's time over ours: of the minima, and
the median over the rounds. Layers with ``activation_bits`` quantise their input to codes of that many bits instead of
taking its sign; their last column is the time of both kernels over that of the same layer with one bit. The layers, and
the median ratios that ``--check`` asks for, are in popcount_kernels.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tvm
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import bnn_compiler
from bnn_compiler.bench import Call, cpu_name, time_in_turn
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.pack import pack_conv_activations, pack_dense_activations
from bnn_compiler.schedules.popcount import Alphabet, codes_alphabet
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.popcount_dense import dense_bits_shape, popcount_dense, popcount_dense_constants
from bnn_compiler.target import parse_target

LAYERS = Path(__file__).with_suffix(".json")
OPSET = 17
_FLOATS = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """One binary layer: a geometry, or the sizes of a matrix product."""

    name: str
    geometry: ConvGeometry | None
    dense: tuple[int, int, int] | None
    required_run: float
    required_kernel: float
    activation_bits: int = 1

    @property
    def alphabet(self) -> Alphabet:
        """What the kernels see."""
        return "bipolar" if self.activation_bits == 1 else codes_alphabet(bipolar=False, bits=self.activation_bits)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Layer:
        """Read an entry of the layer file."""
        geometry = dense = None
        if "conv" in entry:
            conv: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value for key, value in entry["conv"].items()
            }
            geometry = ConvGeometry(batch=1, **conv)
        else:
            sizes = entry["dense"]
            dense = (sizes["rows"], sizes["in_features"], sizes["out_features"])
        required = entry.get("required_run", 0), entry.get("required_kernel", 0)
        return cls(entry["name"], geometry, dense, *required, entry.get("activation_bits", 1))

    @property
    def macs(self) -> int:
        """Multiply-accumulates per call."""
        if self.geometry is not None:
            return self.geometry.macs
        assert self.dense is not None
        rows, in_features, out_features = self.dense
        return rows * in_features * out_features

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shapes of the input, the weights (as ONNX has them) and the output."""
        if self.geometry is None:
            assert self.dense is not None
            rows, in_features, out_features = self.dense
            return (rows, in_features), (out_features, in_features), (rows, out_features)
        g = self.geometry
        return (
            (g.batch, g.in_channels, g.height, g.width),
            (g.out_channels, g.group_in_channels, *g.kernel),
            (g.batch, g.out_channels, g.out_height, g.out_width),
        )


def make_model(layer: Layer, signs: NDArray[np.bool_], *, with_sign: bool) -> onnx.ModelProto:
    """The layer in ONNX, behind a Sign (or round(clip(x, 0, 1)·(2^bits − 1))) or alone."""
    x_shape, _, y_shape = layer.shapes()
    source = "binary" if with_sign else "x"
    initialisers = [numpy_helper.from_array(np.where(signs, 1, -1).astype(np.float32), "w")]
    nodes = []
    if with_sign and layer.activation_bits == 1:
        nodes = [_node("Sign", "x", "binary")]
    elif with_sign:
        nodes = [
            _node("Clip", "x", "zero", "one", "clipped"),
            _node("Mul", "clipped", "top", "scaled"),
            _node("Round", "scaled", "binary"),
        ]
        for name, value in {"zero": 0.0, "one": 1.0, "top": 2.0**layer.activation_bits - 1}.items():
            initialisers.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    if layer.geometry is not None:
        g = layer.geometry
        attributes: dict[str, Any] = {"kernel_shape": g.kernel, "strides": g.strides, "pads": g.pads}
        nodes.append(helper.make_node("Conv", [source, "w"], ["y"], **attributes))
    else:
        nodes.append(helper.make_node("Gemm", [source, "w"], ["y"], transB=1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)
    graph = helper.make_graph(nodes, "layer", [x], [y], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _node(operator: str, *names: str) -> onnx.NodeProto:
    return helper.make_node(operator, list(names[:-1]), [names[-1]])


def peer_call(layer: Layer, signs: NDArray[np.bool_], x: _FLOATS) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    model = make_model(layer, signs, with_sign=False).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})


def kernel_calls(layer: Layer, signs: NDArray[np.bool_], x: _FLOATS, target: tvm.target.Target) -> tuple[Call, Call]:
    """The packing kernel and the product kernel, alone."""
    isa = detect_isa(target)
    alphabet = layer.alphabet
    options: dict[str, Any] = {"alphabet": alphabet, "isa": isa}
    if layer.activation_bits > 1:
        top = (1 << layer.activation_bits) - 1
        options |= {"codes": tuple(range(top + 1)), "threshold": tuple((i + 0.5) / top for i in range(top))}
    if layer.geometry is not None:
        bits_shape = conv_bits_shape(layer.geometry, alphabet)
        pack = pack_conv_activations(layer.geometry, **options)
        product = popcount_conv2d(
            layer.geometry, alphabet=alphabet, zero_padded=True, has_scale=True, has_bias=True, isa=isa
        )
        constants = popcount_conv2d_constants(layer.geometry, signs, alphabet=alphabet, zero_padded=True, isa=isa)
    else:
        assert layer.dense is not None
        rows, in_features, out_features = layer.dense
        bits_shape = dense_bits_shape(rows, in_features, alphabet)
        pack = pack_dense_activations(rows, in_features, **options)
        product = popcount_dense(
            rows, in_features, out_features, alphabet=alphabet, has_scale=True, has_bias=True, isa=isa
        )
        constants = popcount_dense_constants(signs, alphabet=alphabet)
    named = {name: f.with_attr("global_symbol", name) for name, f in {"pack": pack, "product": product}.items()}
    executable = tvm.compile(tvm.IRModule(named), target=target)
    channel = np.ones(len(signs), np.float32)
    activation, bits = tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros(bits_shape, np.uint64))
    output = tvm.runtime.tensor(np.zeros(layer.shapes()[2], np.float32))
    arguments = [bits, *(tvm.runtime.tensor(array) for array in (*constants, channel, channel)), output]
    run_pack, run_product = executable["pack"], executable["product"]
    return lambda: run_pack(activation, bits), lambda: run_product(*arguments)


def measure(layer: Layer, target_text: str) -> bool:
    """Time one layer and print its line; whether it is as fast as required."""
    rng = np.random.default_rng(0)
    x_shape, weight_shape, _ = layer.shapes()
    signs = rng.random(weight_shape) < 0.5
    x = rng.standard_normal(x_shape).astype(np.float32)
    compiled = bnn_compiler.compile_model(make_model(layer, signs, with_sign=True), target=target_text, verify=False)
    pack, product = kernel_calls(layer, signs, x, parse_target(target_text).tvm_target)
    calls = [lambda: compiled.run({"x": x}), pack, product, peer_call(layer, signs, x)]
    if layer.activation_bits > 1:
        calls += kernel_calls(replace(layer, activation_bits=1), signs, x, parse_target(target_text).tvm_target)
    times = time_in_turn(calls)
    run, packing, counting, peer, *one_bit = (1e6 * min(seconds) for seconds in times)
    rounds = list(zip(*times[:4], strict=True))
    ratio = statistics.median(theirs / ours for ours, _, _, theirs in rounds)
    kernel_ratio = statistics.median(theirs / (first + second) for _, first, second, theirs in rounds)
    beside_one_bit = f"{(packing + counting) / sum(one_bit):7.2f}" if one_bit else " " * 7
    passed = ratio >= layer.required_run and kernel_ratio >= layer.required_kernel
    print(
        f"{layer.name:28} {peer:8.1f} {run:8.1f} {packing:7.2f} {counting:8.2f} {layer.macs / counting / 1e3:6.0f}"
        f" {peer / run:7.1f} {ratio:7.1f} {peer / (packing + counting):7.1f} {kernel_ratio:7.1f} {beside_one_bit}"
        f" {'' if passed else f'  below {layer.required_run} / {layer.required_kernel}'}"
    )
    return bool(passed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", help="compile for this CPU instead of this machine's, to measure its kernels")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a ratio falls short")
    options = parser.parse_args()
    target = f"llvm -mcpu={options.cpu}" if options.cpu else "native"
    layers = [Layer.from_json(entry) for entry in json.loads(LAYERS.read_text(encoding="utf-8"))]
    print(f"{cpu_name()}, target {target}, one thread; microseconds are minima")
    columns = f"{'':28} {'fp32':>8} {'run':>8} {'pack':>7} {'product':>8} {'GMAC/s':>6}"
    print(f"{columns}   ratio of run    ratio of kernels  of 1 bit")
    print(f"{'':28} {'':8} {'':8} {'':7} {'':8} {'':6} {'min':>7} {'median':>7} {'min':>7} {'median':>7}")
    passed = [measure(layer, target) for layer in layers if options.only in layer.name]
    if options.check and not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    main()
