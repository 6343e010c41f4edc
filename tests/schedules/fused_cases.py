"""Random convolutions with chains of element-wise operators, and what fused kernels must make of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.output_chain import Chain, ChainStep
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv import popcount_conv2d_constants
from bnn_compiler.schedules.popcount_conv_fused import FusedPart
from bnn_compiler.schedules.reference import epilogue_reference
from tests.schedules.bitsliced_harness import random_layer, random_signs
from tests.schedules.kernel_harness import Array
from tests.schedules.paddings import Padding

CHAINS: dict[str, Chain] = {
    "none": (),
    "residual": (ChainStep("add", "map"),),
    "rprelu": (
        ChainStep("add", "map"),
        ChainStep("add", "channel"),
        ChainStep("prelu", "channel"),
        ChainStep("add", "channel"),
    ),
    "prelu-affine": (
        ChainStep("prelu", "channel"),
        ChainStep("multiply", "channel"),
        ChainStep("leaky_relu", 0.1),
        ChainStep("multiply", "map"),
        ChainStep("add", "channel"),
    ),
    "relu6-affine": (
        ChainStep("relu"),
        ChainStep("minimum", 6.0),
        ChainStep("multiply", "channel"),
        ChainStep("subtract", "channel"),
    ),
    "relu-affine-residual": (
        ChainStep("relu"),
        ChainStep("multiply", "channel"),
        ChainStep("add", "channel"),
        ChainStep("add", "map", swapped=True),
    ),
    # What algebra of real numbers would undo, and what contraction would round once.
    "roundings": (
        ChainStep("multiply", 3.1),
        ChainStep("add", 8388608.0),
        ChainStep("subtract", 8388608.0),
        ChainStep("multiply", "map"),
        ChainStep("subtract", "channel", swapped=True),
    ),
    "others": (
        ChainStep("divide", "map"),
        ChainStep("leaky_relu", 0.1),
        ChainStep("maximum", -4.0),
        ChainStep("minimum", "channel"),
        ChainStep("divide", 7.0, swapped=True),
    ),
}


def apply_step(step: ChainStep, value: Array, operand: Any) -> Array:
    """One operator in float32; ``operand`` broadcasts against [N, C, H, W]."""
    left, right = (operand, value) if step.swapped else (value, operand)
    with np.errstate(all="ignore"):
        match step.operator:
            case "relu":
                result = np.maximum(value, np.float32(0))
            case "prelu" | "leaky_relu":
                result = np.where(value > 0, value, value * operand)
            case "maximum" | "minimum" | "add" | "subtract" | "multiply" | "divide":
                result = getattr(np, step.operator)(left, right)
    assert result.dtype == np.float32
    return np.asarray(result)


def chain_case(chain: Chain, value: Array, rng: np.random.Generator) -> tuple[list[Array], Array]:
    """Random operands of a chain behind ``value`` float32 [N, C, H, W], and its results."""
    operands: list[Array] = []
    for step in chain:
        operand: Any = step.operand
        if isinstance(operand, str):
            shape = value.shape if operand == "map" else value.shape[1:2]
            operand = rng.standard_normal(shape).astype(np.float32)
            operands.append(operand)
            operand = operand.reshape((-1, 1, 1) if operand.ndim == 1 else shape)
        elif operand is not None:
            operand = np.float32(operand)
        value = apply_step(step, value, operand)
    return operands, value


@dataclass(frozen=True, eq=False)
class PartCase:
    """A part, its arguments, and its results float32 [N, C, H, W]."""

    part: FusedPart
    arguments: list[Array]
    expected: Array


def part_case(geometry: ConvGeometry, padding: Padding, chain: Chain, isa: Isa, seed: int) -> PartCase:
    """A layer with random weights, scale and bias as ``seed`` says."""
    rng = np.random.default_rng(seed)
    signs = random_signs(geometry, "random", rng)
    bits, z = random_layer(geometry, padding, signs, rng)
    scale, bias = rng.standard_normal((2, geometry.out_channels, 1, 1)).astype(np.float32)
    given = [scale if seed % 2 else None, bias if seed % 3 else None]
    value = epilogue_reference(z, *given, fused=isa.fused_multiply_add)
    part = FusedPart(geometry, padding.alphabet, padding.zero_padded, given[0] is not None, given[1] is not None, chain)
    constants = popcount_conv2d_constants(
        geometry, signs, alphabet=padding.alphabet, zero_padded=padding.zero_padded, isa=isa
    )
    operands, value = chain_case(chain, value, rng)
    parameters = [array.reshape(-1) for array in given if array is not None]
    return PartCase(part, [bits, *constants, *parameters, *operands], value)


def sliced(chain: Chain) -> Chain:
    """The chain without maps, as it may stand behind a concatenation."""
    return tuple(replace(step, operand="channel") if step.operand == "map" else step for step in chain)


def rule_parameters(rule: PackRule, values: Array, rng: np.random.Generator) -> tuple[Array, ...]:
    """Parameters per channel of ``values``: thresholds that some of them reach exactly."""
    channels = values.shape[1]
    parameters: list[Array] = []
    if rule.affine:
        parameters = [rng.choice([-1, 1], channels).astype(np.float32), np.zeros(channels, np.float32)]
    if rule.threshold == "channel":
        picked = np.moveaxis(values, 1, 0).reshape(channels, -1)
        count = len(rule.codes) - 1 if rule.codes else 1
        columns = rng.integers(0, picked.shape[1], (count, channels))
        thresholds = np.sort(picked[np.arange(channels), columns], axis=0)
        parameters.append(thresholds if rule.codes else thresholds[0])
    return tuple(parameters)
