"""Popcount convolutions that give bits, bit for bit against thresholds on the integers of NumPy's convolution."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bnn_compiler.schedules.bit_pool import pool_masks
from bnn_compiler.schedules.feature_bits import flat_reader
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv import popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_bits import popcount_conv2d_bits, popcount_conv2d_bits_constants
from bnn_compiler.schedules.reference import (
    binarise,
    conv2d_reference,
    pack_conv_reference,
    pack_dense_reference,
    pool_bits_reference,
    values_of,
)
from tests.schedules.bitsliced_harness import pool_of, random_layer, random_signs, random_thresholds, reader_of
from tests.schedules.code_cases import CODES, Codes, code_activations, code_rule
from tests.schedules.kernel_harness import X86_CPUS, Array, CompiledKernels, runnable_isa
from tests.schedules.paddings import PADDINGS, Padding
from tests.schedules.test_popcount_conv import GEOMETRIES

WRITERS = {
    **GEOMETRIES,
    "130-channels": ConvGeometry(2, 20, 7, 9, 130, (3, 3), pads=(1, 1, 1, 1)),
    "64-channels": ConvGeometry(1, 65, 12, 12, 64, (1, 1)),
}
READER_PADS = [(0, 0, 0, 0), (1, 1, 1, 1), (2, 0, 1, 3)]


class Case:
    """A layer, its reader's padding, and the bits that must come out."""

    def __init__(
        self, writer: ConvGeometry, source: Padding | Codes, isa: Isa, seed: int, *, pooled: bool = False
    ) -> None:
        rng = np.random.default_rng(seed)
        signs = random_signs(writer, "random", rng)
        options: dict[str, Any] = {"alphabet": source.alphabet}
        if isinstance(source, Padding):
            self.bits, z = random_layer(writer, source, signs, rng)
            options["zero_padded"] = source.zero_padded
        else:
            rule = code_rule(source)
            x = code_activations(rng, (writer.batch, writer.in_channels, writer.height, writer.width))
            self.bits = pack_conv_reference(writer, x, rule, (), pad_code=source.pad_code or 0, fused=True)
            values = values_of(binarise(x, rule, (), fused=True), source.alphabet, source.zero)
            z = conv2d_reference(writer, values, signs, source.padding)
            options |= {"zero_padded": source.pad_code is None, "zero": source.zero}
        thresholds, inverted = random_thresholds(z, rng), rng.random(len(signs)) < 0.3
        constants = popcount_conv2d_constants(writer, signs, isa=isa, **options)
        self.constants = popcount_conv2d_bits_constants(
            writer, constants, thresholds, inverted, alphabet=source.alphabet
        )
        pad_bit = seed % 2
        column = (-1, 1, 1)
        reached = (z >= thresholds.reshape(column)) ^ inverted.reshape(column)
        pool = pool_of(writer, seed) if pooled else None
        reader = reader_of(pool or writer, pads=READER_PADS[seed % 3])
        if pool is not None:
            joined_by_and = rng.random(len(signs)) < (seed % 3) / 2
            reached = pool_bits_reference(pool, reached, joined_by_and)
            masks = pool_masks(reader, joined_by_and)
            self.constants = (*self.constants, *masks)
            options |= {"pool": pool, "masked": bool(masks)}
        self.kernel = popcount_conv2d_bits(writer, reader, pad_bit=pad_bit, isa=isa, **options)
        self.expected = pack_conv_reference(
            reader, reached.astype(np.float32), PackRule("gt"), (), pad_code=pad_bit, fused=True
        )


def _check(cpu: str, cases: dict[str, Case]) -> None:
    kernels = CompiledKernels(cpu, {f"k{i}": case.kernel for i, case in enumerate(cases.values())})
    for i, (name, case) in enumerate(cases.items()):
        arguments: list[Array] = [case.bits, *case.constants]
        found = kernels.run(f"k{i}", arguments, case.expected.shape, "uint64")
        np.testing.assert_array_equal(found, case.expected, err_msg=name)


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_bits(cpu: str) -> None:
    """Every geometry, each under one of the paddings; a third of them on the older CPUs."""
    isa = runnable_isa(cpu)
    chosen = list(zip(WRITERS.items(), itertools.cycle(PADDINGS.items()), strict=False))
    chosen = chosen if cpu == "znver4" else chosen[X86_CPUS.index(cpu) - 1 :: 3]
    _check(
        cpu,
        {
            f"{name} {padding_name}": Case(writer, padding, isa, seed)
            for seed, ((name, writer), (padding_name, padding)) in enumerate(chosen)
        },
    )


