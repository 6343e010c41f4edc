"""Operators of quantisation tools in standard ONNX: one lowering each, exact element by element.

QONNX, Brevitas and FINN write quantisers as operators of domains of their own. Each is a short chain of standard
operators, given here beside the definition it follows (that of the ``qonnx`` package's executor). What comes out is
imported, analysed and run by ONNX Runtime as any other part of a graph, so that nothing behind the front end knows
these operators.

``BipolarQuant(x, s)``
    s where x >= 0, else -s. NaN gives -s.
``Quant(x, s, z, b)``, also ``IntQuant``
    y = x / s + z; where ``signed`` and b = 1: ±1 with 0 as +1; otherwise y is clipped to the integers of b bits and
    rounded. Result (y - z) * s.
``Trunc``
    y = round(x / s + z) / t, [clipped,] rounded by ``rounding_mode``, with t = 2^(b_in - b_out), result (y - z) * s
    (version 1, five inputs); or t = 2^round(log2(s_out / s)), result (y - z / t) * s_out (version 2, six inputs).
``MultiThreshold(x, T)``
    ``out_scale`` * #{k : x >= T[c, k]} + ``out_bias``, c the channel, or one row for all of them. The count is exact in
    any order of summation.

Where z is a constant 0 or s a constant 1, the operation with it is left out: the same numbers, except that a zero may
have another sign. Before operator set 12, which has no ``GreaterOrEqual``, x >= 0 is written ``Sign(x) > -0.5``, and
x >= t for other t ``Not(x < t)``, which counts NaN as reaching a threshold. Before 11, which has no ``Round``, rounding
is adding and subtracting 1.5 * 2^23, exact where |y| <= 2^22 (float32), that is for at most 22 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import attribute_value, describe_node, text_attribute

_Array = npt.NDArray[Any]

MAX_THRESHOLDS = 255
"""Of a ``MultiThreshold``: eight bits. Each becomes a comparison."""


def _lower_bipolar_quant(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require_inputs(node, 2)
    data, scale = node.input
    emit.result("Where", _at_least(emit, data, np.zeros(())), scale, emit("Neg", scale))
    return None


def _lower_quant(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require_inputs(node, 4)
    data, scale, zero, width = node.input
    bits = emit.constant_value(width)
    if bits is None or bits.size != 1:
        return "its bit width is not one constant number"
    signed, narrow = _flag(node, "signed"), _flag(node, "narrow")
    scaled = _shifted(emit, data, scale, zero)
    if signed and bits.item() == 1:
        rounded = emit("Where", _at_least(emit, scaled, np.zeros(())), emit.scalar(1.0), emit.scalar(-1.0))
    else:
        low, high = _integer_range(node, bits, signed=signed, narrow=narrow)
        rounded = _round(node, emit, emit.clip(scaled, low, high), text_attribute(node, "rounding_mode", "ROUND"), high)
    _unshifted(emit, rounded, zero, scale)
    return None


def _lower_trunc(node: NodeProto, emit: NodeEmitter) -> str | None:
    if len(node.input) == 5:
        return _lower_trunc_1(node, emit)
    _require_inputs(node, 6)
    data, scale, zero, _, out_scale, width = node.input
    values = [emit.constant_value(name) for name in (scale, zero, out_scale, width)]
    if any(value is None for value in values):
        return "its scales, zero point and bit width are not constants"
    s, z, s_out, bits = (value for value in values if value is not None)
    low, high = _integer_range(node, bits, signed=_flag(node, "signed", 1), narrow=_flag(node, "narrow", 0))
    with np.errstate(all="ignore"):
        step = (2 ** np.round(np.log2(s_out / s))).astype(s.dtype)
    scaled = _round(node, emit, _shifted(emit, data, scale, zero), "ROUND", high * float(np.max(step)))
    divided = emit.clip(emit("Div", scaled, emit.constant(step)), low, high)
    rounded = _round(node, emit, divided, text_attribute(node, "rounding_mode", "FLOOR"), high)
    _unshifted(emit, rounded, emit.constant((z / step).astype(s.dtype)), out_scale)
    return None


def _lower_trunc_1(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require_inputs(node, 5)
    data, scale, zero, width, out_width = node.input
    widths = emit.constant_value(width), emit.constant_value(out_width)
    if any(bits is None or bits.size != 1 for bits in widths):
        return "its bit widths are not constant numbers"
    before, after = (float(bits.item()) for bits in widths if bits is not None)
    if not (0 < after <= before <= 32):
        raise ModelError(f"{describe_node(node)} truncates {before:g} bits to {after:g}")
    scaled = _round(node, emit, _shifted(emit, data, scale, zero), "ROUND", 2.0**before)
    divided = emit("Div", scaled, emit.scalar(2.0 ** (before - after)))
    rounded = _round(node, emit, divided, text_attribute(node, "rounding_mode", "FLOOR"), 2.0**after)
    _unshifted(emit, rounded, zero, scale)
    return None


def _lower_multi_threshold(node: NodeProto, emit: NodeEmitter) -> str | None:
    _require_inputs(node, 2)
    data, name = node.input
    thresholds = emit.constant_value(name)
    if thresholds is None:
        return "its thresholds are not constants"
    if thresholds.ndim != 2 or not 1 <= thresholds.shape[1] <= MAX_THRESHOLDS:
        raise ModelError(
            f"{describe_node(node)} has thresholds of shape {list(thresholds.shape)}; "
            f"[channels, n] with 1 <= n <= {MAX_THRESHOLDS} is supported"
        )
    shape: tuple[int, ...] = ()
    if thresholds.shape[0] != 1:
        rank = emit.rank(data)
        if rank is None:
            return "the rank of its input is not known"
        axis = _channel_axis(node, rank)
        shape = (-1,) + (1,) * (rank - 1 - axis)
    counts = [
        emit("Cast", _at_least(emit, data, column.reshape(shape)), to=emit.element_type) for column in thresholds.T
    ]
    total = counts[0]
    for count in counts[1:]:
        total = emit("Add", total, count)
    scale, bias = (attribute_value(node, key, default) for key, default in (("out_scale", 1.0), ("out_bias", 0.0)))
    if not isinstance(scale, float) or not isinstance(bias, float) or not np.isfinite([scale, bias]).all():
        raise ModelError(f"{describe_node(node)} has an out_scale or out_bias that is no finite number")
    total = total if scale == 1 else emit("Mul", total, emit.scalar(scale))
    if bias:
        emit.result("Add", total, emit.scalar(bias))
    else:
        emit.result("Identity", total)
    return None


def _channel_axis(node: NodeProto, rank: int) -> int:
    """The position of C in ``data_layout``; without one, NC, NWC and NCHW by rank, and axis 1 beyond."""
    layout = text_attribute(node, "data_layout", "") or {2: "NC", 3: "NWC", 4: "NCHW"}.get(rank, "")
    axis = max(layout.find("C"), 0) if "C" in layout else 1
    if axis >= rank:
        raise ModelError(f"{describe_node(node)} has a threshold per channel, but data of rank {rank} without channels")
    return axis


def _at_least(emit: NodeEmitter, data: str, threshold: _Array) -> str:
    """``data >= threshold``."""
    if emit.opset >= 12:
        return emit("GreaterOrEqual", data, emit.constant(threshold))
    if not threshold.any():
        return emit("Greater", emit("Sign", data), emit.scalar(-0.5))
    return emit("Not", emit("Less", data, emit.constant(threshold)))


def _shifted(emit: NodeEmitter, data: str, scale: str, zero: str) -> str:
    """data / scale + zero."""
    divided = data if emit.is_scalar(scale, 1.0) else emit("Div", data, scale)
    return divided if emit.is_scalar(zero, 0.0) else emit("Add", divided, zero)


def _unshifted(emit: NodeEmitter, rounded: str, zero: str, scale: str) -> None:
    """(rounded - zero) * scale, the result."""
    shifted = rounded if emit.is_scalar(zero, 0.0) else emit("Sub", rounded, zero)
    if emit.is_scalar(scale, 1.0):
        emit.result("Identity", shifted)
    else:
        emit.result("Mul", shifted, scale)


def _integer_range(node: NodeProto, bits: _Array, *, signed: bool, narrow: bool) -> tuple[float, float]:
    """Lowest and highest integer, in the arithmetic of the bit width's own type (float32 cannot hold 2^31 - 1)."""
    width = bits.reshape(()).astype(bits.dtype if bits.dtype.kind == "f" else np.int64)
    if not 1 <= width <= 32:
        raise ModelError(f"{describe_node(node)} has a bit width of {width.item():g}; 1 to 32 are supported")
    if signed:
        half = 2 ** (width - 1)
        return float(-half + 1 if narrow else -half), float(half - 1)
    return 0.0, float(2**width - (2 if narrow else 1))


