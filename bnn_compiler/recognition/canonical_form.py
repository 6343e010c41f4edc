"""Write a convolution or matrix product of a binary activation as the one form that ``composites`` knows.

Takes what is proven of the activation (``Binarizer``) and gives a ``BinarySpec`` that starts at the tensor that is
compared: moves between comparison and product are joined, thresholds aligned with the channels, paddings added up, and
a product of any rank becomes one of two matrices. Where thresholds vary along another axis than the channels, the
activation's own values are compared instead. What has no such form is ``unsupported_form`` or
``padding_not_in_alphabet``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, op_name, static_shape
from bnn_compiler.layers import BinarySpec, Move
from bnn_compiler.recognition.binarizers import Binarizer
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.code_lattice import fit_codes
from bnn_compiler.schedules.geometry import ConvGeometry


@dataclass(frozen=True, eq=False)
class Match:
    """A binary layer: the tensor to compare is ``binarizer.base``, the rest is ``spec``.

    ``activation`` is the operand of the product in the model.
    """

    binarizer: Binarizer
    spec: BinarySpec
    activation: relax.Expr


def canonical_convolution(call: Call, data: relax.Expr, weights: Array, plan: Binarizer) -> Match | NotBinary:
    """The layer of a conv1d or conv2d in NCHW/OIHW: a padding in front of it joins its own; conv1d has a row of 1."""
    shape = _shape(data)
    strides, dilations, pads = (
        [int(size) for size in sizes] for sizes in (call.attrs.strides, call.attrs.dilation, call.attrs.padding)
    )
    prefix = _simplified(plan)
    suffix: tuple[Move, ...] = ()
    if op_name(call) == "relax.nn.conv1d":
        batch, channels, width = shape
        shape = (batch, channels, 1, width)
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
        weights = weights[:, :, None, :]
        prefix = (*prefix, ("reshape", shape))
        suffix = (("reshape", _shape(call)),)
        if plan.threshold.size > 1 and not plan.levels:
            aligned = (1,) * (3 - plan.threshold.ndim) + plan.threshold.shape
            plan = replace(plan, threshold=plan.threshold.reshape(*aligned[:2], 1, aligned[2]))
    ring, zero_pads = None, any(pads)
    if plan.padding is not None and zero_pads and plan.padding.value != 0.0:
        # Two rings of different values: pack the padded tensor itself.
        packed = _packed_as_it_is(data, plan)
        if packed is None:
            return NotBinary("padding_not_in_alphabet", "an explicit pad and zero padding of the convolution together")
        plan, prefix = packed, ()
    elif plan.padding is not None:
        top, left, bottom, right = plan.padding.widths
        ring = None if plan.padding.value == 0.0 and plan.alphabet != "affine" else plan.padding.value
        pads = [pads[0] + top, pads[1] + left, pads[2] + bottom, pads[3] + right]
        shape = (shape[0], shape[1], shape[2] - top - bottom, shape[3] - left - right)
    if (plan.alphabet == "affine" or plan.levels) and zero_pads:
        # Two values that are no opposites may be codes about 0 all the same: {-0.5, 1} has 0 a third of the way.
        levels = plan.levels or (plan.low, plan.high)
        if fit_codes(levels, zero_padded=True) is None:
            shown = ", ".join(f"{level:g}" for level in levels)
            return NotBinary("padding_not_in_alphabet", f"zero padding beside the values {shown}")
    geometry = ConvGeometry(
        batch=shape[0],
        in_channels=shape[1],
        height=shape[2],
        width=shape[3],
        out_channels=weights.shape[0],
        kernel=(weights.shape[2], weights.shape[3]),
        strides=(strides[0], strides[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=(dilations[0], dilations[1]),
        groups=int(call.attrs.groups),
    )
    threshold = _channel_threshold(plan, channel_axis_from_end=3)
    if threshold is None:
        packed = _packed_as_it_is(data, plan)
        if packed is None or plan.padding is not None:
            return NotBinary("unsupported_form", "a threshold per pixel")
        plan, threshold, prefix = packed, packed.threshold, prefix[len(prefix) - len(suffix) :]
    return Match(plan, _spec(plan, prefix, suffix, threshold, ring, geometry, 0, weights), data)


def canonical_product(
    call: Call, data: relax.Expr, weights: Array, plan: Binarizer, *, left_weight: bool
) -> Match | NotBinary:
    """The layer of a matrix product with a matrix of weights, as rows [M, K] by [K, N]."""
    prefix = _simplified(plan)
    shape, out = _shape(data), _shape(call)
    threshold = _channel_threshold(plan, channel_axis_from_end=1)
    if threshold is None or plan.padding is not None or (left_weight and threshold.size > 1 and not plan.levels):
        packed = _packed_as_it_is(data, plan)
        if packed is None:
            return NotBinary(
                "unsupported_form", "the activation of a matrix product is padded or has a threshold per row"
            )
        plan, threshold, prefix = packed, packed.threshold, ()
    suffix: tuple[Move, ...]
    if left_weight:
        # w·a = (aᵀ·wᵀ)ᵀ over the last two axes.
        swap = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        rows, features = math.prod(shape[:-2]) * shape[-1], shape[-2]
        prefix = (*prefix, ("permute", swap), ("reshape", (rows, features)))
        suffix = (("reshape", tuple(out[axis] for axis in swap)), ("permute", swap))
        matrix = np.ascontiguousarray(weights.T)
    else:
        features = shape[-1]
        rows = math.prod(shape[:-1])
        flat = len(shape) == 2
        prefix = prefix if flat else (*prefix, ("reshape", (rows, features)))
        suffix = () if flat else (("reshape", out),)
        matrix = weights
    return Match(plan, _spec(plan, prefix, suffix, threshold, None, None, rows, matrix), data)


def _spec(
    plan: Binarizer,
    prefix: tuple[Move, ...],
    suffix: tuple[Move, ...],
    threshold: Array,
    ring: float | None,
    geometry: ConvGeometry | None,
    rows: int,
    weights: Array,
) -> BinarySpec:
    return BinarySpec(
        input_shape=_shape(plan.base),
        prefix=prefix,
        suffix=suffix,
        predicate=plan.predicate,
        threshold=threshold,
        direction=_channel_direction(plan, geometry, weights),
        low=plan.low,
        high=plan.high,
        ring=ring,
        geometry=geometry,
        rows=rows,
        weights=np.ascontiguousarray(weights),
        scale=None,
        bias=None,
        rounded=plan.rounded,
        levels=plan.levels,
    )


def _channel_direction(plan: Binarizer, geometry: ConvGeometry | None, weights: Array) -> Array | None:
    """The direction as [C, 1, 1] (conv) or [K] (dense)."""
    if plan.direction is None:
        return None
    channels, trailing = (geometry.in_channels, (1, 1)) if geometry else (weights.shape[0], ())
    return np.ascontiguousarray(np.broadcast_to(plan.direction, (channels,))).reshape(-1, *trailing)


def _packed_as_it_is(data: relax.Expr, plan: Binarizer) -> Binarizer | None:
    """Compare the activation's own float values, ``low`` and ``high``, instead of what they were made from."""
    if not isinstance(data, Var) or plan.alphabet == "ternary" or plan.high <= plan.low:
        return None
    middle = np.asarray((plan.low + plan.high) / 2, np.float32)
    return replace(plan, base=data, threshold=middle, predicate="ge", moves=(), padding=None)


