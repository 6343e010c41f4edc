"""Popcount convolutions with what follows them in one kernel, bit for bit against the operators one by one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_planes import make_bit_planes
from bnn_compiler.schedules.bitsliced_conv import bitsliced_conv2d, bitsliced_conv2d_constants
from bnn_compiler.schedules.bitsliced_sizes import make_layout
from bnn_compiler.schedules.channel_program import make_program
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.output_chain import ChainStep
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv_fused import BitReader, FusedPart, output_shape, popcount_conv2d_fused
from bnn_compiler.schedules.reference import epilogue_reference, pack_conv_reference
from tests.schedules.bitsliced_harness import grow_trees, random_layer, random_signs, reader_of
from tests.schedules.code_cases import CODES, code_rule
from tests.schedules.fused_cases import CHAINS, chain_case, part_case, rule_parameters, sliced
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa
from tests.schedules.paddings import PADDINGS
from tests.schedules.test_popcount_conv import GEOMETRIES

CHANNELS = {
    "130-channels": ConvGeometry(2, 20, 7, 9, 130, (3, 3), pads=(1, 1, 1, 1)),
    "64-channels": ConvGeometry(1, 65, 12, 12, 64, (1, 1)),
}
RULES = {
    "sign": PackRule("ge", 0.0),
    "ternary": PackRule("gt", 0.0, "ternary"),
    "per-channel": PackRule("ge", "channel", "unsigned", affine=True),
    "not-equal": PackRule("nle", 0.25),
    "codes": code_rule(CODES["-3,-1,1,3"], per_channel=True),
}


class Case:
    """Parts side by side, their reader, and both results; ``results`` leaves out one of them."""

    def __init__(self, parts: list[Any], rule: PackRule, isa: Isa, seed: int) -> None:
        shape = output_shape([case.part for case in parts])
        self.floats = np.concatenate([case.expected for case in parts], axis=1)
        pads = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)][seed % 3]
        geometry = ConvGeometry(shape[0], shape[1], shape[2], shape[3], 1, (1, 1), pads=pads)
        pad_code = 0 if rule.alphabet == "ternary" else seed % 2
        parameters = rule_parameters(rule, self.floats, np.random.default_rng(seed))
        self.arguments: list[Array] = [array for case in parts for array in case.arguments]
        self.gives_floats, self.gives_bits = seed % 5 != 0, seed % 5 != 1
        self.bits = pack_conv_reference(geometry, self.floats, rule, parameters, pad_code=pad_code, fused=True)
        self.arguments += parameters if self.gives_bits else ()
        self.kernel = popcount_conv2d_fused(
            [case.part for case in parts],
            reader=BitReader(geometry, rule, pad_code) if self.gives_bits else None,
            gives_floats=self.gives_floats,
            isa=isa,
        )


def check(cpu: str, cases: dict[str, Case]) -> None:
    kernels = CompiledKernels(cpu, {f"k{i}": case.kernel for i, case in enumerate(cases.values())})
    for i, (name, case) in enumerate(cases.items()):
        expected = [case.floats] * case.gives_floats + [case.bits] * case.gives_bits
        for wanted, found in zip(expected, kernels.run_all(f"k{i}", case.arguments, expected), strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_chains(cpu: str) -> None:
    """Every geometry under some padding, chain and rule; a third of them on the older CPUs."""
    isa = runnable_isa(cpu)
    chosen = list(
        zip(
            {**GEOMETRIES, **CHANNELS}.items(),
            itertools.cycle(PADDINGS.items()),
            itertools.cycle(CHAINS.items()),
            itertools.cycle(RULES.items()),
            strict=False,
        )
    )
    cases = {}
    for seed, ((name, geometry), (padding_name, padding), (chain_name, chain), (rule_name, rule)) in enumerate(chosen):
        if cpu == "znver4" or seed % 3 == X86_CPUS.index(cpu) - 1:
            # Seven is prime to the lengths of the cycles: neighbours differ in everything.
            part = part_case(geometry, padding, chain, isa, 7 * seed)
            cases[f"{name} {padding_name} {chain_name} {rule_name}"] = Case([part], rule, isa, seed)
    check(cpu, cases)


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_every_chain_on_whole_and_partial_vectors(cpu: str) -> None:
    isa = runnable_isa(cpu)
    names = ["3x3", "9-pixels", "7-pixels", "everything"]
    cases = {}
    for seed, (name, chain) in enumerate(itertools.product(names, CHAINS)):
        part = part_case(GEOMETRIES[name], PADDINGS["bipolar-zero"], CHAINS[chain], isa, seed)
        cases[f"{name} {chain}"] = Case([part], RULES["sign"], isa, seed)
    check(cpu, cases)


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_parts_side_by_side(cpu: str) -> None:
    """Two and three convolutions, some of them of channels that end within a half word."""
    isa = runnable_isa(cpu)
    wide = ConvGeometry(2, 70, 9, 10, 32, (1, 1))
    narrow = ConvGeometry(2, 9, 9, 10, 13, (3, 3), pads=(1, 1, 1, 1))
    cases = {}
    for seed, geometries in enumerate([[wide, wide], [narrow, wide], [wide, narrow, wide]]):
        chains = [CHAINS["residual"] + sliced(CHAINS["rprelu"]) for _ in geometries]
        paddings = itertools.cycle(PADDINGS.values())
        parts = [
            part_case(geometry, padding, chain, isa, 10 * seed + i)
            for i, (geometry, padding, chain) in enumerate(zip(geometries, paddings, chains, strict=False))
        ]
        cases[str(seed)] = Case(parts, RULES["per-channel"], isa, seed + 2)
    check(cpu, cases)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "scale"])
@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_bitsliced_chains(cpu: str, has_bias: bool) -> None:
    """Every chain behind a bit-sliced convolution of one image, whose last block of pixels is partly real."""
    isa = runnable_isa(cpu)
    geometry, padding = GEOMETRIES["3x3"], PADDINGS["bipolar-zero"]
    rng = np.random.default_rng(0)
    signs = random_signs(geometry, "random", rng)
    layout = make_layout(geometry, padding.alphabet, isa)
    program = make_program(layout, grow_trees(signs, 1, "random", rng))
    constants = bitsliced_conv2d_constants(layout, signs, zero_padded=padding.zero_padded)
    bits, z = random_layer(geometry, padding, signs, rng)
    scale, bias = rng.standard_normal((2, geometry.out_channels)).astype(np.float32)
    shift = bias.reshape(-1, 1, 1) if has_bias else None
    y = epilogue_reference(z, scale.reshape(-1, 1, 1), shift, fused=isa.fused_multiply_add)
    options: dict[str, Any] = {"has_scale": True, "has_bias": has_bias, "isa": isa}
    kernels = {
        name: bitsliced_conv2d(layout, program, constants, chain=chain, **options) for name, chain in CHAINS.items()
    }
    compiled = CompiledKernels(cpu, {"planes": make_bit_planes(layout, "planes"), **kernels})
    planes = compiled.run("planes", [bits], layout.shape, "uint64")
    for name, chain in CHAINS.items():
        operands, expected = chain_case(chain, y, rng)
        arguments = [planes, *program.tables, *constants, scale, *[bias][: int(has_bias)], *operands]
        np.testing.assert_array_equal(compiled.run(name, arguments, y.shape, "float32"), expected, err_msg=name)
    batch = make_layout(GEOMETRIES["pointwise"], padding.alphabet, isa)
    with pytest.raises(ValueError, match="one image"):
        bitsliced_conv2d(batch, program, constants, chain=CHAINS["residual"], **options)


def test_what_does_not_fit_is_refused() -> None:
    isa = runnable_isa("x86-64")
    geometry = GEOMETRIES["3x3"]
    part = FusedPart(geometry, "bipolar", True, False, False)
    reader = BitReader(reader_of(GEOMETRIES["pointwise"]), PackRule(), 0)
    with pytest.raises(ValueError, match="do not fit"):
        popcount_conv2d_fused([part], reader=reader, gives_floats=True, isa=isa)
    with pytest.raises(ValueError, match="no result"):
        popcount_conv2d_fused([part], reader=None, gives_floats=False, isa=isa)
    other = FusedPart(GEOMETRIES["pointwise"], "bipolar", True, False, False)
    with pytest.raises(ValueError, match="side by side"):
        popcount_conv2d_fused([part, other], reader=None, gives_floats=True, isa=isa)
    with pytest.raises(ValueError, match="operand"):
        ChainStep("add")
    with pytest.raises(ValueError, match="second"):
        ChainStep("prelu", "channel", swapped=True)
