"""Operators element by element."""

from __future__ import annotations

import numpy as np

from .graph_builder import GraphBuilder, Tensor
from .one_node import RejectedNodeError
from .operands import cast, constant_like, number_like, partner
from .values import constant_values

_ALL = """
Abs Ceil Floor Neg Round Relu Sigmoid Tanh Sqrt Exp Log Reciprocal Erf Sin Cos Tan Softplus Softsign HardSwish
Identity Sign Atan Asin Acos Sinh Cosh Asinh Acosh Atanh Mish
"""
_PLAIN = _ALL.split()
_OFTEN = ["Relu", "Abs", "Neg", "Tanh", "Sigmoid", "Floor", "Ceil", "Round", "HardSwish", "Identity", "Exp", "Sign"]


def unary(g: GraphBuilder) -> None:
    """A function of one float."""
    g.add(g.random.choice(_OFTEN if g.chance(0.7) else _PLAIN), [g.pick("f")])


def activation(g: GraphBuilder) -> None:
    """Activations with attributes."""
    x = g.pick("f")
    alpha = g.choose(None, 0.0, 1.0, 0.1, 0.25, -0.5)
    op = g.choose("LeakyRelu", "Elu", "Selu", "HardSigmoid", "ThresholdedRelu", "Shrink", "Gelu", "PRelu", "Celu")
    if op == "Selu":
        g.add(op, [x], alpha=alpha, gamma=g.choose(None, 1.0, 0.5))
    elif op == "HardSigmoid":
        g.add(op, [x], alpha=alpha, beta=g.choose(None, 0.5, 0.0))
    elif op == "Shrink":
        g.add(op, [x], bias=g.choose(None, 0.0, 0.5), lambd=g.choose(None, 0.0, 0.5, 1.0))
    elif op == "Gelu":
        g.add(op, [x], approximate=g.choose(None, "none", "tanh"))
    elif op == "PRelu":
        # Broadcasts to x one way only.
        shape = g.choose((1,), x.shape[-1:], (x.shape[1], *(1,) * (x.rank - 2)) if x.rank > 1 else (1,))
        g.add(op, [x, g.constant(constant_values(g.random, g.rng, shape, x.value.dtype))])
    else:
        g.add(op, [x], alpha=alpha)


def clip(g: GraphBuilder) -> None:
    """``Clip`` with one bound, both or none."""
    x = g.pick("fiu" if g.chance(0.2) else "f")
    low, high = g.choose((0.0, 1.0), (-1.0, 1.0), (0.0, 6.0), (None, 0.0), (0.5, None), (-2.0, 3.0), (None, None))
    if g.opset < 11:
        g.add("Clip", [x], min=low, max=high)
        return
    bounds = [None if bound is None else g.constant(np.asarray(bound, x.value.dtype)) for bound in (low, high)]
    g.add("Clip", [x, *bounds])


