"""The packing and popcount kernels for ARM under qemu-user, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.pack import pack_conv_activations, pack_dense_activations
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants
from bnn_compiler.schedules.reference import (
    binarise,
    conv2d_reference,
    dense_reference,
    epilogue_reference,
    pack_conv_reference,
    pack_dense_reference,
    values_of,
)
from tests.schedules.arm_emulation import MACHINES, Case, check_on, emulated_machine
from tests.schedules.code_cases import (
    CODES,
    code_activations,
    code_parameters,
    code_rule,
    conv_case,
    dense_case,
    pack_options,
)


def _conv_case(
    geometry: ConvGeometry, isa: Isa, rng: np.random.Generator, *, alphabet: Any, zero_padded: bool
) -> list[Case]:
    predicate: Any = "gt"
    rule = PackRule(predicate, alphabet=alphabet)
    x = rng.choice([-1.0, 0.0, 1.0], (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
    x = x.astype(np.float32)
    signs = rng.random((geometry.out_channels, geometry.group_in_channels, *geometry.kernel)) < 0.5
    scale, bias = rng.standard_normal((2, geometry.out_channels)).astype(np.float32)
    bits = pack_conv_reference(geometry, x, rule, (), pad_code=0, fused=True)
    values = values_of(binarise(x, rule, (), fused=True), alphabet)
    z = conv2d_reference(geometry, values, signs, 0 if zero_padded or alphabet != "bipolar" else -1)
    y = epilogue_reference(z, scale.reshape(-1, 1, 1), bias.reshape(-1, 1, 1), fused=isa.fused_multiply_add)
    constants = popcount_conv2d_constants(geometry, signs, alphabet=alphabet, zero_padded=zero_padded, isa=isa)
    pack = pack_conv_activations(geometry, isa=isa, predicate=predicate, alphabet=alphabet)
    conv = popcount_conv2d(geometry, alphabet=alphabet, zero_padded=zero_padded, has_scale=True, has_bias=True, isa=isa)
    return [Case(pack, [x], bits), Case(conv, [bits, *constants, scale, bias], y)]


def _dense_case(rows: int, in_features: int, out_features: int, isa: Isa, rng: np.random.Generator) -> list[Case]:
    rule = PackRule("ge", "channel")
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    threshold = rng.standard_normal(in_features).astype(np.float32)
    signs = rng.random((out_features, in_features)) < 0.5
    bits = pack_dense_reference(x, rule, (threshold,), fused=True)
    z = dense_reference(values_of(binarise(x, rule, (threshold,), fused=True), "bipolar"), signs)
    pack = pack_dense_activations(rows, in_features, isa=isa, threshold="channel")
    dense = popcount_dense(
        rows, in_features, out_features, alphabet="bipolar", has_scale=False, has_bias=False, out_dtype="int32", isa=isa
    )
    constants = popcount_dense_constants(signs, alphabet="bipolar")
    return [Case(pack, [x, threshold], bits), Case(dense, [bits, *constants], z)]


def _code_cases(geometry: ConvGeometry, isa: Isa) -> list[Case]:
    """Codes of two to four bits: packed with thresholds per channel, a convolution and a matrix product of each."""
    rng = np.random.default_rng(1)
    cases = []
    for seed, name in enumerate(["-3,-1,1,3", "uneven", "1..16"]):
        rule = code_rule(CODES[name], per_channel=True, affine=True)
        x = code_activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # NEON of ARMv7 takes subnormal numbers for 0
        parameters = code_parameters(rng, rule, geometry.in_channels)
        pack = pack_conv_activations(geometry, isa=isa, pad_code=2, **pack_options(rule))
        bits = pack_conv_reference(geometry, x, rule, tuple(parameters), pad_code=2, fused=True)
        cases.append(Case(pack, [x, *parameters], bits))
        cases.append(Case(*conv_case(CODES[name], geometry, isa, seed)))
        cases.append(Case(*dense_case(CODES[name], (3, 1025, 17), isa, seed)))
    return cases


def _overflow_case(depth: int, isa: Isa) -> list[Case]:
    """Every weight disagrees with every activation."""
    signs = np.zeros((9, depth), np.bool_)
    bits = pack_dense_reference(np.ones((1, depth), np.float32), PackRule(), (), fused=True)
    dense = popcount_dense(1, depth, 9, alphabet="bipolar", has_scale=False, has_bias=False, out_dtype="int32", isa=isa)
    inputs = [bits, *popcount_dense_constants(signs, alphabet="bipolar")]
    return [Case(dense, inputs, np.full((1, 9), -depth, np.int32))]


@pytest.mark.slow
@pytest.mark.parametrize("name", MACHINES)
def test_arm_kernels(name: str, tmp_path: Path) -> None:
    machine = emulated_machine(name)
    isa = machine.isa
    rng = np.random.default_rng(0)
    everything = ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2)
    listed = [
        *_conv_case(
            ConvGeometry(1, 64, 7, 7, 9, (3, 3), pads=(1, 1, 1, 1)), isa, rng, alphabet="bipolar", zero_padded=True
        ),
        *_conv_case(everything, isa, rng, alphabet="bipolar", zero_padded=False),
        *_conv_case(everything, isa, rng, alphabet="unsigned", zero_padded=True),
        *_conv_case(everything, isa, rng, alphabet="ternary", zero_padded=True),
        *_code_cases(everything, isa),
        # Output channels in the lanes, on NEON and in portable code.
        *_conv_case(ConvGeometry(2, 130, 3, 3, 21, (3, 3)), isa, rng, alphabet="bipolar", zero_padded=True),
        *_conv_case(ConvGeometry(2, 1300, 1, 5, 9, (1, 3)), isa, rng, alphabet="bipolar", zero_padded=True),
        *_conv_case(ConvGeometry(1, 5, 1, 1, 3, (1, 1)), isa, rng, alphabet="bipolar", zero_padded=True),
        *_dense_case(1, 1025, 43, isa, rng),
        *_dense_case(6, 300, 17, isa, rng),
        *_overflow_case(76_800, isa),
        # Past the 4,095 words that NEON's 16-bit counters take.
        *_overflow_case(4_200 * 64, isa),
    ]
    cases = {f"k{index}": case for index, case in enumerate(listed)}
    check_on(machine, cases, tmp_path)
