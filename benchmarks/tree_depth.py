"""What the depth of channel trees is worth: bit-sliced layers along trees of several depths, timed in turn in one run.

    python benchmarks/tree_depth.py MODEL.onnx:LAYER[@SIZE] [...] [--target TARGET]

LAYER is a node's name; with SIZE its weights are used on a map of SIZE x SIZE. Prints, per depth limit, the planes
counted over weights, synthetic nodes, the microseconds of the counting kernel (minimum), and those over the fastest.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.cache_folder import cache_folder
from bnn_compiler.composites import binary_composites, composite_names, read_composite
from bnn_compiler.frontend import import_onnx
from bnn_compiler.kernels.bitsliced_layer import TreePlanning, bitsliced_kernels, plan_bitsliced, star_plan
from bnn_compiler.kernels.cost_model import load_cost_model
from bnn_compiler.kernels.kernel_choice import ChoiceOptions
from bnn_compiler.kernels.kernel_timing import stage_calls
from bnn_compiler.layers import BinarySpec
from bnn_compiler.pipeline import phases, run_phases
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.target import CompileTarget, parse_target

DEPTHS = (2, 3, 4, 6, 8, 12, 16, 1000)
ROUNDS = 60
ROUND_SECONDS = 0.0015


def find_layer(model: Path, name: str, target: CompileTarget) -> BinarySpec:
    """The binary layer of one node."""
    todo = phases(target.tvm_target, choice=ChoiceOptions())
    partitioned = 1 + next(index for index, phase in enumerate(todo) if phase.name == "partition")
    with target.tvm_target:
        module = run_phases(import_onnx(model).module, todo[:partitioned])
    found = {composite_names(function).node: function for function in binary_composites(module).values()}
    if name not in found:
        raise SystemExit(f"{model}: no binary layer {name!r}; there are {', '.join(found)}")
    return read_composite(found[name])


def resized(spec: BinarySpec, size: int) -> BinarySpec:
    """The layer on another map."""
    assert spec.geometry is not None
    geometry = replace(spec.geometry, height=size, width=size)
    return replace(spec, geometry=geometry, input_shape=(geometry.batch, geometry.in_channels, size, size))


def measure(name: str, spec: BinarySpec, target: CompileTarget) -> None:
    """Print a layer's table."""
    isa = detect_isa(target.tvm_target)
    model = load_cost_model(isa)
    plans = {"star": star_plan(spec, isa)}
    for depth in DEPTHS:
        planning = TreePlanning(max_depth=depth, cache=cache_folder("trees"))
        plans[str(depth)] = plan_bitsliced(spec, isa, model, planning)
    kernels = [bitsliced_kernels(spec, isa, plan) for plan in plans.values()]
    calls = stage_calls(kernels, spec.input_shape, target.tvm_target)
    for layer in calls:
        for call in layer:
            call()
    times = [min(values) * 1e6 for values in time_in_turn([layer[-1] for layer in calls], ROUNDS, ROUND_SECONDS)]
    print(f"| {name} | depth | planes ÷ weights | synthetic nodes | depth used | µs | ÷ fastest |")
    for (limit, plan), time in zip(plans.items(), times, strict=True):
        channels = sum(tree.channels for tree in plan.trees)
        used = max(tree.depth for tree in plan.trees)
        print(
            f"| | {limit} | {plan.cost_ratio:.3f} | {plan.nodes - channels} | {used} | {time:.1f}"
            f" | {time / min(times):.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="+", metavar="MODEL.onnx:LAYER[@SIZE]")
    parser.add_argument("--target", default="native")
    options = parser.parse_args()
    target = parse_target(options.target)
    print(f"{cpu_name()}, target {options.target}, one thread")
    for words in options.layers:
        model, _, layer = words.partition(":")
        name, _, size = layer.partition("@")
        spec = find_layer(Path(model), name, target)
        measure(f"{Path(model).stem} {layer}", resized(spec, int(size)) if size else spec, target)


if __name__ == "__main__":
    main()