def binary(g: GraphBuilder) -> None:
    """Arithmetic of two tensors with broadcasting."""
    op = g.random.choices(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"], [6, 4, 6, 2, 0.6, 1.5, 1.5])[0]
    x = g.pick("f")
    y = partner(g, x)
    if op == "Pow":
        y = number_like(g, x, g.choose(2.0, 0.5, 3.0, 1.0, 0.0, -1.0))
    elif g.chance(0.3):
        x, y = y, x
    g.add(op, [x, y])


def variadic(g: GraphBuilder) -> None:
    """``Sum``, ``Mean``, ``Max`` and ``Min`` of one to four tensors."""
    x = g.pick("f")
    g.add(g.choose("Sum", "Mean", "Max", "Min"), [x, *(partner(g, x) for _ in range(g.random.randint(0, 3)))])


def integer_arithmetic(g: GraphBuilder) -> None:
    """Arithmetic of integers."""
    if g.chance(0.4):
        source = g.pick("fb")
        x = cast(g, bounded(g, source), g.choose(np.int32, np.int64, np.int8, np.uint8))
    else:
        x = g.pick("iu")
    op = g.choose("Add", "Sub", "Mul", "Div", "Mod", "Abs", "Neg", "Max", "Min", "Sign", "BitShift", "Bitwise", "Relu")
    positive = g.constant(g.rng.integers(1, 4, ()).astype(x.value.dtype))
    if op in ("Abs", "Neg", "Sign", "Relu"):
        g.add(op, [x])
    elif op == "Div":
        g.add(op, [x, positive])
    elif op == "Mod":
        g.add(op, [x, positive], fmod=g.choose(None, 0, 1))
    elif op == "BitShift":
        g.add(op, [x, positive], direction=g.choose("LEFT", "RIGHT"))
    elif op == "Bitwise":
        kind = g.choose("And", "Or", "Xor", "Not")
        g.add(f"Bitwise{kind}", [x] if kind == "Not" else [x, partner(g, x)])
    else:
        g.add(op, [x, partner(g, x)])


def bounded(g: GraphBuilder, x: Tensor) -> Tensor:
    """``x`` within what every integer type holds, since other floats have no defined integer."""
    if x.kind != "f":
        return x
    low, high = (np.asarray(bound, x.value.dtype) for bound in (g.choose(0, -3), g.choose(3, 20)))
    if g.opset < 11:
        return g.add("Clip", [x], min=float(low), max=float(high))
    return g.add("Clip", [x, g.constant(low), g.constant(high)])


def compare(g: GraphBuilder) -> None:
    """Comparisons, and tests for NaN and infinity."""
    x = g.pick("fiu" if g.chance(0.3) else "f")
    op = g.choose("Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual", "IsNaN", "IsInf")
    if op == "IsNaN":
        g.add(op, [x])
    elif op == "IsInf":
        g.add(op, [x], detect_negative=g.choose(None, 0, 1), detect_positive=g.choose(None, 0, 1))
    else:
        y = partner(g, x)
        g.add(op, [x, y] if g.chance(0.7) else [y, x])


def logical(g: GraphBuilder) -> None:
    """Operators of truth values."""
    x = g.pick("b")
    op = g.choose("And", "Or", "Xor", "Not")
    g.add(op, [x] if op == "Not" else [x, partner(g, x)])


def select(g: GraphBuilder) -> None:
    """``Where``."""
    try:
        condition = g.pick("b")
    except RejectedNodeError:
        source = g.pick("f")
        condition = g.add("Greater", [source, constant_like(g, source)])
    x = g.pick("f")
    g.add("Where", [condition, x, partner(g, x)] if g.chance(0.5) else [condition, partner(g, x), x])


def convert(g: GraphBuilder) -> None:
    """``Cast`` to any type; floats that become integers are bounded first."""
    x = g.pick("fiub")
    dtype = g.choose(
        np.float32, np.float32, np.float32, np.float64, np.float16, np.int32, np.int64, np.int8, np.uint8, bool
    )
    if x.kind == "f" and np.dtype(dtype).kind in "iu":
        x = bounded(g, x)
    y = cast(g, x, dtype)
    if y.kind != "f" and g.chance(0.5):
        cast(g, y, np.float32)


def gate(g: GraphBuilder) -> None:
    """x times a gate of x or of another tensor."""
    x = g.pick("f")
    y = g.pick("f", lambda other: other.value.dtype == x.value.dtype)
    op = g.choose("Sigmoid", "HardSigmoid", "Tanh", "Relu", "Softmax", "Sign")
    g.add("Mul", [x, g.add(op, [y])])


def scale_and_shift(g: GraphBuilder) -> None:
    """Per channel, as exporters write a batch-norm or a learned scale."""
    x = g.pick("f")
    g.add("Add", [g.add("Mul", [x, constant_like(g, x)]), constant_like(g, x)])


def residual(g: GraphBuilder) -> None:
    """The sum of two tensors of one shape."""
    x = g.pick("f")
    y = g.pick("f", lambda other: other.shape == x.shape and other.value.dtype == x.value.dtype and other is not x)
    g.add(g.choose("Add", "Add", "Sub", "Mul", "Sum"), [x, y])


def drop(g: GraphBuilder) -> None:
    """``Dropout`` in inference, with a ratio as an attribute or an operand."""
    x = g.pick("f")
    if g.opset < 12:
        g.add_several("Dropout", [x], ratio=g.choose(None, 0.3), outputs=1)
    else:
        g.add_several("Dropout", [x, g.choose(None, g.constant(np.float32(0.3)))], outputs=g.choose(1, 1, 2))


def like(g: GraphBuilder) -> None:
    """``CastLike``."""
    g.add("CastLike", [bounded(g, g.pick("fiub")), g.pick("fiu")])


def remainder(g: GraphBuilder) -> None:
    """``Mod`` of floats."""
    x = g.pick("f")
    g.add("Mod", [x, number_like(g, x, g.choose(1.0, 2.0, 0.5, -3.0))], fmod=1)