def _round(node: NodeProto, emit: NodeEmitter, data: str, mode: str, bound: float) -> str:
    """``data``, of magnitude ``bound`` and some, rounded to integers as ``mode`` says."""
    mode = mode.upper()
    if mode in {"ROUND", "HALF_EVEN"}:
        if emit.opset >= 11:
            return emit("Round", data)
        if bound > 2.0**21 or emit.dtype != np.float32:
            raise ModelError(
                f"{describe_node(node)} rounds more than 22 bits, or another type than float32, before opset 11"
            )
        magic = emit.scalar(1.5 * 2.0**23)
        return emit("Sub", emit("Add", data, magic), magic)
    if mode in {"CEIL", "FLOOR"}:
        return emit(mode.capitalize(), data)
    if mode not in _MAGNITUDE_ROUNDING:
        raise ModelError(f"{describe_node(node)} has the unknown rounding_mode {mode!r}")
    operator, offset = _MAGNITUDE_ROUNDING[mode]
    magnitude = emit("Abs", data)
    moved = emit("Add", magnitude, emit.scalar(offset)) if offset else magnitude
    return emit("Mul", emit("Sign", data), emit(operator, moved))


_MAGNITUDE_ROUNDING: Mapping[str, tuple[str, float]] = {
    "UP": ("Ceil", 0.0),
    "DOWN": ("Floor", 0.0),
    "HALF_UP": ("Floor", 0.5),
    "HALF_DOWN": ("Ceil", -0.5),
}
"""sign(y) * operator(|y| + offset)."""


def _flag(node: NodeProto, name: str, default: int | None = None) -> bool:
    value = attribute_value(node, name, default)
    if value not in (0, 1):
        raise ModelError(f"{describe_node(node)} {'lacks the attribute' if value is None else 'has a bad'} {name!r}")
    return bool(value)


def _require_inputs(node: NodeProto, count: int) -> None:
    if len(node.output) != 1 or not node.output[0] or not all(node.input):
        raise ModelError(f"{describe_node(node)} lacks an input, or has not exactly one output")
    if len(node.input) != count:
        raise ModelError(f"{describe_node(node)} has {len(node.input)} inputs; it needs {count}")


_LOWERINGS: Mapping[str, Lowering] = {
    "BipolarQuant": _lower_bipolar_quant,
    "IntQuant": _lower_quant,
    "MultiThreshold": _lower_multi_threshold,
    "Quant": _lower_quant,
    "Trunc": _lower_trunc,
}

CUSTOM_LOWERINGS: Mapping[str, Mapping[str, Lowering]] = {
    "finn.custom_op.general": _LOWERINGS,
    "onnx.brevitas": _LOWERINGS,
    "qonnx.custom_op.general": _LOWERINGS,
}
"""By domain and operator; the three domains name the same operators."""
