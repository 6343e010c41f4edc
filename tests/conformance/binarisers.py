"""Ways in which people write signs and quantisers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .graph_builder import GraphBuilder, Tensor
from .one_node import RejectedNodeError
from .operands import axis_of, cast, constant_like, number_like


def _clip(g: GraphBuilder, x: Tensor, low: float, high: float) -> Tensor:
    dtype = x.value.dtype
    if g.opset < 11:
        return g.add("Clip", [x], min=low, max=high)
    return g.add("Clip", [x, g.constant(np.asarray(low, dtype)), g.constant(np.asarray(high, dtype))])


def _compared(g: GraphBuilder, x: Tensor, threshold: Tensor) -> Tensor:
    ops = ["Greater", "Less"] if g.opset < 12 else ["Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
    condition = g.add(g.random.choice(ops), [x, threshold] if g.chance(0.8) else [threshold, x])
    return g.add("Not", [condition]) if g.chance(0.2) else condition


def _threshold(g: GraphBuilder, x: Tensor) -> Tensor:
    return number_like(g, x, 0.0) if g.chance(0.6) else constant_like(g, x)


def sign(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.add("Sign", [x])


def select(g: GraphBuilder, x: Tensor) -> Tensor:
    low, high = g.choose((-1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (0.0, 1.0), (-0.6, 0.6), (-0.5, 1.0))
    condition = _compared(g, x, _threshold(g, x))
    return g.add("Where", [condition, number_like(g, x, high), number_like(g, x, low)])


def cast_comparison(g: GraphBuilder, x: Tensor) -> Tensor:
    bits = cast(g, _compared(g, x, _threshold(g, x)), x.value.dtype)
    if g.chance(0.3):
        return bits
    doubled = g.add("Mul", [bits, number_like(g, x, 2.0)])
    if g.chance(0.5):
        return g.add("Sub", [doubled, number_like(g, x, 1.0)])
    return g.add("Add", [number_like(g, x, -1.0), doubled])


def two_signs(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.add("Sign", [g.add("Add", [g.add("Sign", [x]), number_like(g, x, g.choose(0.1, 0.5, -0.1))])])


def straight_through(g: GraphBuilder, x: Tensor) -> Tensor:
    hard = sign(g, x) if g.chance(0.5) else select(g, x)
    soft = g.choose(lambda: _clip(g, x, -1.0, 1.0), lambda: g.add("Tanh", [x]), lambda: x)()
    if g.chance(0.5):
        return g.add("Add", [g.add("Sub", [hard, soft]), soft])
    return g.add("Add", [soft, g.add("Sub", [hard, soft])])


def ratio(g: GraphBuilder, x: Tensor) -> Tensor:
    return g.add("Div", [x, g.add("Abs", [x])])


def sign_of(g: GraphBuilder, x: Tensor) -> Tensor:
    """A sign behind what people put in front of it."""
    op = g.choose("Relu", "Neg", "Abs", "Tanh", "Round", "Clip", "Floor", "Sigmoid", "LeakyRelu", "shift", "mean")
    if op == "Clip":
        inner = _clip(g, x, *g.choose((-1.0, 1.0), (0.0, 1.0)))
    elif op == "shift":
        inner = g.add("Sub", [x, constant_like(g, x)])
    elif op == "mean":
        axis = axis_of(g, x)
        mean = g.add("ReduceMean", [x], axes=[axis]) if g.opset < 18 else g.add("ReduceMean", [x, g.integers(axis)])
        inner = g.add("Sub", [x, mean])
    else:
        inner = g.add(op, [x])
    return g.add("Sign", [inner])


def steep(g: GraphBuilder, x: Tensor) -> Tensor:
    scaled = g.add("Mul", [x, number_like(g, x, g.choose(1e3, 1e6))])
    return g.add("Round", [g.add("Tanh", [scaled])]) if g.chance(0.5) else _clip(g, scaled, -1.0, 1.0)


def integer_sign(g: GraphBuilder, x: Tensor) -> Tensor:
    codes = cast(g, _clip(g, x, -3.0, 3.0), g.choose(np.int32, np.int64, np.int8))
    if g.chance(0.5):
        return cast(g, g.add("Sign", [codes]), x.value.dtype)
    condition = _compared(g, codes, number_like(g, codes, g.choose(0, 1, -1)))
    return g.add("Where", [condition, number_like(g, x, 1.0), number_like(g, x, -1.0)])


def patched_sign(g: GraphBuilder, x: Tensor) -> Tensor:
    """Sign with another value at 0."""
    zero = g.add("Equal", [x, number_like(g, x, 0.0)])
    return g.add("Where", [zero, number_like(g, x, g.choose(1.0, -1.0)), g.add("Sign", [x])])


def band(g: GraphBuilder, x: Tensor) -> Tensor:
    op = g.choose("And", "Or", "Xor")
    both = g.add(op, [_compared(g, x, _threshold(g, x)), _compared(g, x, constant_like(g, x))])
    return g.add("Where", [both, number_like(g, x, 1.0), number_like(g, x, g.choose(-1.0, 0.0))])


def ternary(g: GraphBuilder, x: Tensor) -> Tensor:
    t = g.choose(0.5, 0.7, 1.0)
    up = cast(g, g.add("Greater", [x, number_like(g, x, t)]), x.value.dtype)
    down = cast(g, g.add("Less", [x, number_like(g, x, -t)]), x.value.dtype)
    return g.add("Sub", [up, down])


def bipolar_quant(g: GraphBuilder, x: Tensor) -> Tensor:
    if g.opset < 12:
        raise RejectedNodeError("its reference needs GreaterOrEqual")
    scale = number_like(g, x, g.choose(1.0, 1.0, 0.5, 0.3))
    with g.standing_for("BipolarQuant", [x, scale], g.choose("qonnx.custom_op.general", "onnx.brevitas")) as results:
        positive = g.add("GreaterOrEqual", [x, number_like(g, x, 0.0)])
        results.append(g.add("Where", [positive, scale, g.add("Neg", [scale])]))
    return results[-1]


def scaled(g: GraphBuilder, x: Tensor) -> Tensor:
    """A sign times a scale: a constant, per channel, or the mean of |x|."""
    s = g.random.choice(BINARISERS[:4])(g, x)
    if g.chance(0.7) or x.rank < 2:
        return g.add("Mul", [s, constant_like(g, s)])
    size = g.add("Abs", [x])
    axes = list(range(1, x.rank))
    mean = g.add("ReduceMean", [size], axes=axes) if g.opset < 18 else g.add("ReduceMean", [size, g.integers(*axes)])
    return g.add("Mul", [s, mean])


def round_levels(g: GraphBuilder, x: Tensor) -> Tensor:
    """``Round(Clip(x)·n)/n`` and its relatives with Floor, Ceil, half added, or without the clip."""
    n = float(g.choose(1, 2, 3, 7, 15, 4))
    inner = _clip(g, x, *g.choose((0.0, 1.0), (-1.0, 1.0), (0.0, 2.0))) if g.chance(0.8) else x
    inner = g.add("Mul", [inner, number_like(g, x, n)])
    op = g.choose("Round", "Round", "Floor", "Ceil", "half")
    inner = g.add("Floor", [g.add("Add", [inner, number_like(g, x, 0.5)])]) if op == "half" else g.add(op, [inner])
    style = g.random.randrange(3)
    if style == 0:
        return g.add("Div", [inner, number_like(g, x, n)])
    return g.add("Mul", [inner, number_like(g, x, 1 / n)]) if style == 1 else inner


def round_trip(g: GraphBuilder, x: Tensor) -> Tensor:
    """``QuantizeLinear``, perhaps what is done on codes, ``DequantizeLinear``; by tensor or by axis."""
    if x.value.dtype != np.float32:
        raise RejectedNodeError("float32 alone")
    dtype = np.dtype(g.choose(np.uint8, np.int8, np.int8))
    by_axis = x.rank > 1 and g.opset >= 13 and g.chance(0.3)
    axis = 1 if by_axis else None
    shape: tuple[int, ...] = (x.shape[1],) if by_axis else ()
    scale = g.constant(g.rng.choice([0.5, 1.0, 0.1, 0.037, 2.0], shape).astype(np.float32))
    low, high = (0, 4) if dtype == np.uint8 else (-2, 3)
    zero = g.choose(
        None, g.constant(np.zeros(shape, dtype)), g.constant(g.rng.integers(low, high, shape).astype(dtype))
    )
    if zero is None and dtype != np.uint8:
        zero = g.constant(np.zeros(shape, dtype))
    codes = g.add("QuantizeLinear", [x, scale, zero], axis=axis)
    if g.chance(0.3):
        bounds = [g.constant(np.asarray(bound, dtype)) for bound in (0, g.choose(1, 3, 7))]
        codes = g.add(g.choose("Clip", "Clip", "Max"), [codes, *bounds] if g.opset >= 12 else [codes])
    return g.add("DequantizeLinear", [codes, scale, zero], axis=axis)


def thermometer(g: GraphBuilder, x: Tensor) -> Tensor:
    """A sum of comparisons."""
    total = cast(g, _compared(g, x, constant_like(g, x)), x.value.dtype)
    for _ in range(g.random.randint(1, 3)):
        total = g.add("Add", [total, cast(g, g.add("Greater", [x, number_like(g, x, g.rng.normal())]), x.value.dtype)])
    return total


def integer_codes(g: GraphBuilder, x: Tensor) -> Tensor:
    """To integers and back."""
    return cast(
        g, cast(g, _clip(g, x, g.choose(0.0, -2.0), 3.0), g.choose(np.int32, np.uint8, np.int64)), x.value.dtype
    )


def quant(g: GraphBuilder, x: Tensor) -> Tensor:
    """QONNX's ``Quant``: round((x / s) + z), clipped, back again."""
    if g.opset < 12:
        raise RejectedNodeError("its reference needs Clip of this form")
    bits, signed, narrow = g.choose(1, 2, 3, 4, 8), g.choose(0, 1), g.choose(0, 1)
    if bits == 1:
        signed, narrow = 0, 0
    like = x.value.dtype
    scale, zero = g.choose(1.0, 0.5, 0.25, 0.1), g.choose(0.0, 0.0, 1.0)
    operands = [x, *(g.constant(np.asarray(value, like)) for value in (scale, zero, bits))]
    low, high = (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1 - narrow)
    attributes = {"signed": signed, "narrow": narrow, "rounding_mode": g.choose("ROUND", "FLOOR", "CEIL")}
    op = {"ROUND": "Round", "FLOOR": "Floor", "CEIL": "Ceil"}[str(attributes["rounding_mode"])]
    with g.standing_for("Quant", operands, "qonnx.custom_op.general", **attributes) as results:
        inner = g.add("Add", [g.add("Div", [x, operands[1]]), operands[2]])
        inner = g.add(op, [_clip(g, inner, float(low), float(high))])
        results.append(g.add("Mul", [g.add("Sub", [inner, operands[2]]), operands[1]]))
    return results[-1]


