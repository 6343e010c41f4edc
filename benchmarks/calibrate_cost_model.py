"""Measure the coefficients of bnn_compiler/cost_model.json on this machine.

    python benchmarks/calibrate_cost_model.py [--cpu znver4 ...] [--write]

Builds the popcount and the bit-sliced kernels of a spread of convolutions, with channel trees from ordinary to nearly
equal weights, times every kernel alone (minimum over rounds, one thread), and fits the terms of the model by least
squares on relative errors with coefficients that are not negative. Prints the fit and its errors; ``--write`` stores
it. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

from bnn_compiler import cost_model
from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.bitsliced_layer import BitslicedPlan, bitsliced_kernels
from bnn_compiler.cost_model import BitslicedCosts, CostModel, PopcountCosts
from bnn_compiler.derived_constant import value_of
from bnn_compiler.layer_kernels import Kernel, LayerKernels, popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.bitsliced_conv import make_layout
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.target import CompileTarget, parse_target
from bnn_compiler.trees.solve import solve_channel_tree

ROUNDS = 25
CPUS = ("znver4", "skylake-avx512", "haswell", "x86-64")
#: channels, size, kernel; and the probability that a weight of a channel differs from a common vector.
SHAPES = [(64, 56, 3), (128, 28, 3), (256, 14, 3), (256, 32, 3), (512, 16, 3), (256, 28, 1), (32, 28, 5)]
FLIPS = (0.5, 0.1)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One kernel: the counts of its terms and its nanoseconds."""

    terms: tuple[float, ...]
    nanoseconds: float


def make_spec(channels: int, size: int, kernel: int, flip: float) -> BinarySpec:
    random = np.random.default_rng(0)
    pad = kernel // 2
    geometry = ConvGeometry(1, channels, size, size, channels, (kernel, kernel), (1, 1), (pad, pad, pad, pad))
    common = random.random((1, channels, kernel, kernel)) < 0.5
    signs = common ^ (random.random((channels, channels, kernel, kernel)) < flip)
    return BinarySpec(
        input_shape=(1, channels, size, size),
        prefix=(),
        suffix=(),
        predicate="ge",
        threshold=np.zeros((), np.float32),
        direction=None,
        low=-1.0,
        high=1.0,
        ring=None,
        geometry=geometry,
        rows=0,
        weights=np.where(signs, 1, -1).astype(np.float32),
        scale=None,
        bias=None,
    )


def time_stages(kernels: Sequence[LayerKernels], target: CompileTarget) -> list[list[float]]:
    """Nanoseconds of every stage but the first of every set of kernels, built together and timed in turn."""
    stages = [(layer, stage) for layer in kernels for stage in layer.stages[1:]]
    functions = {
        f"kernel_{i}": stage.function.with_attr("global_symbol", f"kernel_{i}") for i, (_, stage) in enumerate(stages)
    }
    with target.tvm_target:
        library = tvm.compile(tvm.IRModule(functions), target=target.tvm_target)
    calls = []
    for i, (layer, stage) in enumerate(stages):
        before = layer.stages[layer.stages.index(stage) - 1]
        arguments = [_tensor(before), *(_aligned(value_of(constant)) for constant in stage.constants), _tensor(stage)]
        calls.append(_call(library[f"kernel_{i}"], arguments))
    times = iter(min(rounds) * 1e9 for rounds in time_in_turn(calls, ROUNDS))
    return [[next(times) for _ in layer.stages[1:]] for layer in kernels]


def _call(function: Any, arguments: Sequence[Any]) -> Any:
    return lambda: function(*arguments)


def _tensor(kernel: Kernel) -> Any:
    return _aligned(np.zeros(kernel.shape, kernel.dtype))


def _aligned(array: NDArray[Any]) -> Any:
    return tvm_ffi.from_dlpack(tvm.runtime.tensor(np.ascontiguousarray(array)))


