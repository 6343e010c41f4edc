"""Float convolutions that give bits, bit for bit: small integers, whose sums are exact in any order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.float_conv_bits import PackedConvPlan, pack_packed_conv_weight, packed_conv_kernel
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.reference import pack_conv_reference
from bnn_compiler.worker_threads import use_threads
from tests.schedules.bitsliced_harness import reader_of
from tests.schedules.code_cases import CODES, code_rule
from tests.schedules.fused_cases import rule_parameters
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa

GEOMETRIES = {
    "stem": ConvGeometry(1, 3, 32, 32, 64, (3, 3), pads=(1, 1, 1, 1)),
    "unpadded": ConvGeometry(2, 3, 32, 32, 64, (3, 3)),
    "5x5": ConvGeometry(3, 1, 20, 21, 20, (5, 5), pads=(2, 1, 0, 2)),
    "dilated": ConvGeometry(1, 2, 19, 23, 132, (3, 2), pads=(2, 1, 2, 0), dilations=(2, 1)),
    "1x1": ConvGeometry(1, 7, 17, 16, 36, (1, 1)),
    "a-row": ConvGeometry(1, 3, 1, 40, 8, (1, 3), pads=(0, 1, 0, 1)),
}
RULES = {
    "ge": PackRule("ge", "channel"),
    "affine": PackRule("gt", 0.5, affine=True),
    "ternary": PackRule("gt", 0.0, "ternary"),
    "codes": code_rule(CODES["-3,-1,1,3"], per_channel=True),
    "not-equal": PackRule("nle", 1.0),
}


class Case:
    """A kernel, its arguments and the bits that must come out."""

    def __init__(self, geometry: ConvGeometry, rule: PackRule, isa: Isa, seed: int) -> None:
        rng = np.random.default_rng(seed)
        reader = reader_of(geometry, pads=[(1, 1, 1, 1), (0, 0, 0, 0), (2, 0, 1, 3)][seed % 3])
        pad_code = 0 if rule.alphabet == "ternary" else seed % 2
        has_bias = seed % 4 != 3
        x = rng.integers(-3, 4, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        weight = rng.integers(-3, 4, (geometry.out_channels, geometry.in_channels, *geometry.kernel))
        bias = rng.integers(-3, 4, geometry.out_channels) * has_bias
        y = convolution(geometry, x, weight) + bias.reshape(-1, 1, 1)
        parameters = rule_parameters(rule, y.astype(np.float32), rng)
        self.kernel = packed_conv_kernel(PackedConvPlan(geometry, reader, rule, pad_code, has_bias, isa))
        self.arguments: list[Array] = [x.astype(np.float32), pack_packed_conv_weight(weight.astype(np.float32))]
        self.arguments += [bias.astype(np.float32)] * has_bias + list(parameters)
        self.expected = pack_conv_reference(
            reader, y.astype(np.float32), rule, parameters, pad_code=pad_code, fused=isa.fused_multiply_add
        )


def convolution(g: ConvGeometry, x: Array, weight: Array) -> Array:
    """The integer convolution [N, O, OH, OW], stride 1."""
    top, left, bottom, right = g.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    total = np.zeros((g.batch, g.out_channels, g.out_height, g.out_width), np.int64)
    for ky, kx in np.ndindex(*g.kernel):
        y, z = ky * g.dilations[0], kx * g.dilations[1]
        window = padded[:, :, y : y + g.out_height, z : z + g.out_width]
        total += np.einsum("oc,nchw->nohw", weight[:, :, ky, kx], window)
    return total


def check(cpu: str, cases: dict[str, Case]) -> None:
    kernels = CompiledKernels(cpu, {f"k{i}": case.kernel for i, case in enumerate(cases.values())})
    for i, (name, case) in enumerate(cases.items()):
        found = kernels.run(f"k{i}", case.arguments, case.expected.shape, "uint64")
        np.testing.assert_array_equal(found, case.expected, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_bits(cpu: str) -> None:
    """Every geometry under some rule, and every rule behind some geometry."""
    isa = runnable_isa(cpu)
    rules = list(RULES.items())
    cases = {}
    for seed, (name, geometry) in enumerate(GEOMETRIES.items()):
        rule_name, rule = rules[(seed + X86_CPUS.index(cpu)) % len(rules)]
        cases[f"{name} {rule_name}"] = Case(geometry, rule, isa, seed)
    check(cpu, cases)


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_share_bands_or_images(batch: int) -> None:
    isa = runnable_isa("znver4")
    geometry = ConvGeometry(batch, 3, 64, 40, 64, (3, 3), pads=(1, 1, 1, 1))
    plan = PackedConvPlan(geometry, reader_of(geometry), RULES["ge"], 0, True, isa)
    assert plan.is_shared and plan.band_rows < geometry.out_height

    def run() -> None:
        use_threads(2)
        check("znver4", {"shared": Case(geometry, RULES["ge"], isa, 0)})

    with ThreadPoolExecutor(1) as caller:  # the number of threads is the calling thread's
        caller.submit(run).result()


@pytest.mark.parametrize(
    "change",
    [{"strides": (2, 2)}, {"groups": 3}, {"out_channels": 63}, {"in_channels": 300}, {"width": 3, "height": 3}],
    ids=",".join,
)
def test_others_are_refused(change: dict[str, Any]) -> None:
    isa = runnable_isa("x86-64")
    sizes: dict[str, Any] = {"in_channels": 3, "height": 32, "width": 32, "out_channels": 63, "strides": (1, 1)}
    geometry = ConvGeometry(1, kernel=(3, 3), **{**sizes, "out_channels": 66, **change})
    if change == {"width": 3, "height": 3}:
        geometry = ConvGeometry(1, 3, 3, 3, 64, (3, 3))  # one pixel
    plan = PackedConvPlan(geometry, reader_of(geometry), RULES["ge"], 0, False, isa)
    with pytest.raises(ValueError, match="no kernel packs"):
        packed_conv_kernel(plan)