def multi_threshold(g: GraphBuilder, x: Tensor) -> Tensor:
    """QONNX's ``MultiThreshold`` in its NCHW form."""
    if g.opset < 12 or x.rank not in (2, 4):
        raise RejectedNodeError("its reference needs GreaterOrEqual; its channels are axis 1")
    rows = g.choose(1, x.shape[1])
    values = np.sort(g.rng.normal(0, 1, (rows, g.choose(1, 2, 3, 7))), axis=1).astype(x.value.dtype)
    scale, bias = g.choose((1.0, 0.0), (2.0, -1.0), (0.5, 0.25))
    operands = [x, g.constant(values)]
    domain = g.choose("qonnx.custom_op.general", "finn.custom_op.general")
    with g.standing_for("MultiThreshold", operands, domain, out_scale=scale, out_bias=bias) as results:
        shape = (1, rows, *(1,) * (x.rank - 2))
        counts = [
            cast(g, g.add("GreaterOrEqual", [x, g.constant(column.reshape(shape))]), x.value.dtype)
            for column in values.T
        ]
        total = counts[0]
        for count in counts[1:]:
            total = g.add("Add", [total, count])
        total = g.add("Mul", [total, number_like(g, x, scale)])
        results.append(g.add("Add", [total, number_like(g, x, bias)]))
    return results[-1]


def dynamic_codes(g: GraphBuilder, x: Tensor) -> Tensor:
    codes, scale, zero = g.add_several("DynamicQuantizeLinear", [x], outputs=3)
    return g.add("DequantizeLinear", [codes, scale, zero])


Binariser = Callable[[GraphBuilder, Tensor], Tensor]

BINARISERS: list[Binariser] = [
    sign, select, cast_comparison, two_signs, straight_through, ratio, sign_of, steep, integer_sign, patched_sign, band,
    bipolar_quant, scaled,
]  # fmt: skip
QUANTISERS: list[Binariser] = [
    round_levels, round_trip, thermometer, integer_codes, ternary, quant, multi_threshold, dynamic_codes,
]  # fmt: skip


def binarised(g: GraphBuilder, x: Tensor) -> Tensor:
    """``x`` with few values, in some spelling."""
    options = BINARISERS if g.chance(0.7) else QUANTISERS
    return sign(g, x) if g.chance(0.25) else g.random.choice(options)(g, x)


def binarise(g: GraphBuilder) -> None:
    """A sign or a quantiser of a float tensor."""
    binarised(g, g.pick("f"))
