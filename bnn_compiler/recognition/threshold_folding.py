"""Fold a per-channel affine chain in front of a comparison into the comparison's threshold.

compare(g(x), t) with g made of multiply, add, subtract, divide by per-channel constants and ReLU equals
direction·x >= T with one float T per channel (``monotone_thresholds``), bit for bit in the model's own float32
rounding. The kernel that packs signs then reads x itself, and the affine map is never computed.

Conditions: (1) each tensor that is skipped is read by the chain alone (else it has to be made anyway); (2) the
predicate is one-sided; (3) every operation has a constant that varies along the channel axis alone, or only adds or
removes axes of one element (a batch-norm between Unsqueeze and Squeeze); (4) g is monotone, which the bisection checks;
(5) the channels of the tensor are those of the layer, one to one. Where a reshape in between mixes them, only what is
the same for all channels is folded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tvm.ir import Call, Var

from bnn_compiler.constants import BINARY, Array, apply_elementwise, moves_single_elements, op_name, static_shape
from bnn_compiler.layers import BinarySpec
from bnn_compiler.recognition.matching import LayerMatcher
from bnn_compiler.recognition.monotone_thresholds import solve_thresholds
from bnn_compiler.recognition.value_sets import ValueSetAnalysis

_AFFINE = ("relax.multiply", "relax.add", "relax.subtract", "relax.divide")
_ONE_SIDED = {"ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less}


def fold_affine_chain(base: Var, spec: BinarySpec, matcher: LayerMatcher) -> tuple[Var, BinarySpec]:
    """``spec`` moved to the start of the chain in front of ``base``, or both unchanged."""
    if spec.levels or spec.direction is not None or spec.predicate not in _ONE_SIDED:
        return base, spec  # a chain has found its own start (``code_binarizers``)
    if any(move[0] == "permute" for move in spec.prefix):
        return base, spec
    rank = len(spec.input_shape)
    if rank not in (2, 4) or (spec.prefix and rank == 4):
        return base, spec
    shape = _threshold_shape(spec)
    channels = shape[0] if shape else 1
    if spec.threshold.size not in (1, channels):
        return base, spec
    start, steps = _chain_before(base, matcher, channels)
    if not any(name in _AFFINE for name, _ in steps):
        return base, spec
    compare = _ONE_SIDED[spec.predicate]
    limit = np.broadcast_to(spec.threshold.reshape(-1), (channels,)).astype(np.float32)

    def chain(x: Array) -> Array:
        for name, constant in reversed(steps):
            operands = [x] if constant is None else [x, constant]
            x = apply_elementwise(name, operands).astype(np.float32)
        return x

    solved = solve_thresholds(chain, lambda value: compare(value, limit), channels)
    if solved is None:
        return base, spec
    direction = None
    if not np.all(solved.direction == 1):
        of_layer = (spec.geometry.in_channels, 1, 1) if spec.geometry else spec.weights.shape[:1]
        direction = np.ascontiguousarray(np.broadcast_to(solved.direction.reshape(shape), of_layer))
    folded = replace(spec, predicate="ge", threshold=solved.threshold.reshape(shape), direction=direction)
    return start, folded


def _threshold_shape(spec: BinarySpec) -> tuple[int, ...]:
    """The shape of a threshold per channel of the tensor that is compared; () where those are not the layer's."""
    channels, geometry = spec.input_shape[1], spec.geometry
    if geometry is None:
        return () if spec.prefix else (channels,)
    batch_by_channels = (geometry.batch, geometry.in_channels)
    apart = not spec.prefix or (spec.input_shape == batch_by_channels and geometry.height * geometry.width == 1)
    return (channels, 1, 1) if apart else ()


def _chain_before(base: Var, matcher: LayerMatcher, channels: int) -> tuple[Var, list[tuple[str, Array | None]]]:
    """The longest chain that ends in ``base`` and starts at a tensor of the model of the same shape; operators from the
    last to the first, without reshapes.

    A tensor that ONNX does not name (a convolution before its bias is added) cannot be verified, so no layer starts
    there.
    """
    steps: list[tuple[str, Array | None]] = []
    start, length, current = base, 0, base
    while matcher.uses[current] <= 1:
        call = matcher.analysis.definition(current)
        if not isinstance(call, Call):
            break
        if not moves_single_elements(call):
            step = _channel_step(call, matcher.analysis, channels)
            if step is None:
                break
            steps.append(step)
        current = call.args[0]
        named = not matcher.has_names or matcher.tensor_name(current) is not None
        if named and static_shape(current) == static_shape(base):
            start, length = current, len(steps)
    return start, steps[:length]


def _channel_step(call: Call, analysis: ValueSetAnalysis, channels: int) -> tuple[str, Array | None] | None:
    """Operator and per-channel constant (float32[C]) of one link of the chain, or None if the chain ends here."""
    name = op_name(call)
    if not call.args or not isinstance(call.args[0], Var):
        return None
    if name == "relax.nn.relu":
        return name, None
    if name not in _AFFINE or name not in BINARY:
        return None
    constant = analysis.constants.value(call.args[1])
    shape = static_shape(call.args[0])
    if constant is None or constant.dtype != np.float32 or shape is None or shape != static_shape(call):
        return None
    rank = len(shape)
    aligned = (1,) * (rank - constant.ndim) + constant.shape
    if constant.ndim > rank or (constant.size != 1 and (aligned[1] != constant.size or constant.size != channels)):
        return None
    if not np.all(np.isfinite(constant)):
        return None
    return name, np.broadcast_to(constant.reshape(-1), (channels,)).astype(np.float32)
