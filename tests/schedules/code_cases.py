"""Activations of several bits for the tests of kernels, and what the kernels must make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import Alphabet, default_zero
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
from tests.schedules.kernel_harness import Array


@dataclass(frozen=True)
class Codes:
    """An alphabet of codes, its ``zero``, and what the padding ring is: ONNX's 0 (None), or a code."""

    alphabet: Alphabet
    codes: tuple[int, ...]
    zero: int | None = None
    pad_code: int | None = None

    @property
    def padding(self) -> int:
        """The value of the ring in units of z."""
        if self.pad_code is None:
            return 0
        zero = default_zero(self.alphabet) if self.zero is None else self.zero
        return (2 if self.alphabet.startswith("bipolar") else 1) * self.pad_code - zero


CODES = {
    "0..3": Codes("unsigned2", (0, 1, 2, 3)),
    "-1,0,1,2 zero as code": Codes("unsigned2", (0, 1, 2, 3), zero=1, pad_code=1),
    "-2,0,2": Codes("unsigned2", (0, 1, 2), zero=1),
    "-3,-1,1,3": Codes("bipolar2", (0, 1, 2, 3)),
    "-3,-1,1,3 ring 3": Codes("bipolar2", (0, 1, 2, 3), pad_code=3),
    "-5..5 odd": Codes("bipolar3", (0, 1, 2, 3, 4, 5), zero=5),
    "0..7": Codes("unsigned3", tuple(range(8)), pad_code=6),
    "uneven": Codes("unsigned3", (0, 3, 4), zero=2),
    "-15..15 odd": Codes("bipolar4", tuple(range(16))),
    "1..16": Codes("unsigned4", tuple(range(16)), zero=-1),
}


def code_rule(codes: Codes, *, per_channel: bool = False, affine: bool = False, predicate: Any = "ge") -> PackRule:
    thresholds: Any = "channel" if per_channel else tuple(np.linspace(-1, 1, len(codes.codes) - 1).tolist())
    return PackRule(predicate, thresholds, codes.alphabet, affine=affine, codes=codes.codes)


def code_parameters(rng: np.random.Generator, rule: PackRule, length: int) -> list[Array]:
    """Ascending thresholds, some of them equal, some never reached; directions ±1."""
    parameters: list[Array] = []
    if rule.affine:
        parameters = [rng.choice([-1, 1], length).astype(np.float32), np.zeros(length, np.float32)]
    if rule.threshold == "channel":
        thresholds = np.sort(rng.integers(-8, 9, (len(rule.codes) - 1, length)) / 4, axis=0).astype(np.float32)
        thresholds[-1, ::5] = np.nan
        thresholds[0, ::7] = -np.inf
        parameters.append(thresholds)
    return parameters


def code_activations(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Multiples of a quarter, so that thresholds are hit, and what else floats are."""
    x = rng.integers(-10, 11, shape) / 4
    special = rng.choice([-0.0, np.nan, np.inf, -np.inf, 1e-40, 0.33], shape)
    return np.where(rng.random(shape) < 0.2, special, x).astype(np.float32)


def pack_options(rule: PackRule) -> dict[str, Any]:
    return {name: getattr(rule, name) for name in ("predicate", "threshold", "alphabet", "affine", "codes")}


def conv_case(codes: Codes, geometry: ConvGeometry, isa: Isa, seed: int) -> tuple[Any, list[Array], Array]:
    """The kernel, its arguments, and the integers it must give (plain) or what an epilogue makes of them."""
    rng = np.random.default_rng(seed)
    rule = code_rule(codes)
    x = code_activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
    signs = rng.random((geometry.out_channels, geometry.group_in_channels, *geometry.kernel)) < 0.5
    bits = pack_conv_reference(geometry, x, rule, (), pad_code=codes.pad_code or 0, fused=True)
    options: dict[str, Any] = {
        "alphabet": codes.alphabet, "zero_padded": codes.pad_code is None, "zero": codes.zero,
    }  # fmt: skip
    constants = popcount_conv2d_constants(geometry, signs, isa=isa, **options)
    values = values_of(binarise(x, rule, (), fused=True), codes.alphabet, codes.zero)
    z = conv2d_reference(geometry, values, signs, codes.padding)
    if seed % 2 == 0:
        kernel = popcount_conv2d(geometry, has_scale=False, has_bias=False, out_dtype="int32", isa=isa, **options)
        return kernel, [bits, *constants], z
    scale, bias = rng.standard_normal((2, geometry.out_channels)).astype(np.float32)
    column = (-1, 1, 1)
    y = epilogue_reference(z, scale.reshape(column), bias.reshape(column), fused=isa.fused_multiply_add)
    return popcount_conv2d(geometry, has_scale=True, has_bias=True, isa=isa, **options), [
        bits, *constants, scale, bias,
    ], y  # fmt: skip


def dense_case(codes: Codes, shape: tuple[int, int, int], isa: Isa, seed: int) -> tuple[Any, list[Array], Array]:
    """The kernel, its arguments and the integers it must give."""
    rng = np.random.default_rng(seed)
    rows, in_features, out_features = shape
    rule = code_rule(codes)
    x = code_activations(rng, (rows, in_features))
    signs = rng.random((out_features, in_features)) < 0.5
    bits = pack_dense_reference(x, rule, (), fused=True)
    constants = popcount_dense_constants(signs, alphabet=codes.alphabet, zero=codes.zero)
    z = dense_reference(values_of(binarise(x, rule, (), fused=True), codes.alphabet, codes.zero), signs)
    kernel = popcount_dense(
        *shape, alphabet=codes.alphabet, zero=codes.zero, has_scale=False, has_bias=False, out_dtype="int32", isa=isa
    )
    return kernel, [bits, *constants], z
