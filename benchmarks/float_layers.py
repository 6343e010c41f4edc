"""Float layers beside ONNX Runtime: one-layer models, one thread, both timed in turn in one run.

    python benchmarks/float_layers.py [--network FILE.onnx ...] [--target native] [--only SUBSTRING] [--json out.json]

Times are of the bare calls on buffers bound beforehand (an I/O binding there, a stateful VM call here): no copies on
either side. A ratio above 1 means faster than ONNX Runtime. Layers are in float_layers.json, or with ``--network`` all
products that stay float and all pools of these networks, with the networks' own weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import tvm
from network_layers import FloatLayer, float_layers
from onnx import TensorProto, helper, numpy_helper
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from bnn_compiler.passes.float_pipeline import float_pipeline
from bnn_compiler.target import parse_target

LAYERS = Path(__file__).with_suffix(".json")
OPSET = 17
# Alternating batches see the same neighbours on a shared machine; each batch is at least this long.
BATCHES = 60
BATCH_SECONDS = 0.003


@dataclass(frozen=True)
class Timing:
    """Microseconds per call of one layer."""

    name: str
    ours_min: float
    ours_median: float
    peer_min: float
    peer_median: float
    error: float
    macs: int = 0

    @property
    def ratio_min(self) -> float:
        """ONNX Runtime's best time over ours."""
        return self.peer_min / self.ours_min

    @property
    def ratio_median(self) -> float:
        """ONNX Runtime's median time over ours."""
        return self.peer_median / self.ours_median


def make_model(layer: dict[str, Any]) -> onnx.ModelProto:
    """Build the ONNX model of one entry of the layer file, with seeded random weights."""
    rng = np.random.default_rng(0)
    # Uniform positive values: valid as a variance, and no layer here is slower or faster for signs.
    weights = [
        numpy_helper.from_array(rng.uniform(0.1, 1, shape).astype(np.float32), name)
        for name, shape in layer["initializers"].items()
    ]
    nodes = [helper.make_node(op, inputs, outputs, **attrs) for op, inputs, outputs, attrs in layer["nodes"]]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, layer["input"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "layer", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def compile_layer(model: onnx.ModelProto, target: tvm.target.Target) -> relax.VirtualMachine:
    """Compile with the float pipeline alone."""
    module = from_onnx(model)
    with target:
        module = tvm.transform.Sequential(float_pipeline(target))(module)
    return relax.VirtualMachine(relax.build(module, target), tvm.cpu())


def measure(layer: FloatLayer, target: tvm.target.Target) -> Timing:
    """Time one layer in both engines and compare their results."""
    value = layer.model.graph.input[0]
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    machine = compile_layer(layer.model, target)
    machine.set_input("main", tvm.runtime.tensor(x))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(layer.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    reference = session.run(None, {value.name: x})[0]
    binding = session.io_binding()
    binding.bind_cpu_input(value.name, x)
    result = onnxruntime.OrtValue.ortvalue_from_numpy(reference)
    binding.bind_ortvalue_output(layer.model.graph.output[0].name, result)

    machine.invoke_stateful("main")
    error = _relative_error(machine.get_outputs("main").numpy(), reference)
    ours, peer = _alternate(lambda: machine.invoke_stateful("main"), lambda: session.run_with_iobinding(binding))
    medians = float(np.median(ours)), float(np.median(peer))
    return Timing(layer.name, min(ours), medians[0], min(peer), medians[1], error, layer.macs)


def _relative_error(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _alternate(*calls: Callable[[], object]) -> list[list[float]]:
    """Time the calls in alternating batches; microseconds per call, one list per call."""
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(BATCH_SECONDS / (time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(BATCHES):
        for index, call in enumerate(calls):
            start = time.perf_counter()
            for _ in range(repeats[index]):
                call()
            times[index].append((time.perf_counter() - start) / repeats[index] * 1e6)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=Path, nargs="+", default=[], help="ONNX files to take the layers from")
    parser.add_argument("--target", default="native", help="as for bnnc compile")
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--json", type=Path, help="write the table as JSON too")
    arguments = parser.parse_args()
    target = parse_target(arguments.target).tvm_target
    if arguments.network:
        # By name: networks share layers.
        layers = list({layer.name: layer for path in arguments.network for layer in float_layers(path)}.values())
    else:
        layers = [FloatLayer(entry["name"], make_model(entry), 0) for entry in json.loads(LAYERS.read_text())]
    timings = []
    print(f"{'layer':52} {'ours us':>9} {'ORT us':>9} {'ratio min':>9} {'median':>7} {'GMAC/s':>7} {'error':>8}")
    for layer in layers:
        if arguments.only in layer.name:
            t = measure(layer, target)
            timings.append(t)
            speed = f"{t.macs / t.ours_min / 1e3:7.1f}" if t.macs else " " * 7
            numbers = f"{t.ours_min:9.1f} {t.peer_min:9.1f} {t.ratio_min:9.2f} {t.ratio_median:7.2f} {speed}"
            print(f"{t.name:52} {numbers} {t.error:8.1e}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(t) for t in timings], indent=1) + "\n")


if __name__ == "__main__":
    main()
