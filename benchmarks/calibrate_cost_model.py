"""Measure the coefficients of bnn_compiler/kernels/cost_model.json on this machine.

    python benchmarks/calibrate_cost_model.py [--cpu znver4 ...] [--write]       (on an Intel machine: icelake-server)

Builds the popcount and the bit-sliced kernels of a spread of convolutions, with channel trees from none to those of
nearly equal channels, times all kernels of an instruction set in turn (minimum over rounds, one thread), and fits what
an operation takes by least squares on relative errors, with coefficients that are not negative. Prints the fit and its
errors; ``--write`` stores it. Run it on an idle machine; it takes about five minutes per CPU. The convolutions are in
calibrate_cost_model.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.bench import Call, cpu_name, time_in_turn
from bnn_compiler.cache_folder import cache_folder
from bnn_compiler.kernels import cost_model
from bnn_compiler.kernels.bitsliced_layer import BitslicedPlan, bitsliced_kernels, star_plan
from bnn_compiler.kernels.kernel_timing import stage_calls
from bnn_compiler.kernels.kernel_work import Work, counting_work, pack_work, planes_work, popcount_work
from bnn_compiler.kernels.popcount_layer import popcount_kernels
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.target import CompileTarget, parse_target
from bnn_compiler.trees.solve import solve_channel_tree

SHAPES = Path(__file__).with_suffix(".json")
ROUNDS = 60
#: Short, so that some rounds of every kernel go undisturbed by other processes.
ROUND_SECONDS = 0.0015
CPUS = ("znver4", "skylake-avx512", "haswell", "x86-64")
#: Probability that a weight of a channel differs from a common vector, and the solver's overhead of a synthetic node:
#: long lists; many nodes with short lists; few nodes with very short ones.
TREES = ((0.5, 24.0), (0.1, 0.0), (0.02, 24.0))
KERNELS = ("pack", "popcount", "planes", "counting")
_FIT_SWEEPS = 5000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One kernel: its operations and a call of it."""

    kernel: str
    name: str
    work: Work
    call: Call


def make_spec(geometry: ConvGeometry, flip: float) -> BinarySpec:
    """A layer of bipolar activations; each weight differs from a common vector with probability ``flip``."""
    random = np.random.default_rng(0)
    shape = (geometry.out_channels, geometry.group_in_channels, *geometry.kernel)
    signs = (random.random((1, *shape[1:])) < 0.5) ^ (random.random(shape) < flip)
    return BinarySpec(
        input_shape=(geometry.batch, geometry.in_channels, geometry.height, geometry.width),
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
        bias=np.ones(geometry.out_channels, np.float32),
    )


def solved_plan(spec: BinarySpec, isa: Isa, node_overhead: float) -> BitslicedPlan:
    """A channel tree of a layer without groups."""
    star = star_plan(spec, isa)
    (tree,) = star.trees
    solved = solve_channel_tree(tree.vectors, node_overhead=node_overhead, effort="fast", cache=cache_folder("trees"))
    return BitslicedPlan(star.layout, (solved,))


def make_samples(geometry: ConvGeometry, target: CompileTarget, isa: Isa, caches: cost_model.Caches) -> list[Sample]:
    """The kernels of one convolution, built."""
    specs = [make_spec(geometry, flip) for flip, _ in TREES]
    plans = [(specs[0], star_plan(specs[0], isa))]
    plans += [(spec, solved_plan(spec, isa, overhead)) for spec, (_, overhead) in zip(specs, TREES, strict=True)]
    layers = [popcount_kernels(specs[0], isa), *(bitsliced_kernels(spec, isa, plan) for spec, plan in plans)]
    popcount, *sliced = stage_calls(layers, specs[0].input_shape, target.tvm_target)
    for call in (call for calls in (popcount, *sliced) for call in calls):
        call()  # Buffers hold what the kernels make, not zeros.
    padded = any(geometry.pads)
    kernel = "x".join(map(str, geometry.kernel))
    name = (
        f"{geometry.in_channels}→{geometry.out_channels} {kernel} at {geometry.out_height}x{geometry.out_width}"
        f" stride {geometry.strides[0]} batch {geometry.batch}"
    )
    samples = [
        Sample("pack", name, pack_work(geometry, l2=caches.l2), popcount[0]),
        Sample("popcount", name, popcount_work(geometry, "bipolar", isa, zero_padded=padded), popcount[-1]),
        Sample("planes", name, planes_work(plans[0][1].layout), sliced[0][1]),
    ]
    for (_, plan), calls in zip(plans, sliced, strict=True):
        work = counting_work(plan.layout, plan.lists, zero_padded=padded, l1=caches.l1, l2=caches.l2)
        samples.append(Sample("counting", f"{name}, ratio {plan.cost_ratio:.2f}", work, calls[-1]))
    return samples


