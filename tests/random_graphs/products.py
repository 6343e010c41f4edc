"""Random convolutions and matrix products, and the ways in which exporters store their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from .graph_writer import Array, Exactness, GraphWriter, Tensor, approximate, exact

Weight = tuple[str, float, float, bool]
"""Name, bound of |w|, its step (0: not dyadic), and whether it is ±α per output channel with both signs."""


def _signs(writer: GraphWriter, shape: Sequence[int]) -> Array:
    """Random ±1 with both signs."""
    generator = np.random.default_rng(writer.random.randrange(2**32))
    values = generator.choice(np.asarray([-1.0, 1.0]), tuple(shape))
    if values.size > 1:
        values.flat[0], values.flat[-1] = 1, -1
    return values


def _weight_values(writer: GraphWriter, shape: Sequence[int], out_axis: int) -> tuple[Array, float, bool]:
    """Values, step, and whether they are binary."""
    random, values = writer.random, _signs(writer, shape)
    form = [1] * len(shape)
    form[out_axis] = shape[out_axis]
    kind = random.choice([0, 1, 2, 3, 4, 6, 7, 8] if writer.dyadic else range(9))
    several = values.size > 1
    if kind <= 3:
        return values, 1.0, several
    if kind == 4:
        alpha = np.resize(np.asarray([0.5, 2.0, -1.0, 0.25]), shape[out_axis]).reshape(form)
        return (
            values * alpha,
            0.25,
            False if not several else bool((values * alpha > 0).any() and (values * alpha < 0).any()),
        )
    if kind == 5:
        alpha = np.geomspace(0.05, 1.3, shape[out_axis]).reshape(form)
        return (values * alpha).astype(np.float32), 0.0, several
    if kind == 6:  # a zero, of either sign
        values.flat[random.randrange(values.size)] = random.choice([0.0, -0.0])
        return values, 1.0, False
    if kind == 7:
        generator = np.random.default_rng(random.randrange(2**32))
        return generator.integers(-8, 9, values.shape) / 4.0, 0.25, False
    return np.abs(values), 1.0, False


def _weight(writer: GraphWriter, shape: Sequence[int], out_axis: int) -> Weight:
    """A weight as an initialiser, or computed from one in the graph."""
    random = writer.random
    values, step, binary = _weight_values(writer, shape, out_axis)
    bound = float(np.abs(values).max())
    whole = bool((values == np.rint(values)).all())
    kind = random.randrange(8)
    if kind == 1:
        order = list(range(len(shape)))
        random.shuffle(order)
        stored = writer.constant(np.ascontiguousarray(values.transpose(order)))
        name = writer.node("Transpose", stored, perm=[order.index(axis) for axis in range(len(order))])
    elif kind == 2:
        name = writer.node("Reshape", writer.constant(values.reshape(-1)), writer.constant(list(shape), np.int64))
    elif kind == 3 and whole:
        name = writer.node("Cast", writer.constant(values, np.int8), to=writer.element_type)
    elif kind == 4 and whole and writer.opset >= 10 and writer.element_type == TensorProto.FLOAT:
        name = writer.node("DequantizeLinear", writer.constant(values, np.int8), writer.constant(0.5))
        bound, step = bound / 2, step / 2
    elif kind == 5 and whole and (np.abs(values) == 1).all():
        latent = values * np.random.default_rng(random.randrange(2**32)).uniform(0.1, 2, values.shape)
        name = writer.node("Sign", writer.constant(latent))
        if random.randrange(2):
            name, bound, step = writer.node("Mul", name, writer.constant(0.5)), 0.5, 0.5
    elif kind == 6:
        name = writer.node("Identity", writer.constant(values))
    else:
        name = writer.constant(values)
    return name, bound, step, binary


def _bias(writer: GraphWriter, size: int) -> tuple[list[str], float, float]:
    """No bias, a dyadic one, or any; with its bound and step."""
    kind = writer.random.randrange(3 if writer.dyadic else 4)
    if kind < 2:
        return [], 0.0, 1.0
    values = np.resize(np.asarray([0.0, 1.5, -2.0, 0.25, -7.0]), size)
    if kind == 2:
        return [writer.constant(values)], 7.0, 0.25
    return [writer.constant(values + 0.1)], 7.1, 0.0


def _result(
    writer: GraphWriter,
    data: Tensor,
    name: str,
    shape: tuple[int, ...],
    terms: int,
    weight: Weight,
    bias: tuple[float, float],
) -> Tensor:
    bound = terms * data.bound * weight[1] + bias[0]
    step = min(data.step * weight[2], bias[1])
    if data.exactness == Exactness.EXACT and step > 0:
        return exact(data, name, writer, bound=bound, step=step, shape=shape)
    result = approximate(data, name, bound=bound)
    return Tensor(name, shape, result.exactness, bound, 0.0)


def convolution(writer: GraphWriter, data: Tensor, expected: dict[str, str]) -> Tensor:
    """A convolution with random groups, window, strides, dilations and pads; of rank 1, 2 or 3."""
    random, rank = writer.random, len(data.shape) - 2
    channels, space = data.shape[1], data.shape[2:]
    divisors = [group for group in range(1, channels + 1) if channels % group == 0]
    group = random.choice([1, 1, 1, *divisors, channels])
    out_channels = group * random.choice([1, 1, 2, 3] if group > 1 else [1, 2, 3, 5, 8, 17])
    if out_channels > 24:
        out_channels = group
    kernel, pads_before, pads_after, strides, dilations, out_space = [], [], [], [], [], []
    same = random.randrange(4) == 0
    for extent in space:
        dilation = random.choice([1, 1, 1, 2])
        before, after = (random.choice([0, 0, 1, 1, 2]) for _ in range(2))
        size = random.choice([1, 2, 3, 3, 5])
        stride = random.choice([1, 1, 2, 3])
        if same:
            before = after = 0
        while (size - 1) * dilation + 1 > extent + (0 if same else before + after):
            size -= 1
        out = -(-extent // stride) if same else (extent + before + after - (size - 1) * dilation - 1) // stride + 1
        kernel.append(size)
        pads_before.append(before)
        pads_after.append(after)
        strides.append(stride)
        dilations.append(dilation)
        out_space.append(out)
    if same:
        padding: dict[str, Any] = {"auto_pad": random.choice(["SAME_UPPER", "SAME_LOWER"])}
        dilations = [1] * rank
        out_space = [-(-extent // stride) for extent, stride in zip(space, strides, strict=True)]
    elif random.randrange(8) == 0 and not any(pads_before + pads_after):
        padding = {"auto_pad": "VALID"}
    else:
        padding = {"pads": pads_before + pads_after}
    weight = _weight(writer, [out_channels, channels // group, *kernel], 0)
    bias, bias_bound, bias_step = _bias(writer, out_channels)
    if random.randrange(2):
        padding["kernel_shape"] = kernel
    name = writer.node(
        "Conv", data.name, weight[0], *bias, group=group, strides=strides, dilations=dilations, **padding
    )
    if rank in (1, 2, 3) and data.signs is not None and weight[3]:
        expected[writer.nodes[-1].name] = "binary"
    shape = (data.shape[0], out_channels, *out_space)
    terms = channels // group * math.prod(kernel)
    return _result(writer, data, name, shape, terms, weight, (bias_bound, bias_step))


def matrix_product(writer: GraphWriter, data: Tensor, expected: dict[str, str]) -> Tensor:
    """``Gemm`` or ``MatMul`` of a matrix with a constant on either side; tensors of higher rank are flattened."""
    random = writer.random
    if len(data.shape) != 2:
        flat = (data.shape[0], math.prod(data.shape[1:]))
        name = writer.node("Flatten", data.name, axis=1)
        data = Tensor(name, flat, data.exactness, data.bound, data.step, data.signs, data.may_be_zero)
    rows, columns = data.shape
    outputs = random.choice([1, 2, 5, 8, 17])
    kind = random.randrange(5)
    bias_values = (0.0, 1.0)
    if kind == 0:  # W · xᵀ
        weight = _weight(writer, [outputs, columns], 0)
        transposed = writer.node("Transpose", data.name, perm=[1, 0])
        name = writer.node("Transpose", writer.node("MatMul", weight[0], transposed), perm=[1, 0])
        node = writer.nodes[-2].name
    elif kind == 1:
        weight = _weight(writer, [columns, outputs], 1)
        name = writer.node("MatMul", data.name, weight[0])
        node = writer.nodes[-1].name
    elif kind == 2:  # batched
        weight = _weight(writer, [columns, outputs], 1)
        deep = writer.node("Reshape", data.name, writer.constant([rows, 1, columns], np.int64))
        product = writer.node("MatMul", deep, weight[0])
        node = writer.nodes[-1].name
        name = writer.node("Reshape", product, writer.constant([rows, outputs], np.int64))
    else:
        transposed_weight = random.randrange(2)
        weight = _weight(writer, [outputs, columns] if transposed_weight else [columns, outputs], 1 - transposed_weight)
        bias, *bias_rest = _bias(writer, outputs)
        if not bias and writer.opset < 11:
            bias = [writer.constant([0.0])]
        alpha, beta = random.choice([1.0, 0.5, -2.0]), random.choice([1.0, 0.5, 0.0])
        weight = (weight[0], weight[1] * abs(alpha), weight[2] * min(abs(alpha), 1.0), weight[3])
        bias_values = (bias_rest[0], bias_rest[1] * (0.5 if bias_rest[1] else 0.0))
        source, flip = data.name, random.randrange(3) == 0
        if flip:
            source = writer.node("Transpose", data.name, perm=[1, 0])
        name = writer.node(
            "Gemm", source, weight[0], *bias, alpha=alpha, beta=beta, transA=int(flip), transB=transposed_weight
        )
        node = writer.nodes[-1].name
    if data.signs is not None and weight[3]:
        expected[node] = "binary"
    return _result(writer, data, name, (rows, outputs), columns, weight, bias_values)