@pytest.mark.parametrize("cpu", X86_CPUS)
def test_pooled_bits(cpu: str) -> None:
    """Every geometry before one of the max-pools; a third of them on the older CPUs."""
    isa = runnable_isa(cpu)
    chosen = list(enumerate(WRITERS.items()))[:: 1 if cpu == "znver4" else 3]
    padding = PADDINGS["bipolar-zero"]
    _check(cpu, {name: Case(writer, padding, isa, seed, pooled=True) for seed, (name, writer) in chosen})


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
@pytest.mark.parametrize("channels", [9, 64, 65, 300])
def test_the_only_pixel_for_a_dense_layer(channels: int, cpu: str) -> None:
    isa = runnable_isa(cpu)
    rng = np.random.default_rng(channels)
    options: dict[str, Any] = {"alphabet": "bipolar", "zero_padded": False}
    writers = {"k0": ConvGeometry(3, 20, 3, 2, channels, (3, 2)), "k1": ConvGeometry(2, 20, 3, 4, channels, (2, 3))}
    functions, runs = {}, {}
    for name, writer in writers.items():
        signs = random_signs(writer, "random", rng)
        bits, z = random_layer(writer, PADDINGS["bipolar-minus"], signs, rng)
        thresholds, inverted = random_thresholds(z, rng), rng.random(channels) < 0.3
        constants = popcount_conv2d_constants(writer, signs, isa=isa, **options)
        arguments = popcount_conv2d_bits_constants(writer, constants, thresholds, inverted, alphabet="bipolar")
        reached = (z >= thresholds.reshape(-1, 1, 1)) ^ inverted.reshape(-1, 1, 1)
        pool = pool_of(writer, 0) if name == "k1" else None  # 2x2 to a pixel
        if pool is not None:
            joined_by_and = rng.random(channels) < 0.5
            reached = pool_bits_reference(pool, reached, joined_by_and)
            arguments = (*arguments, *pool_masks(flat_reader(pool), joined_by_and))
        functions[name] = popcount_conv2d_bits(writer, None, isa=isa, pool=pool, masked=pool is not None, **options)
        features = reached.reshape(writer.batch, channels).astype(np.float32)
        runs[name] = ([bits, *arguments], pack_dense_reference(features, PackRule("gt"), (), fused=True))
    kernels = CompiledKernels(cpu, functions)
    for name, (inputs, expected) in runs.items():
        np.testing.assert_array_equal(kernels.run(name, inputs, expected.shape, "uint64"), expected, err_msg=name)
    with pytest.raises(ValueError, match="do not fit"):
        popcount_conv2d_bits(writers["k1"], None, isa=isa, **options)


def test_a_pool_that_does_not_fit_is_refused() -> None:
    isa = runnable_isa("x86-64")
    writer = ConvGeometry(1, 16, 5, 6, 64, (1, 1))
    options: dict[str, Any] = {"alphabet": "bipolar", "zero_padded": False, "pad_bit": 0, "isa": isa}
    pool = pool_of(writer, 0)
    with pytest.raises(ValueError, match="do not fit a convolution"):
        popcount_conv2d_bits(writer, reader_of(writer), pool=pool, **options)
    with pytest.raises(ValueError, match="do not fit a max-pool"):
        popcount_conv2d_bits(writer, reader_of(pool), pool=replace(pool, height=7), **options)
    outside = replace(pool, pads=(2, 0, 0, 0))  # the first window holds padding alone
    with pytest.raises(ValueError, match="do not fit a max-pool"):
        popcount_conv2d_bits(writer, reader_of(outside), pool=outside, **options)


@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_codes(cpu: str) -> None:
    isa = runnable_isa(cpu)
    chosen = list(CODES.items())[:: 1 if cpu == "znver4" else 3]
    _check(cpu, {name: Case(WRITERS["everything"], codes, isa, seed) for seed, (name, codes) in enumerate(chosen)})


def test_groups_of_whole_words() -> None:
    """A reader of two groups of 64 channels; other groups would begin within a word."""
    isa = runnable_isa("x86-64")
    writer = ConvGeometry(1, 16, 5, 6, 128, (1, 1))
    options: dict[str, Any] = {"alphabet": "unsigned", "zero_padded": True}
    rng = np.random.default_rng(0)
    signs = random_signs(writer, "random", rng)
    bits, z = random_layer(writer, PADDINGS["unsigned-zero"], signs, rng)
    thresholds = random_thresholds(z, rng)
    constants = popcount_conv2d_bits_constants(
        writer,
        popcount_conv2d_constants(writer, signs, isa=isa, **options),
        thresholds,
        thresholds > 10**6,
        alphabet="unsigned",
    )
    reader = reader_of(writer, groups=2, pads=(1, 1, 1, 1))
    kernels = CompiledKernels("x86-64", {"k": popcount_conv2d_bits(writer, reader, pad_bit=0, isa=isa, **options)})
    reached = (z >= thresholds.reshape(-1, 1, 1)).astype(np.float32)
    expected = pack_conv_reference(reader, reached, PackRule("gt"), (), pad_code=0, fused=True)
    np.testing.assert_array_equal(kernels.run("k", [bits, *constants], expected.shape, "uint64"), expected)
    with pytest.raises(ValueError, match="do not fit"):
        popcount_conv2d_bits(writer, reader_of(writer, groups=4), pad_bit=0, isa=isa, **options)