def fit(samples: Sequence[Sample]) -> tuple[Floats, Floats]:
    """Coefficients >= 0 that minimise the relative errors, and those errors.

    Of all subsets of terms the best with positive coefficients: there are few terms, and so no solver is needed.
    """
    counts = np.array([sample.terms for sample in samples])
    times = np.array([sample.nanoseconds for sample in samples])
    scaled = counts / times[:, None]
    best = np.zeros(counts.shape[1])
    least = np.inf
    for size in range(1, counts.shape[1] + 1):
        for chosen in itertools.combinations(range(counts.shape[1]), size):
            solution, *_ = np.linalg.lstsq(scaled[:, chosen], np.ones(len(times)), rcond=None)
            error = float(np.sum((scaled[:, chosen] @ solution - 1) ** 2))
            if np.all(solution > 0) and error < least:
                least, best = error, np.zeros(counts.shape[1])
                best[list(chosen)] = solution
    return best, scaled @ best - 1


def calibrate(cpu: str, l1_bytes: int) -> tuple[str, CostModel]:
    target = parse_target(f"llvm -mcpu={cpu}")
    isa = detect_isa(target.tvm_target)
    popcount: list[Sample] = []
    planes: list[Sample] = []
    counting: list[Sample] = []
    for channels, size, kernel in SHAPES:
        specs = [make_spec(channels, size, kernel, flip) for flip in FLIPS]
        plans = []
        for spec in specs:
            assert spec.geometry is not None
            signs = spec.binary_weights.signs.reshape(channels, -1).astype(np.uint8)
            tree = solve_channel_tree(signs, effort="fast")
            plans.append(BitslicedPlan(make_layout(spec.geometry, "bipolar", isa), (tree,)))
        layers = [popcount_kernels(specs[0], isa)]
        layers += [bitsliced_kernels(spec, isa, plan) for spec, plan in zip(specs, plans, strict=True)]
        (pop,), *sliced = time_stages(layers, target)
        pixels, words = size * size, kernel * kernel * -(-channels // 64)
        popcount.append(Sample((words * pixels * channels, pixels * channels, words * pixels, 1), pop))
        for plan, (plane_time, count_time) in zip(plans, sliced, strict=True):
            taps, vectors = plan.layout.taps, plan.vectors
            planes.append(Sample((taps * vectors, 1), plane_time))
            outside = max(0.0, 1 - l1_bytes / (taps * plan.layout.lanes * 8))
            added = plan.additions * vectors
            counting.append(
                Sample((added * (1 - outside), added * outside, plan.nodes * vectors, pixels * channels), count_time)
            )
    (word, output, column, call), errors = fit(popcount)
    print(f"{cpu} ({isa.name}): popcount, relative errors {np.round(errors, 2)}")
    (plane, plane_call), errors = fit(planes)
    print(f"{cpu} ({isa.name}): planes, relative errors {np.round(errors, 2)}")
    (add_l1, add_l2, node, sliced_output), errors = fit(counting)
    print(f"{cpu} ({isa.name}): counting, relative errors {np.round(errors, 2)}")
    model = CostModel(
        PopcountCosts(word, output, column, call),
        BitslicedCosts(plane, add_l1, max(add_l2, add_l1), node, sliced_output, plane_call),
        l1_bytes,
    )
    return isa.popcount, model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", nargs="+", default=CPUS)
    parser.add_argument("--l1-bytes", type=int, default=_l1_bytes())
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    models = dict(calibrate(cpu, arguments.l1_bytes) for cpu in arguments.cpu)
    entries = {name: _rounded(asdict(model)) for name, model in models.items()}
    print(json.dumps(entries, indent=2))
    if arguments.write:
        path = Path(cost_model.__file__).with_suffix(".json")
        known = json.loads(path.read_text(encoding="utf-8"))["instruction_sets"] if path.exists() else {}
        content = {"machine": cpu_name(), "unit": "nanoseconds", "instruction_sets": {**known, **entries}}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _l1_bytes() -> int:
    """The first-level data cache, as Linux gives it; 32 KiB where it does not."""
    path = Path("/sys/devices/system/cpu/cpu0/cache/index0/size")
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return 32 * 1024
    return int(text.rstrip("K")) * 1024


if __name__ == "__main__":
    main()
