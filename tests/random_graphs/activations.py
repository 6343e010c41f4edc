"""Random spellings of binarisers and quantisers: from any float tensor to one of a few values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from .graph_writer import Exactness, GraphWriter, Tensor, approximate, exact

Activation = Callable[[GraphWriter, Tensor], Tensor]


def _of_values(data: Tensor, name: str, *, bound: float, step: float, signs: float | None = None) -> Tensor:
    """A step function of ``data``: exact where rounding cannot move ``data`` across the step."""
    level = Exactness.APPROXIMATE if data.exactness == Exactness.APPROXIMATE else Exactness.EXACT
    return replace(data, name=name, exactness=level, bound=bound, step=step, signs=signs, may_be_zero=signs is None)


def _sign(writer: GraphWriter, data: Tensor) -> Tensor:
    name = writer.node("Sign", data.name)
    return _of_values(data, name, bound=1, step=1, signs=None if data.may_be_zero else 1.0)


def _larq(writer: GraphWriter, data: Tensor) -> Tensor:
    offset = writer.constant(writer.random.choice([0.1, 0.5, 1e-3]))
    name = writer.node("Sign", writer.node("Add", writer.node("Sign", data.name), offset))
    return _of_values(data, name, bound=1, step=1, signs=1.0)


def _limit(writer: GraphWriter, data: Tensor) -> str:
    """A threshold: scalar, per channel, per pixel, per element, or computed at run time; often hit exactly."""
    random, shape = writer.random, data.shape
    step = data.step or 0.25
    kind = random.randrange(6)
    if kind == 5 and len(shape) > 2:
        # The largest value of a channel is exact, and reached.
        since = 18
        axes = list(range(2, len(shape)))
        return writer.axes_node("ReduceMax", data.name, axes, since=since, keepdims=1)
    if kind == 1 and len(shape) > 1:
        form: tuple[int, ...] = (shape[1], *[1] * (len(shape) - 2))
    elif kind == 2 and len(shape) > 2:
        form = shape[2:]
    elif kind == 3:
        form = shape
    else:
        form = random.choice([(), (1,), (1,) * len(shape)])
    size = int(np.prod(form, dtype=np.int64))
    values = np.asarray([random.choice([-2, -1, 0, 0, 1, 3]) for _ in range(min(size, 64))])
    return writer.constant(np.resize(values, form) * step)


def _where(writer: GraphWriter, data: Tensor) -> Tensor:
    random = writer.random
    test, _ = writer.compare(data.name, _limit(writer, data))
    if random.randrange(4) == 0:
        test = writer.node("Not", test)
    pairs = [(1, -1), (1, -1), (-1, 1), (0.5, -0.5), (1, -0.5), (1, 0), (3, -1)]
    high, low = random.choice(pairs if writer.dyadic else [*pairs, (0.6, -0.6)])
    name = writer.node("Where", test, writer.constant(high), writer.constant(low))
    signs = abs(float(high)) if high == -low else None
    step = 0.0 if abs(high) == 0.6 else 0.5
    return _of_values(data, name, bound=max(abs(high), abs(low)), step=step, signs=signs)


def _cast(writer: GraphWriter, data: Tensor) -> Tensor:
    random = writer.random
    test, _ = writer.compare(data.name, _limit(writer, data))
    if random.randrange(3) == 0:
        test = writer.node("Cast", test, to=random.choice([TensorProto.INT8, TensorProto.INT32, TensorProto.FLOAT]))
    bit = writer.node("Cast", test, to=writer.element_type)
    kind = random.randrange(4)
    if kind == 0:
        return _of_values(data, bit, bound=1, step=1)
    if kind == 1:
        name = writer.node("Sub", writer.constant(1), writer.node("Mul", bit, writer.constant(2)))
    elif kind == 2:
        name = writer.node("Sub", writer.node("Add", bit, bit), writer.constant(1))
    else:
        name = writer.node(
            "Mul", writer.node("Sub", bit, writer.constant(0.5)), writer.constant(random.choice([2, -2]))
        )
    return _of_values(data, name, bound=1, step=1, signs=1.0)


def _residue(writer: GraphWriter, data: Tensor) -> Tensor:
    """Straight-through estimator left in the graph: ±1 up to rounding."""
    sign = writer.node("Sign", writer.node("Add", writer.node("Sign", data.name), writer.constant(0.1)))
    smooth = writer.clip(data.name, -1, 1) if writer.random.randrange(2) else writer.node("Tanh", data.name)
    name = writer.node("Add", writer.node("Sub", sign, smooth), smooth)
    result = _of_values(data, name, bound=1, step=0, signs=1.0)
    return replace(result, exactness=Exactness.APPROXIMATE)


def _ratio(writer: GraphWriter, data: Tensor) -> Tensor:
    if data.may_be_zero:
        return _sign(writer, data)
    name = writer.node("Div", data.name, writer.node("Abs", data.name))
    return _of_values(data, name, bound=1, step=1, signs=1.0)


def _codes(writer: GraphWriter, data: Tensor) -> Tensor:
    """k-bit codes: a clipped tensor rounded to integers, scaled by a power of two or by 1/(2^k - 1)."""
    random = writer.random
    levels = random.choice([1, 2, 3, 3, 7, 15])
    low = random.choice([0, 0, -1, -levels])
    scaled = writer.node("Mul", data.name, writer.constant(random.choice([1, 2, 4])))
    clipped = writer.clip(scaled, low, levels)
    whole = writer.node("Round" if writer.opset >= 11 and random.randrange(2) else "Floor", clipped)
    result = _of_values(data, whole, bound=levels, step=1)
    if random.randrange(2):
        return result
    if writer.dyadic or random.randrange(2):
        return exact(result, writer.node("Mul", whole, writer.constant(0.5)), writer, bound=levels / 2, step=0.5)
    divided = writer.node("Div", whole, writer.constant(levels))
    return replace(result, name=divided, bound=1.0, step=0.0, exactness=max(result.exactness, Exactness.ROUNDED))


def _three_values(writer: GraphWriter, data: Tensor) -> Tensor:
    limit = writer.constant(0.5)
    high = writer.node("Cast", writer.node("Greater", data.name, limit), to=writer.element_type)
    low = writer.node("Cast", writer.node("Less", data.name, writer.node("Neg", limit)), to=writer.element_type)
    return _of_values(data, writer.node("Sub", high, low), bound=1, step=1)


def _hard_sigmoid(writer: GraphWriter, data: Tensor) -> Tensor:
    """Courbariaux's binarisation: 2·round(clip((x + 1) / 2, 0, 1)) - 1."""
    half = writer.node("Mul", writer.node("Add", data.name, writer.constant(1)), writer.constant(0.5))
    clipped = writer.clip(half, 0, 1)
    rounds = writer.opset >= 11
    whole = writer.node("Round" if rounds else "Ceil", clipped)
    name = writer.node("Sub", writer.node("Mul", whole, writer.constant(2)), writer.constant(1))
    # Rounding up gives +1 alone where the data cannot be below -1.
    return _of_values(data, name, bound=1, step=1, signs=1.0 if rounds else None)


def _product_of_signs(writer: GraphWriter, data: Tensor) -> Tensor:
    other = _where(writer, data)
    name = writer.node("Mul", _larq(writer, data).name, other.name)
    # One value in all where both have the same threshold: then the layer is not expected to be binary.
    return _of_values(data, name, bound=other.bound, step=other.step)


ACTIVATIONS: list[Activation] = [
    _sign, _sign, _larq, _where, _where, _where, _cast, _cast, _residue, _ratio, _codes, _codes, _three_values,
    _hard_sigmoid, _product_of_signs,
]  # fmt: skip


def activation(writer: GraphWriter, data: Tensor) -> Tensor:
    """A random binariser or quantiser of ``data``."""
    choices = [entry for entry in ACTIVATIONS if not writer.dyadic or entry is not _residue]
    if data.exactness == Exactness.APPROXIMATE:
        # Off the grid of thresholds: a sum of ±1 up to rounding is often next to a whole number.
        data = approximate(data, writer.node("Add", data.name, writer.constant(0.0371)), bound=data.bound + 1)
    return writer.random.choice(choices)(writer, data)
