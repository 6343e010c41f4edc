"""Fold per-channel affine operations behind a binary layer into its output scale and bias.

y·s + t, the convolution's bias and a batch-norm behind it, are applied while the integer result is in a register.

Conditions: (1) each link is multiply, add or subtract with a finite constant per output channel; (2) each tensor but
the last is read by the next link alone; (3) no tensor on the way is one that a folded threshold starts from: that
comparison is exact on the tensor itself.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

import numpy as np
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, op_name, static_shape
from bnn_compiler.layers import BinarySpec
from bnn_compiler.recognition.matching import LayerMatcher


def fold_affine_epilogue(
    product: Var, spec: BinarySpec, matcher: LayerMatcher, kept: Set[Var]
) -> tuple[list[Var], BinarySpec]:
    """The variables from ``product`` to the last that the layer now computes itself, and the layer that does so."""
    if spec.suffix:
        return [product], spec
    scale, bias = np.ones(spec.out_channels), np.zeros(spec.out_channels)
    absorbed = [product]
    while absorbed[-1] not in kept and matcher.uses[absorbed[-1]] == 1 and absorbed[-1] in matcher.readers:
        following = matcher.readers[absorbed[-1]]
        call = matcher.bindings[following]
        constant = _output_constant(call, spec, matcher)
        if constant is None:
            break
        match op_name(call):
            case "relax.multiply":
                scale, bias = scale * constant, bias * constant
            case "relax.add":
                bias = bias + constant
            case "relax.subtract":
                bias = bias - constant
            case _:
                break
        absorbed.append(following)
    if not np.all(np.isfinite(scale) & np.isfinite(bias) & (scale != 0)):
        return [product], spec
    return absorbed, replace(
        spec,
        scale=None if np.all(scale == 1) else scale.astype(np.float32),
        bias=None if np.all(bias == 0) else bias.astype(np.float32),
    )


def _output_constant(call: object, spec: BinarySpec, matcher: LayerMatcher) -> Array | None:
    """The second operand as float64[O], or None if it is no constant per output channel."""
    if not isinstance(call, Call) or len(call.args) != 2:
        return None
    constant = matcher.analysis.constants.value(call.args[1])
    shape = static_shape(call.args[0])
    if constant is None or shape is None or shape != static_shape(call):
        return None
    axis_from_end = 3 if spec.geometry else 1
    axis = constant.ndim - axis_from_end
    per_channel = 0 <= axis < constant.ndim and constant.shape[axis] == constant.size == spec.out_channels
    if not per_channel and constant.size != 1:
        return None
    return np.broadcast_to(constant.reshape(-1), (spec.out_channels,)).astype(np.float64)
