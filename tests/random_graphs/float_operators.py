"""Random float operators around binary layers: batch-norm, activations, arithmetic, residual additions, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .graph_writer import Exactness, GraphWriter, Tensor, approximate, exact, rounded

FloatOperator = Callable[[GraphWriter, Tensor], Tensor]


def _per_channel(data: Tensor) -> tuple[int, ...]:
    return (data.shape[1], *[1] * (len(data.shape) - 2))


def _cycle(values: list[float], size: int) -> np.ndarray:
    return np.resize(np.asarray(values, np.float64), size)


def _batch_norm(writer: GraphWriter, data: Tensor) -> Tensor:
    """With powers of two throughout, or with any numbers; γ of either sign, and sometimes 0."""
    channels = data.shape[1]
    if writer.dyadic or writer.random.randrange(2):
        parameters = [
            _cycle([1, -0.5, 2, 0.25, 0, -1], channels),
            _cycle([0, 1, -2, 0.5, 3], channels),
            _cycle([0.5, 0, -1, 3], channels),
            _cycle([4, 1, 0.25], channels),
        ]
        names = [writer.constant(values) for values in parameters]
        name = writer.node("BatchNormalization", data.name, *names, epsilon=0.0)
        # γ/σ is between 1/8 and 4.
        return exact(data, name, writer, bound=4 * (data.bound + 3) + 3, step=min(data.step, 0.5) / 8)
    generator = np.random.default_rng(writer.random.randrange(2**32))
    gamma = generator.uniform(-1.5, 1.5, channels)
    beta, mean = generator.uniform(-1, 1, channels), generator.uniform(-2, 2, channels)
    names = [writer.constant(values) for values in (gamma, beta, mean, generator.uniform(0.5, 4, channels))]
    name = writer.node("BatchNormalization", data.name, *names)
    return rounded(data, name, bound=3 * (data.bound + 3))


def _relu(writer: GraphWriter, data: Tensor) -> Tensor:
    return exact_or_same(writer, data, writer.node("Relu", data.name), data.bound, data.step)


def _clip(writer: GraphWriter, data: Tensor) -> Tensor:
    low, high = writer.random.choice([(0.0, 6.0), (-1.0, 1.0), (-0.5, 3.0)])
    return exact_or_same(writer, data, writer.clip(data.name, low, high), 6.0, min(data.step, 0.5))


def exact_or_same(writer: GraphWriter, data: Tensor, name: str, bound: float, step: float) -> Tensor:
    """The result of an operator that selects among values: as exact as its operand."""
    result = exact(data, name, writer, bound=bound, step=step)
    if data.exactness == Exactness.EXACT:
        return result
    return Tensor(name, data.shape, data.exactness, bound, 0.0)


def _prelu(writer: GraphWriter, data: Tensor) -> Tensor:
    if writer.random.randrange(2):
        slope = writer.constant(_cycle([0.25, 0.5, -0.25, 2], data.shape[1]).reshape(_per_channel(data)))
        name = writer.node("PRelu", data.name, slope)
        return exact(data, name, writer, bound=2 * data.bound, step=data.step / 4)
    if writer.dyadic or writer.random.randrange(2):
        name = writer.node("LeakyRelu", data.name, alpha=0.125)
        return exact(data, name, writer, bound=data.bound, step=data.step / 8)
    slope = writer.constant(_cycle([0.1, 0.3, 0.7], data.shape[1]).reshape(_per_channel(data)))
    return rounded(data, writer.node("PRelu", data.name, slope), bound=data.bound)


def _affine(writer: GraphWriter, data: Tensor) -> Tensor:
    """Multiplication, division, addition or subtraction of a constant, on either side."""
    random = writer.random
    form = random.choice([(), (1,), _per_channel(data), data.shape])
    size = math.prod(form)
    dyadic = writer.dyadic or random.randrange(3) > 0
    values = _cycle([0.5, 2, -1, 1, 0.25] if dyadic else [0.3, -1.7, 2.1], size).reshape(form)
    other = writer.constant(values)
    kind = random.choice(["Mul", "Add", "Sub", "Div"])
    swapped = kind != "Div" and random.randrange(2)
    name = writer.node(kind, *([other, data.name] if swapped else [data.name, other]))
    bound = data.bound * 4 + 4
    if not dyadic:
        return rounded(data, name, bound=bound)
    return exact(data, name, writer, bound=bound, step=min(data.step, 1.0) / 4)


def _residual(writer: GraphWriter, data: Tensor) -> Tensor:
    """The tensor and a function of it, added."""
    # The sign of a sum that cancels but for rounding is anything.
    jumps = [] if data.exactness == Exactness.APPROXIMATE else ["Sign"]
    other = writer.node(writer.random.choice(["Relu", "Abs", *jumps]), data.name)
    step = min(data.step, 1.0)
    return exact(data, writer.node("Add", data.name, other), writer, bound=2 * data.bound + 1, step=step)


def _average_pool(writer: GraphWriter, data: Tensor) -> Tensor:
    rank = len(data.shape) - 2
    if rank != 2 or min(data.shape[2:]) < 2:
        return data
    name = writer.node("AveragePool", data.name, kernel_shape=[2, 2], strides=[2, 2])
    shape = (*data.shape[:2], data.shape[2] // 2, data.shape[3] // 2)
    return exact(data, name, writer, bound=4 * data.bound, step=data.step / 4, shape=shape)


def _smooth(writer: GraphWriter, data: Tensor) -> Tensor:
    return approximate(data, writer.node(writer.random.choice(["Sigmoid", "Tanh"]), data.name), bound=1.0)


FLOAT_OPERATORS: list[FloatOperator] = [
    _batch_norm, _batch_norm, _batch_norm, _relu, _clip, _prelu, _affine, _affine, _residual, _average_pool, _smooth,
]  # fmt: skip


def float_operator(writer: GraphWriter, data: Tensor) -> Tensor:
    """A random float operator on ``data``; ``data`` itself where it does not apply."""
    skipped = ({_smooth} if writer.dyadic else set()) | ({_prelu, _average_pool} if writer.is_double else set())
    choices = [entry for entry in FLOAT_OPERATORS if entry not in skipped]
    return writer.random.choice(choices)(writer, data)
