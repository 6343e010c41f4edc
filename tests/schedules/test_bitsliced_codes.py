"""Bit-sliced convolutions of codes of two to four bits, bit for bit against NumPy: integers, and thresholded bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import make_bit_planes
from bnn_compiler.schedules.bitsliced_bits import (
    bitsliced_conv2d_bits,
    bitsliced_conv2d_bits_constants,
    pack_bit_rows,
)
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.program_expansion import expand_program, pack_node_vectors
from bnn_compiler.schedules.reference import binarise, conv2d_reference, pack_conv_reference, values_of
from tests.schedules.bitsliced_harness import TREES, grow_trees, random_signs, reader_of
from tests.schedules.code_cases import CODES, Codes, code_activations, code_rule
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa

GEOMETRIES = [
    ConvGeometry(1, 64, 9, 9, 10, (3, 3), pads=(1, 1, 1, 1)),
    ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2),
    ConvGeometry(1, 70, 1, 1, 9, (1, 1)),
    ConvGeometry(1, 20, 24, 24, 5, (3, 3), pads=(1, 1, 1, 1)),
    # 15 bits of counter with four-bit codes: more than the un-slicing of bytes takes.
    ConvGeometry(1, 300, 5, 6, 3, (3, 3), pads=(1, 1, 1, 1)),
]


class Case:
    """One layer: kernels, arguments, and what they must give."""

    def __init__(self, codes: Codes, geometry: ConvGeometry, isa: Any, seed: int) -> None:
        rng = np.random.default_rng(seed)
        tree = TREES[seed % len(TREES)]
        self.geometry = geometry
        signs = random_signs(geometry, tree, rng)
        self.layout = make_layout(geometry, codes.alphabet, isa)
        trees = grow_trees(signs, geometry.groups, tree, rng)
        self.program = make_program(self.layout, trees)
        rule = code_rule(codes)
        x = code_activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        self.bits = pack_conv_reference(geometry, x, rule, (), pad_code=codes.pad_code or 0, fused=True)
        values = values_of(binarise(x, rule, (), fused=True), codes.alphabet, codes.zero)
        self.z = conv2d_reference(geometry, values, signs, codes.padding)
        zero_padded = codes.pad_code is None
        constants = bitsliced_conv2d_constants(self.layout, signs, zero_padded=zero_padded, zero=codes.zero)
        thresholds = np.median(self.z, axis=(0, 2, 3)).astype(np.int64)
        inverted = rng.random(len(signs)) < 0.5
        bounds = bitsliced_conv2d_bits_constants(
            self.layout, signs, thresholds, inverted, zero_padded=zero_padded, zero=codes.zero
        )
        tables: list[Array] = [*self.program.tables]
        self.arguments: list[Array] = [*tables, *constants]
        self.bits_arguments: list[Array] = [*tables, *bounds]
        self.reader = reader_of(geometry)
        column = (-1, 1, 1)
        reached = (self.z >= thresholds.reshape(column)) ^ inverted.reshape(column)
        self.expected_bits = pack_conv_reference(
            self.reader, reached.astype(np.float32), PackRule("gt"), (), pad_code=0, fused=True
        )
        self.vectors = pack_node_vectors(self.layout, trees, self.program)
        self.kernels = {
            "planes": make_bit_planes(self.layout, "planes"),
            "expand": expand_program(self.layout, len(self.program.nodes), len(self.program.indices)),
            "count": bitsliced_conv2d(
                self.layout, self.program, constants, has_scale=False, has_bias=False, out_dtype="int32", isa=isa
            ),
            "bits": bitsliced_conv2d_bits(self.layout, self.program, bounds, isa=isa),
            "pack": pack_bit_rows(self.layout, self.reader, pad_bit=0),
        }

    def check(self, kernels: CompiledKernels, suffix: str, name: str) -> None:
        indices = kernels.run(
            f"expand{suffix}", [self.vectors, self.program.nodes], self.program.indices.shape, "uint16"
        )
        np.testing.assert_array_equal(indices, self.program.indices, err_msg=name)
        planes = kernels.run(f"planes{suffix}", [self.bits], self.layout.shape, "uint64")
        z = kernels.run(f"count{suffix}", [planes, *self.arguments], self.z.shape, "int32")
        np.testing.assert_array_equal(z, self.z, err_msg=name)
        rows_shape = (self.geometry.out_channels, self.layout.words_per_row)
        rows = kernels.run(f"bits{suffix}", [planes, *self.bits_arguments], rows_shape, "uint64")
        found = kernels.run(f"pack{suffix}", [rows], self.expected_bits.shape, "uint64")
        np.testing.assert_array_equal(found, self.expected_bits, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_codes(cpu: str) -> None:
    """Every alphabet on one of the geometries; a third of them on the older CPUs."""
    isa = runnable_isa(cpu)
    chosen = list(CODES.items())
    if cpu != "znver4":
        chosen = chosen[X86_CPUS.index(cpu) - 1 :: 3]
    cases = {
        name: Case(codes, GEOMETRIES[seed % len(GEOMETRIES)], isa, seed) for seed, (name, codes) in enumerate(chosen)
    }
    functions = {f"{kind}{i}": kernel for i, case in enumerate(cases.values()) for kind, kernel in case.kernels.items()}
    kernels = CompiledKernels(cpu, functions)
    for i, (name, case) in enumerate(cases.items()):
        case.check(kernels, str(i), name)