def _channel_threshold(plan: Binarizer, *, channel_axis_from_end: int) -> Array | None:
    """The threshold as a scalar or as [C, 1, 1] (conv) / [K] (dense); None if it varies along another axis.

    Several levels have one more axis in front.
    """
    threshold = plan.threshold
    if plan.levels:
        trailing = (1,) * (channel_axis_from_end - 1)
        return threshold if threshold.ndim == 1 else threshold.reshape(*threshold.shape, *trailing)
    if threshold.size == 1:
        return threshold.reshape(())
    shape = threshold.shape
    axis = len(shape) - channel_axis_from_end
    if axis < 0 or shape[axis] != threshold.size:
        return None
    return np.ascontiguousarray(threshold.reshape(-1, *(1,) * (channel_axis_from_end - 1)))


def _simplified(plan: Binarizer) -> tuple[Move, ...]:
    """The moves with adjacent transposes and reshapes joined and those that do nothing dropped."""
    moves: list[Move] = []
    shapes = [_shape(plan.base)]
    for call in plan.moves:
        move: Move
        if op_name(call) == "relax.permute_dims":
            axes = call.attrs.axes
            move = ("permute", tuple(int(a) for a in axes) if axes is not None else tuple(range(len(shapes[-1])))[::-1])
        else:
            move = ("reshape", _shape(call))
        if moves and moves[-1][0] == move[0]:
            previous = moves.pop()
            shapes.pop()
            if move[0] == "permute":
                move = ("permute", tuple(previous[1][axis] for axis in move[1]))
        before = shapes[-1]
        after = tuple(before[axis] for axis in move[1]) if move[0] == "permute" else move[1]
        if (move[0] == "permute" and move[1] == tuple(range(len(before)))) or (
            move[0] == "reshape" and after == before
        ):
            continue
        moves.append(move)
        shapes.append(after)
    return tuple(moves)


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    shape = static_shape(expr)
    assert shape is not None
    return shape
