"""What the counting loop of bit-sliced kernels costs per plane and per channel, beside the floor of its adders.

    python benchmarks/bitsliced_loop.py [--cpu CPU]

Nanoseconds per plane with planes in L1 and in L2, from the difference of chains of nodes that differ in 256 and in 512
weights; the floor is a loop of the same full adders without an index table. ``bitsliced_kernels.py`` prints it, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from kernel_calls import Kernels, tensor

from bnn_compiler.bench import cpu_name, time_in_turn
from bnn_compiler.schedules.bit_counter import BitSlicedCounter
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import (
    ALL_MINUS,
    NO_CHANNEL,
    NODE_FIELDS,
    ChannelProgram,
    ChannelTree,
    make_program,
)
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.kernel_builder import Argument, bind, build_kernel, constant, load, serial, store
from bnn_compiler.target import parse_target

ROUNDS = 25
_FLOOR_BLOCKS = 4096


def measure_loop(target: tvm.target.Target) -> None:
    """Print what one plane, one node and one channel cost, and the floor of a plane."""
    isa = detect_isa(target)
    kernels = Kernels(target)
    geometries = {"L1": ConvGeometry(1, 64, 16, 32, 64, (3, 3)), "L2": ConvGeometry(1, 256, 16, 32, 64, (3, 3))}
    programs: dict[str, ChannelProgram] = {}
    for name, geometry in geometries.items():
        layout = make_layout(geometry, "bipolar", isa)
        planes = tensor(np.zeros(layout.shape, np.uint64))
        for differing in (256, 512):
            for synthetic in (True, False):
                program = _chain(layout.weights, differing, geometry.out_channels, layout, synthetic=synthetic)
                key = f"{name}_{differing}_{'nodes' if synthetic else 'channels'}"
                programs[key] = program
                constants = (np.zeros((geometry.out_channels, 1), np.int32),)
                function = bitsliced_conv2d(layout, program, constants, has_scale=False, has_bias=False, isa=isa)
                shape = (1, geometry.out_channels, geometry.out_height, geometry.out_width)
                output = tensor(np.zeros(shape, np.float32))
                tables = map(tensor, (*program.tables, *constants))
                kernels.add(key, function, [planes, *tables, output])
    lanes = isa.vector_bits // 64
    kernels.add("floor", _floor_kernel(lanes, isa), [tensor(np.ones((rows, lanes), np.uint64)) for rows in (128, 12)])
    calls = kernels.calls()
    times = dict(
        zip(calls, (min(seconds) * 1e9 for seconds in time_in_turn(list(calls.values()), ROUNDS)), strict=True)
    )
    print(
        f"ns per {isa.vector_bits}-bit plane: {times['floor'] / _FLOOR_BLOCKS / 64:.3f} without an index table", end=""
    )
    for name, geometry in geometries.items():
        layout = make_layout(geometry, "bipolar", isa)
        blocks = sum(run.blocks for run in layout.runs)
        few, many = f"{name}_256_nodes", f"{name}_512_nodes"
        per_plane = (times[many] - times[few]) / blocks / (programs[many].planes - programs[few].planes)
        kilobytes = layout.taps * lanes // 128
        print(f", {per_plane:.3f} from {name} ({kilobytes} KiB)", end="")
        if name == "L2":
            channel = (times["L2_512_channels"] - times[many]) / blocks / geometry.out_channels
            print(f"; a channel's epilogue {channel:.0f} ns")


def _chain(weights: int, differing: int, nodes: int, layout: Any, *, synthetic: bool) -> ChannelProgram:
    """Nodes in a chain, each with ``differing`` random weights that its parent has not."""
    rng = np.random.default_rng(0)
    vectors = np.zeros((nodes, weights), np.bool_)
    current = rng.random(weights) < 0.5
    for node in range(nodes):
        current = current.copy()
        current[rng.permutation(weights)[:differing]] ^= True
        vectors[node] = current
    program = make_program(layout, [ChannelTree(vectors, [ALL_MINUS, *range(nodes - 1)])])
    if synthetic:
        program.nodes[1:, NODE_FIELDS.index("channel")] = NO_CHANNEL
    return program


def _floor_kernel(lanes: int, isa: Isa) -> Any:
    """Blocks of 64 planes, in order from 128 planes in L1, into a counter of 12 bits: adders without an index table."""

    def emit(buffers: Mapping[str, Any]) -> None:
        counter = BitSlicedCounter(12, lanes, isa)
        for level in range(12):
            counter.set_plane(level, constant(0, "uint64", lanes))
        with serial(_FLOOR_BLOCKS) as block:
            # Two halves in turn: from one LLVM would hoist the adders that take no plane of the counter.
            first = bind(block % 2 * (64 * lanes))
            counter.count(64, lambda i: bind(load(buffers["planes"], first + i * lanes, lanes)), subtract=False)
        for level in range(12):
            store(buffers["counter"], level * lanes, counter.plane(level), lanes)

    arguments = [Argument("planes", (128, lanes), "uint64"), Argument("counter", (12, lanes), "uint64")]
    return build_kernel("floor", "floor", arguments, emit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", help="compile for this CPU instead of this machine's, to measure its kernels")
    options = parser.parse_args()
    target = f"llvm -mcpu={options.cpu}" if options.cpu else "native"
    print(f"{cpu_name()}, target {target}, one thread")
    measure_loop(parse_target(target).tvm_target)


if __name__ == "__main__":
    main()
