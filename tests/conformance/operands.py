"""Operands that fit a tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx.helper import np_dtype_to_tensor_dtype

from .graph_builder import GraphBuilder, Tensor
from .one_node import RejectedNodeError
from .values import constant_values, weight_values


def cast(g: GraphBuilder, tensor: Tensor, dtype: npt.DTypeLike) -> Tensor:
    """``Cast`` to a NumPy type."""
    return g.add("Cast", [tensor], to=int(np_dtype_to_tensor_dtype(np.dtype(dtype))))


def constant_like(g: GraphBuilder, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """A constant of the tensor's type that broadcasts to it: one number, per channel, per axis or whole."""
    if shape is None:
        style = g.random.randrange(6)
        if style < 2 or tensor.rank == 0:
            shape = () if style == 0 else (1,) * g.random.randint(0, tensor.rank)
        elif style == 2 and tensor.rank >= 2:
            shape = (1, tensor.shape[1], *(1,) * (tensor.rank - 2))[g.random.randint(0, 1) :]
        elif style == 3:
            shape = tensor.shape[-1:]
        elif style == 4:
            shape = tuple(size if g.chance(0.5) else 1 for size in tensor.shape)
        else:
            shape = tensor.shape
    # Constants are shared at times: the same scale or threshold for several operators.
    if g.chance(0.2):
        for name, value in g.constants.items():
            if value.dtype == tensor.value.dtype and value.shape == shape and value.dtype.kind in "f":
                return Tensor(name, value, constant=True)
    return g.constant(constant_values(g.random, g.rng, shape, tensor.value.dtype))


def number_like(g: GraphBuilder, tensor: Tensor, value: float) -> Tensor:
    """One number of the tensor's type, in one of the shapes that exporters give it."""
    shape = g.choose((), (), (1,), (1,) * tensor.rank)
    return g.constant(np.full(shape, value, tensor.value.dtype))


def partner(g: GraphBuilder, tensor: Tensor) -> Tensor:
    """The other operand of a broadcast operator: a constant, another tensor, or the same."""
    draw = g.random.random()
    if draw < 0.05:
        return tensor
    if draw < 0.5:
        others = [other for other in g.pool if other.value.dtype == tensor.value.dtype and _broadcasts(other, tensor)]
        if others:
            return others[-1 - min(len(others) - 1, int(abs(g.random.gauss(0, 1)) * 2.5))]
    return constant_like(g, tensor)


def _broadcasts(left: Tensor, right: Tensor) -> bool:
    try:
        shape = np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        return False
    return bool(np.prod(shape) <= 4096)


def weight(g: GraphBuilder, shape: tuple[int, ...], axis: int, like: Tensor) -> Tensor:
    """A layer's weight of the type of ``like``: an initialiser, at times another layer's, or computed in the graph."""
    dtype = like.value.dtype
    if g.chance(0.3):
        for name, value in g.constants.items():
            if value.dtype == dtype and value.shape == shape and value.ndim > 1:
                return Tensor(name, value, constant=True)
    values = weight_values(g.random, g.rng, shape, axis, dtype)
    style = g.random.randrange(14)
    per_channel = tuple(size if i == axis else 1 for i, size in enumerate(shape))
    if style == 0:
        return g.add("Sign", [g.constant(g.rng.standard_normal(shape).astype(dtype))])
    if style == 1:
        scale = g.constant(g.rng.uniform(0.1, 1, per_channel).astype(dtype))
        return g.add("Mul", [g.constant(np.sign(values)), scale])
    if style == 2 and len(shape) > 1:
        order = list(range(len(shape)))
        g.random.shuffle(order)
        stored = np.ascontiguousarray(values.transpose(np.argsort(order)))
        return g.add("Transpose", [g.constant(stored)], perm=order)
    if style == 3:
        return cast(g, g.constant(np.sign(values).astype(np.int8)), dtype)
    if style == 4 and g.opset >= 13 and dtype == np.float32:
        stored = np.clip(np.round(values), -8, 7).astype(np.int8)
        scale = g.constant(g.rng.uniform(0.1, 1, shape[axis]).astype(dtype))
        return g.add("DequantizeLinear", [g.constant(stored), scale], axis=axis)
    if style == 5:
        latent = g.constant(g.rng.standard_normal(shape).astype(dtype))
        one = g.constant(np.ones((), dtype))
        return g.add("Where", [g.add("Greater", [latent, g.constant(np.zeros((), dtype))]), one, g.add("Neg", [one])])
    return g.constant(values)


def axis_of(g: GraphBuilder, tensor: Tensor) -> int:
    """An axis, counted from either end.

    Raises:
        RejectedNodeError: a tensor without axes.
    """
    if tensor.rank == 0:
        raise RejectedNodeError("no axis")
    axis = g.random.randrange(tensor.rank)
    return axis - tensor.rank if g.chance(0.3) else axis


def some_axes(g: GraphBuilder, tensor: Tensor) -> list[int]:
    """Some axes, counted from either end, in some order."""
    axes = [axis for axis in range(tensor.rank) if g.chance(0.5)]
    g.random.shuffle(axes)
    return [axis - tensor.rank if g.chance(0.2) else axis for axis in axes]
