"""The bit-sliced kernels for ARM under qemu-user, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import make_bit_planes
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.program_expansion import expand_program, pack_node_vectors
from bnn_compiler.schedules.reference import epilogue_reference
from tests.schedules.arm_emulation import MACHINES, Case, check_on, emulated_machine
from tests.schedules.bitsliced_harness import grow_trees, random_layer, random_signs
from tests.schedules.kernel_harness import CompiledKernels
from tests.schedules.paddings import PADDINGS

GEOMETRIES = {
    "bipolar-zero": ConvGeometry(1, 65, 13, 11, 5, (3, 3), pads=(1, 1, 1, 1)),
    "ternary": ConvGeometry(3, 20, 7, 9, 6, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2),
}


def _cases(padding_name: str, isa: Isa, rng: np.random.Generator) -> dict[str, Case]:
    """Planes, expansion and counting of one layer; the planes that counting reads are made on this machine."""
    geometry, padding = GEOMETRIES[padding_name], PADDINGS[padding_name]
    signs = random_signs(geometry, "synthetic", rng)
    layout = make_layout(geometry, padding.alphabet, isa)
    trees = grow_trees(signs, geometry.groups, "synthetic", rng)
    program = make_program(layout, trees)
    constants = bitsliced_conv2d_constants(layout, signs, zero_padded=padding.zero_padded)
    bits, z = random_layer(geometry, padding, signs, rng)
    scale, bias = rng.standard_normal((2, geometry.out_channels)).astype(np.float32)
    y = epilogue_reference(z, scale.reshape(-1, 1, 1), bias.reshape(-1, 1, 1), fused=isa.fused_multiply_add)
    make_planes = make_bit_planes(layout, "planes")
    planes = CompiledKernels("x86-64", {"planes": make_planes}).run("planes", [bits], layout.shape, "uint64")
    count = bitsliced_conv2d(layout, program, constants, has_scale=True, has_bias=True, isa=isa)
    expand = expand_program(layout, len(program.nodes), len(program.indices))
    tables = [*program.tables, *constants, scale, bias]
    prefix = padding_name.partition("-")[0]
    return {
        f"{prefix}_planes": Case(make_planes, [bits], planes),
        f"{prefix}_expand": Case(expand, [pack_node_vectors(layout, trees, program), program.nodes], program.indices),
        f"{prefix}_count": Case(count, [planes, *tables], y),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_bitsliced_kernels_on_arm(name: str, tmp_path: Path) -> None:
    machine = emulated_machine(name)
    rng = np.random.default_rng(0)
    cases: dict[str, Case] = {}
    for padding_name in GEOMETRIES:
        cases |= _cases(padding_name, machine.isa, rng)
    check_on(machine, cases, tmp_path)
