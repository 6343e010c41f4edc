"""What a ``Sign`` that keeps 0 costs: layers of three-valued activations beside the same layers of ±1, in one run.

    python benchmarks/three_values.py [--target TARGET]

Each layer is compiled with ``sign_zero="plus"`` and ``"exact"``, by popcounts and by bit-sliced kernels, and called on
floats, a tenth of them 0, packing included. Times are microseconds, minimum (median), of calls in turn; the ratio is of
the minima.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import numpy as np
import onnx
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler.bench import cpu_name, time_in_turn

#: Channels, kernel, height and width.
LAYERS = ((64, 3, 56), (128, 3, 28), (256, 3, 14), (256, 3, 32), (512, 3, 7), (512, 1, 14))
ROUNDS = 25


def layer(channels: int, kernel: int, size: int) -> onnx.ModelProto:
    """A Sign and a convolution of as many output channels, padded to the same size."""
    signs = np.random.default_rng(0).choice(np.asarray([-1, 1], np.float32), (channels, channels, kernel, kernel))
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("Conv", ["s", "w"], ["y"], name="conv", pads=[kernel // 2] * 4),
    ]
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, size, size]) for name in ("x", "y")
    )
    graph = helper.make_graph(nodes, "layer", [x], [y], [numpy_helper.from_array(signs, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="native")
    options = parser.parse_args()
    print(f"{cpu_name()}, one thread, {options.target}")
    print(f"{'layer':24}{'kernels':12}{'±1 µs':>20}{'−1, 0, 1 µs':>20}{'ratio':>8}")
    for channels, kernel, size in LAYERS:
        model = layer(channels, kernel, size)
        x = np.random.default_rng(1).standard_normal((1, channels, size, size)).astype(np.float32)
        x[np.random.default_rng(2).random(x.shape) < 0.1] = 0
        for algorithm in ("popcount", "bitsliced"):
            calls = []
            for sign_zero in ("plus", "exact"):
                compiled = bnn_compiler.compile_model(
                    model, target=options.target, algorithm=algorithm, sign_zero=sign_zero, verify=False
                )
                (report,) = compiled.report["layers"]
                assert report["algorithm"] == algorithm, report
                calls.append(partial(compiled.run_function, report["function"], x))
            times = [[1e6 * value for value in seconds] for seconds in time_in_turn(calls, ROUNDS)]
            shown = "".join(f"{f'{min(each):,.1f} ({statistics.median(each):,.1f})':>20}" for each in times)
            name = f"{channels}→{channels} {kernel}×{kernel} {size}×{size}"
            print(f"{name:24}{algorithm:12}{shown}{min(times[1]) / min(times[0]):8.2f}", flush=True)


if __name__ == "__main__":
    main()
