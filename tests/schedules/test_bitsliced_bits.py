"""Bit-sliced convolutions that give bits, bit for bit against thresholds on the integers of NumPy's convolution."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import PlaneLayout, make_bit_planes
from bnn_compiler.schedules.bit_pool import pool_masks
from bnn_compiler.schedules.bitsliced_bits import (
    bitsliced_conv2d_bits,
    bitsliced_conv2d_bits_constants,
    pack_bit_rows,
)
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.schedules.reference import pack_conv_reference, pool_bits_reference
from tests.schedules.bitsliced_harness import (
    TREES,
    grow_trees,
    pool_of,
    random_layer,
    random_signs,
    random_thresholds,
    reader_of,
)
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa
from tests.schedules.paddings import PADDINGS, Padding
from tests.schedules.test_bitsliced_conv import GEOMETRIES


@dataclass(frozen=True)
class Case:
    writer: ConvGeometry
    padding: Padding
    reader_groups: int = 1
    reader_pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_bit: int = 0
    pool: ConvGeometry | None = None

    @property
    def reader(self) -> ConvGeometry:
        """The convolution that the bits are for."""
        return reader_of(self.pool or self.writer, groups=self.reader_groups, pads=self.reader_pads)


def _check(cpu: str, cases: dict[str, Case]) -> None:
    isa = runnable_isa(cpu)
    functions: dict[str, Any] = {}
    runs: list[tuple[str, PlaneLayout, Array, list[Array], list[Array], Array]] = []
    for i, (name, case) in enumerate(cases.items()):
        rng = np.random.default_rng(i)
        tree = TREES[i % len(TREES)]
        signs = random_signs(case.writer, tree, rng)
        layout = make_layout(case.writer, case.padding.alphabet, isa)
        program = make_program(layout, grow_trees(signs, case.writer.groups, tree, rng))
        bits, z = random_layer(case.writer, case.padding, signs, rng)
        thresholds, inverted = random_thresholds(z, rng), rng.random(len(signs)) < 0.3
        constants = bitsliced_conv2d_bits_constants(
            layout, signs, thresholds, inverted, zero_padded=case.padding.zero_padded
        )
        functions[f"planes{i}"] = make_bit_planes(layout, f"planes{i}")
        functions[f"count{i}"] = bitsliced_conv2d_bits(layout, program, constants, isa=isa)
        column = (-1, 1, 1)
        reached = (z >= thresholds.reshape(column)) ^ inverted.reshape(column)
        masks: list[Array] = []
        if case.pool is not None:
            joined_by_and = rng.random(len(signs)) < (i % 3) / 2
            reached = pool_bits_reference(case.pool, reached, joined_by_and)
            masks = list(pool_masks(case.reader, joined_by_and))
        functions[f"pack{i}"] = pack_bit_rows(
            layout, case.reader, pad_bit=case.pad_bit, pool=case.pool, masked=bool(masks)
        )
        expected = pack_conv_reference(
            case.reader, reached.astype(np.float32), PackRule("gt"), (), pad_code=case.pad_bit, fused=True
        )
        arguments: list[Array] = [*program.tables, *constants]
        runs.append((name, layout, bits, arguments, masks, expected))
    kernels = CompiledKernels(cpu, functions)
    for i, (name, layout, bits, arguments, masks, expected) in enumerate(runs):
        planes = kernels.run(f"planes{i}", [bits], layout.shape, "uint64")
        rows_shape = (layout.geometry.out_channels, layout.words_per_row)
        rows = kernels.run(f"count{i}", [planes, *arguments], rows_shape, "uint64")
        assert expected.shape == conv_bits_shape(cases[name].reader, "bipolar")
        found = kernels.run(f"pack{i}", [rows, *masks], expected.shape, "uint64")
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_shapes(cpu: str) -> None:
    """Every geometry, each under one of the paddings; a third of them on the older CPUs."""
    paddings = itertools.cycle(PADDINGS.values())
    cases = {}
    for i, (name, geometry) in enumerate(GEOMETRIES.items()):
        groups = 2 if geometry.out_channels % 2 == 0 else 1
        pads = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)][i % 3]
        cases[name] = Case(geometry, next(paddings), groups, pads, i % 2)
    _check(cpu, cases if cpu == "znver4" else dict(list(cases.items())[X86_CPUS.index(cpu) - 1 :: 3]))


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_pools(cpu: str) -> None:
    """Every geometry before one of the max-pools; a third of them on the older CPUs."""
    cases = {}
    for i, (name, geometry) in list(enumerate(GEOMETRIES.items()))[:: 1 if cpu == "znver4" else 3]:
        groups = 2 if geometry.out_channels % 2 == 0 else 1
        pads = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)][i % 3]
        cases[name] = Case(geometry, PADDINGS["bipolar-zero"], groups, pads, i % 2, pool_of(geometry, i))
    _check(cpu, cases)


@pytest.mark.parametrize("padding", PADDINGS)
def test_paddings(padding: str) -> None:
    cases = {name: Case(GEOMETRIES[name], PADDINGS[padding], 1, (1, 1, 1, 1), 1) for name in ("3x3", "everything")}
    _check("znver4", cases)


def test_rows_of_another_shape_are_refused() -> None:
    layout = make_layout(GEOMETRIES["3x3"], "bipolar", runnable_isa("x86-64"))
    with pytest.raises(ValueError, match="do not fit"):
        pack_bit_rows(layout, GEOMETRIES["one-pixel"], pad_bit=0)
