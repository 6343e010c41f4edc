"""Arrays that border on pages without access, and the convolution kernels run on them; see test_kernel_bounds."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from bnn_compiler.schedules.bit_planes import make_bit_planes
from bnn_compiler.schedules.bit_pool import pool_masks
from bnn_compiler.schedules.bitsliced_bits import (
    bitsliced_conv2d_bits,
    bitsliced_conv2d_bits_constants,
    pack_bit_rows,
)
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_bits import popcount_conv2d_bits, popcount_conv2d_bits_constants
from bnn_compiler.schedules.popcount_conv_fused import BitReader, FusedPart, popcount_conv2d_fused
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.popcount_dense import dense_bits_shape, popcount_dense_constants
from bnn_compiler.schedules.popcount_dense_bits import popcount_dense_bits, popcount_dense_bits_constants
from bnn_compiler.schedules.program_expansion import expand_program, pack_node_vectors
from tests.guard_pages import Side, guarded
from tests.schedules.bitsliced_harness import grow_trees, pool_of, random_layer, random_signs, reader_of
from tests.schedules.fused_cases import CHAINS
from tests.schedules.kernel_harness import Array, CompiledKernels, cpu_target
from tests.schedules.paddings import PADDINGS

_GEOMETRIES = [
    ConvGeometry(1, 70, 1, 1, 3, (1, 1)),
    ConvGeometry(1, 65, 14, 15, 5, (3, 3), pads=(1, 1, 1, 1)),
    ConvGeometry(1, 9, 27, 24, 4, (3, 3), pads=(1, 1, 1, 1)),
    ConvGeometry(5, 33, 11, 12, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=3),
    ConvGeometry(3, 20, 16, 16, 3, (2, 5), pads=(0, 2, 1, 2)),
    ConvGeometry(2, 130, 3, 3, 11, (3, 3), pads=(1, 1, 1, 1)),  # channels in the lanes of popcount kernels
]


def _provoke() -> None:
    victim = guarded(np.zeros(16, np.float32), "after")
    ctypes.c_char.from_address(victim.ctypes.data + victim.nbytes).value  # noqa: B018


def run_guarded_dense(cpu: str, where: Side) -> None:
    """Run dense layers from bits to bits."""
    isa = detect_isa(cpu_target(cpu).tvm_target)
    rng = np.random.default_rng(1)
    shapes = [(1, 70, 9), (3, 130, 64), (2, 64, 1030)]
    kernels = CompiledKernels(
        cpu, {f"dense{i}": popcount_dense_bits(*shape, alphabet="bipolar", isa=isa) for i, shape in enumerate(shapes)}
    )
    for i, (rows, depth, features) in enumerate(shapes):
        weights = popcount_dense_constants(rng.random((features, depth)) < 0.5, alphabet="bipolar")
        thresholds = rng.integers(-5, 6, features)
        constants = popcount_dense_bits_constants(depth, weights, thresholds, thresholds > 2, alphabet="bipolar")
        bits = np.zeros(dense_bits_shape(rows, depth, "bipolar"), np.uint64)
        output = np.zeros(dense_bits_shape(rows, features, "bipolar"), np.uint64)
        arguments = [guarded(array, where) for array in (bits, *constants)]
        kernels.run_in_place(f"dense{i}", arguments, guarded(output, where))


def run_guarded(cpu: str, side: str) -> None:
    """Run planes, expansion and counting of several layers; a stray access kills the process."""
    if side == "provoke":
        _provoke()
        return
    where: Side = "before" if side == "before" else "after"
    run_guarded_dense(cpu, where)
    isa = detect_isa(cpu_target(cpu).tvm_target)
    rng = np.random.default_rng(0)
    for i, geometry in enumerate(_GEOMETRIES):
        padding = list(PADDINGS.values())[0 if i < 3 else i]
        signs = random_signs(geometry, "synthetic", rng)
        layout = make_layout(geometry, padding.alphabet, isa)
        trees = grow_trees(signs, geometry.groups, "synthetic", rng)
        program = make_program(layout, trees)
        constants = bitsliced_conv2d_constants(layout, signs, zero_padded=padding.zero_padded)
        bits, z = random_layer(geometry, padding, signs, rng)
        thresholds = rng.integers(-5, 6, geometry.out_channels)
        threshold_constants = bitsliced_conv2d_bits_constants(
            layout, signs, thresholds, thresholds > 2, zero_padded=padding.zero_padded
        )
        reader = reader_of(geometry, pads=(1, 0, 2, 1))
        pool = pool_of(geometry, i)
        pool_reader = reader_of(pool, pads=(1, 0, 2, 1))
        masks = pool_masks(pool_reader, np.ones(geometry.out_channels, np.bool_))
        options: dict[str, Any] = {"alphabet": padding.alphabet, "zero_padded": padding.zero_padded}
        popcount_constants = popcount_conv2d_constants(geometry, signs, isa=isa, **options)
        bounds = popcount_conv2d_bits_constants(
            geometry, popcount_constants, thresholds, thresholds > 2, alphabet=padding.alphabet
        )
        parameters = list(rng.standard_normal((2, geometry.out_channels)).astype(np.float32))
        chain = CHAINS["residual"] if geometry.batch == 1 else ()
        kernels = CompiledKernels(
            cpu,
            {
                "planes": make_bit_planes(layout, "planes"),
                "expand": expand_program(layout, len(program.nodes), len(program.indices)),
                "count": bitsliced_conv2d(
                    layout, program, constants, has_scale=True, has_bias=True, isa=isa, chain=chain
                ),
                "threshold": bitsliced_conv2d_bits(layout, program, threshold_constants, isa=isa),
                "rows": pack_bit_rows(layout, reader, pad_bit=1),
                "pooled_rows": pack_bit_rows(layout, pool_reader, pad_bit=1, pool=pool, masked=True),
                "popcount": popcount_conv2d(geometry, has_scale=True, has_bias=True, isa=isa, **options),
                "popcount_fused": popcount_conv2d_fused(
                    [FusedPart(geometry, padding.alphabet, padding.zero_padded, True, True, CHAINS["rprelu"])],
                    reader=BitReader(reader, PackRule("ge", "channel"), 1),
                    gives_floats=True,
                    isa=isa,
                ),
                "popcount_bits": popcount_conv2d_bits(geometry, reader, pad_bit=1, isa=isa, **options),
                "popcount_pooled_bits": popcount_conv2d_bits(
                    geometry, pool_reader, pad_bit=1, isa=isa, pool=pool, masked=True, **options
                ),
            },
        )

        def inside(array: Array) -> Array:
            return guarded(array, where)

        planes, indices, nodes = (
            inside(np.zeros(layout.shape, np.uint64)),
            inside(program.indices),
            inside(program.nodes),
        )
        pooled_bits = np.zeros(conv_bits_shape(pool_reader, "bipolar"), np.uint64)
        kernels.run_in_place("planes", [inside(bits)], planes)
        kernels.run_in_place("expand", [inside(pack_node_vectors(layout, trees, program)), nodes], indices)
        y = z.astype(np.float32)
        arguments = [inside(array) for array in (program.first_rows, *constants, *parameters, *[y] * len(chain))]
        kernels.run_in_place("count", [planes, indices, nodes, *arguments], inside(z.astype(np.float32)))
        rows = inside(np.zeros((geometry.out_channels, layout.words_per_row), np.uint64))
        arguments = [inside(array) for array in (program.first_rows, *threshold_constants)]
        kernels.run_in_place("threshold", [planes, indices, nodes, *arguments], rows)
        kernels.run_in_place("rows", [rows], inside(np.zeros(conv_bits_shape(reader, "bipolar"), np.uint64)))
        kernels.run_in_place("pooled_rows", [rows, *map(inside, masks)], inside(pooled_bits))
        bits = inside(bits)
        arguments = [bits, *(inside(array) for array in (*popcount_constants, *parameters))]
        kernels.run_in_place("popcount", arguments, inside(z.astype(np.float32)))
        fused = (*popcount_constants, *parameters, y, *parameters, *parameters, y)
        packed = inside(np.zeros(conv_bits_shape(reader, "bipolar"), np.uint64))
        kernels.run_in_place("popcount_fused", [bits, *(inside(array) for array in fused)], packed)
        arguments = [bits, *(inside(array) for array in bounds)]
        kernels.run_in_place(
            "popcount_bits", arguments, inside(np.zeros(conv_bits_shape(reader, "bipolar"), np.uint64))
        )
        kernels.run_in_place("popcount_pooled_bits", [*arguments, *map(inside, masks)], inside(pooled_bits))