def fit(samples: Sequence[Sample], times: Sequence[float]) -> tuple[dict[str, float], Floats]:
    """Nanoseconds per operation, none negative, that minimise the relative errors, and those errors.

    Coordinate descent: with few operations it converges at once, and no solver is needed.
    """
    names = sorted({name for sample in samples for name in sample.work})
    relative = np.array([[sample.work.get(name, 0.0) for name in names] for sample in samples])
    relative /= np.array(times)[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scaled = relative / scale
    gram, target = scaled.T @ scaled, scaled.sum(axis=0)
    solution = np.zeros(len(names))
    for _ in range(_FIT_SWEEPS):
        for i in range(len(names)):
            solution[i] = max(0.0, solution[i] + target[i] - gram[i] @ solution)
    costs = solution / scale
    return dict(zip(names, costs.tolist(), strict=True)), relative @ costs - 1


def calibrate(cpu: str, caches: cost_model.Caches, rounds: int, every: int) -> tuple[str, dict[str, Any]]:
    """The name of ``cpu``'s entry in the file, and the entry."""
    target = parse_target(f"llvm -mcpu={cpu}")
    isa = detect_isa(target.tvm_target)
    samples: list[Sample] = []
    for entry in json.loads(SHAPES.read_text(encoding="utf-8"))[::every]:
        samples += make_samples(_geometry(entry), target, isa, caches)
    # All in turn: a slow minute of the machine hits all kernels, and none in every round.
    times = [min(seconds) * 1e9 for seconds in time_in_turn([sample.call for sample in samples], rounds, ROUND_SECONDS)]
    result: dict[str, Any] = {}
    for kernel in KERNELS:
        chosen = [i for i, sample in enumerate(samples) if sample.kernel == kernel]
        costs, errors = fit([samples[i] for i in chosen], [times[i] for i in chosen])
        result[kernel] = costs
        print(
            f"{cpu} ({isa.popcount}) {kernel}: errors: {np.sqrt(np.mean(errors**2)):.1%} (root of mean square),"
            f" {np.max(np.abs(errors)):.1%} (largest)"
        )
        for error, i in sorted(zip(errors, chosen, strict=True), key=lambda pair: -abs(pair[0])):
            if abs(error) > 0.1:
                print(f"    {error:+.0%}  {times[i] / 1e3:8.1f} us  {samples[i].name}")
    return cost_model.entry_name(isa), {"machine": cpu_name(), **result, "caches": {"l1": caches.l1, "l2": caches.l2}}


def _geometry(entry: Mapping[str, Any]) -> ConvGeometry:
    sizes: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return ConvGeometry(**sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpu", nargs="+", default=CPUS)
    parser.add_argument("--l1-bytes", type=int, default=_cache_bytes(0, 32 * 1024))
    parser.add_argument("--l2-bytes", type=int, default=_cache_bytes(2, 512 * 1024))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth convolution: a quick look")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    caches = cost_model.Caches(arguments.l1_bytes, arguments.l2_bytes)
    path = Path(cost_model.__file__).with_suffix(".json")
    for cpu in arguments.cpu:
        name, entry = calibrate(cpu, caches, arguments.rounds, arguments.every)
        entries = {name: _rounded(entry)}
        print(json.dumps(entries, indent=2), flush=True)
        if arguments.write:
            known = json.loads(path.read_text(encoding="utf-8"))["instruction_sets"] if path.exists() else {}
            content = {"unit": "nanoseconds", "instruction_sets": {**known, **entries}}
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _cache_bytes(index: int, otherwise: int) -> int:
    """A data cache of the first core, as Linux gives it (index 0: L1, 2: L2)."""
    path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return otherwise
    return int(text.rstrip("K")) * 1024


if __name__ == "__main__":
    main()
