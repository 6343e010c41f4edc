"""Channel programs: run in NumPy they give every channel's counter, and they expand from packed vectors."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.channel_program import (
    ALL_MINUS,
    ALL_PLUS,
    LONG_BLOCK,
    MINUS_SLOT,
    NO_CHANNEL,
    NODE_FIELDS,
    PLUS_SLOT,
    SHORT_BLOCK,
    ChannelProgram,
    ChannelTree,
    index_scale,
    make_program,
)
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.popcount import Alphabet
from bnn_compiler.schedules.program_expansion import expand_program, pack_node_vectors
from tests.schedules.bitsliced_harness import TREES, TreeKind, grow_trees, random_signs
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa

GEOMETRIES = {
    "whole-words": ConvGeometry(1, 128, 4, 4, 9, (3, 3)),
    "part-words": ConvGeometry(1, 70, 4, 4, 9, (3, 2)),
    "few-channels": ConvGeometry(1, 3, 9, 9, 12, (7, 7)),
    "groups": ConvGeometry(1, 99, 4, 4, 12, (2, 2), groups=3),
    "depthwise": ConvGeometry(1, 4, 4, 4, 8, (3, 3), groups=4),
    "one-channel": ConvGeometry(1, 65, 1, 1, 1, (1, 1)),
    "unscaled": ConvGeometry(1, 1000, 3, 3, 4, (3, 3)),
}


def _run_program(program: ChannelProgram, planes: Array, layout: PlaneLayout, group: int) -> dict[int, Array]:
    """The counters of a group's channels; ``planes`` int64 [taps + 1, pixels]."""
    taps = layout.plane_stride or layout.taps
    slots: dict[int, Array] = {
        MINUS_SLOT: planes[taps : layout.taps].sum(axis=0),
        PLUS_SLOT: planes[:taps].sum(axis=0),
    }
    counters = {}
    for row in range(program.first_rows[group], program.first_rows[group + 1]):
        node = dict(zip(NODE_FIELDS, program.nodes[row].tolist(), strict=True))
        counter = slots[node["parent_slot"]].copy()
        position = node["position"]
        for kind, sign in (("minus", -1), ("plus", 1)):
            count = node[f"{kind}_long"] * LONG_BLOCK + node[f"{kind}_short"] * SHORT_BLOCK
            named = program.indices[position : position + count].astype(np.int64) // index_scale(layout)
            counter += sign * planes[named].sum(axis=0)
            position += count
        slots[node["slot"]] = counter
        if node["channel"] != NO_CHANNEL:
            counters[node["channel"]] = counter
    return counters


@pytest.mark.parametrize("alphabet", ["bipolar", "ternary"])
@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_counts_every_channel(name: str, kind: TreeKind, alphabet: Alphabet) -> None:
    rng = np.random.default_rng(0)
    geometry = GEOMETRIES[name]
    layout = PlaneLayout(geometry, alphabet, 8)
    signs = random_signs(geometry, kind, rng)
    program = make_program(layout, grow_trees(signs, geometry.groups, kind, rng))
    channels = geometry.group_out_channels
    for group in range(geometry.groups):
        planes = np.zeros((layout.taps + 1, 5), np.int64)
        taps = layout.weight_taps()
        planes[taps] = rng.integers(0, 2, (layout.weights, 5))
        weights = signs[group * channels : (group + 1) * channels].reshape(channels, -1).astype(np.int64)
        expected = weights @ planes[taps]
        if alphabet == "ternary":
            planes[taps + layout.plane_stride] = rng.integers(0, 2, (layout.weights, 5))
            expected += (1 - weights) @ planes[taps + layout.plane_stride]
        counters = _run_program(program, planes, layout, group)
        assert sorted(counters) == list(range(group * channels, (group + 1) * channels))
        for channel, counter in counters.items():
            np.testing.assert_array_equal(counter, expected[channel - group * channels])


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_expands_from_packed_vectors(cpu: str) -> None:
    runnable_isa(cpu)
    rng = np.random.default_rng(1)
    cases = {}
    for i, (geometry, kind) in enumerate((geometry, kind) for geometry in GEOMETRIES.values() for kind in TREES[::3]):
        layout = PlaneLayout(geometry, ("bipolar", "ternary")[i % 2], 8)
        trees = grow_trees(random_signs(geometry, kind, rng), geometry.groups, kind, rng)
        program = make_program(layout, trees)
        kernel = expand_program(layout, len(program.nodes), len(program.indices))
        cases[f"expand{i}"] = (kernel, program, pack_node_vectors(layout, trees, program))
    kernels = CompiledKernels(cpu, {name: kernel for name, (kernel, _, _) in cases.items()})
    for name, (_, program, vectors) in cases.items():
        indices = np.full_like(program.indices, 0xDEAD)
        kernels.run_in_place(name, [vectors, program.nodes], indices)
        np.testing.assert_array_equal(indices, program.indices, err_msg=name)


def test_a_tree_keeps_few_counters() -> None:
    """The largest subtree is visited last: a complete binary tree of 255 nodes needs 8 slots besides the roots."""
    nodes = 255
    parents = [ALL_MINUS, *((node - 1) // 2 for node in range(1, nodes))]
    layout = PlaneLayout(ConvGeometry(1, 4, 1, 1, nodes, (1, 1)), "bipolar", 8)
    program = make_program(layout, [ChannelTree(np.zeros((nodes, 4), np.bool_), parents)])
    assert program.slots <= 2 + 8


def test_lists_are_padded_to_short_blocks() -> None:
    layout = PlaneLayout(ConvGeometry(1, 64, 1, 1, 1, (2, 2)), "bipolar", 8)
    vector = np.zeros((1, 256), np.bool_)
    vector[0, :101] = True
    program = make_program(layout, [ChannelTree(vector, [ALL_MINUS])])
    assert program.planes == 104
    assert program.nodes[0, 3:7].tolist() == [0, 0, 3, 1]
    assert (program.indices[101:] == layout.zero_plane * index_scale(layout)).all()


@pytest.mark.parametrize(
    ("vectors", "parents", "message"),
    [((3, 64), [1, 0, ALL_PLUS], "forest"), ((3, 64), [-3, 0, 0], "parent -3"), ((3, 64), [3, 0, 0], "parent 3"),
     ((2, 64), [-1, -1], "3 channels"), ((3, 63), [-1, -1, -1], "64 weights"), ((3, 64), [-1, -1], "2 parents")],
)  # fmt: skip
def test_misfit_trees_are_refused(vectors: tuple[int, int], parents: list[int], message: str) -> None:
    layout = PlaneLayout(ConvGeometry(1, 64, 1, 1, 3, (1, 1)), "bipolar", 8)
    with pytest.raises(ValueError, match=message):
        make_program(layout, [ChannelTree(np.zeros(vectors, np.bool_), parents)])


def test_too_many_planes_are_refused() -> None:
    layout = PlaneLayout(ConvGeometry(1, 8192, 1, 1, 1, (3, 3)), "bipolar", 8)
    with pytest.raises(ValueError, match="16-bit"):
        make_program(layout, [ChannelTree(np.zeros((1, 73728), np.bool_), [ALL_MINUS])])
