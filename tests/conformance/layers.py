"""Convolutions, products, pools and norms."""

from __future__ import annotations

from typing import Any

import numpy as np

from .binarisers import binarised
from .graph_builder import GraphBuilder, Tensor
from .one_node import RejectedNodeError
from .operands import cast, constant_like, some_axes, weight
from .values import constant_values

_OUTPUT_CHANNELS = (1, 2, 3, 4, 8, 16, 17, 32, 33)


def activation_for(g: GraphBuilder, *ranks: int) -> Tensor:
    """What a layer reads: a binarised tensor more often than not, or any; at times padded or pooled in between."""
    x = g.pick_rank(*ranks)
    if g.chance(0.65):
        x = binarised(g, x)
    if x.rank not in ranks:
        raise RejectedNodeError("another rank")
    if x.rank >= 3 and g.chance(0.12):
        x = pad_image(g, x)
    if x.value.dtype != np.float32 and g.chance(0.5):
        x = cast(g, x, np.float32)
    return x


def pad_image(g: GraphBuilder, x: Tensor) -> Tensor:
    """Constant padding of the axes behind the channels."""
    rank = x.rank - 2
    pads = [0, 0, *(g.random.randint(0, 2) for _ in range(rank)), 0, 0, *(g.random.randint(0, 2) for _ in range(rank))]
    value = g.choose(0.0, 0.0, 1.0, -1.0)
    if g.opset < 11:
        return g.add("Pad", [x], pads=pads, value=value)
    operand = None if value == 0 and g.chance(0.5) else g.constant(np.asarray(value, x.value.dtype))
    return g.add("Pad", [x, g.integers(*pads), operand])


def _window(g: GraphBuilder, x: Tensor, *, dilate: bool = True) -> dict[str, Any]:
    """Attributes of a window that fits the image."""
    rank = x.rank - 2
    kernel = [g.random.choice([k for k in (1, 1, 2, 3, 3, 4, 5) if k <= max(size, 1) + 2]) for size in x.shape[2:]]
    if g.chance(0.5):
        kernel = [kernel[0]] * rank
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": None}
    if g.chance(0.5):
        window["strides"] = [g.choose(1, 1, 2, 3) for _ in range(rank)]
    if dilate and g.chance(0.2):
        window["dilations"] = [g.choose(1, 2, 3) for _ in range(rank)]
    style = g.random.random()
    if style < 0.35:
        window["pads"] = [k // 2 for k in kernel] * 2
    elif style < 0.5:
        window["pads"] = [g.random.randint(0, k - 1) for k in kernel * 2]
    elif style < 0.65:
        window["auto_pad"] = g.choose("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    return window


def conv(g: GraphBuilder) -> None:
    """``Conv`` in one to three dimensions."""
    x = activation_for(g, 4, 4, 4, 3, 5)
    channels = x.shape[1]
    group = g.random.choice([k for k in (1, 1, 1, 2, 3, channels) if k and channels % k == 0] or [1])
    out = group * g.random.randint(1, 3) if group > 1 else g.random.choice(_OUTPUT_CHANNELS)
    window = _window(g, x)
    w = weight(g, (out, channels // group, *window["kernel_shape"]), 0, x)
    if g.chance(0.3):
        window["kernel_shape"] = None
    bias = g.constant(constant_values(g.random, g.rng, (out,), x.value.dtype)) if g.chance(0.3) else None
    g.add("Conv", [x, w, bias], group=group if group > 1 or g.chance(0.3) else None, **window)


def conv_transpose(g: GraphBuilder) -> None:
    """``ConvTranspose`` with all of its attributes."""
    x = activation_for(g, 4, 4, 3)
    channels = x.shape[1]
    group = g.random.choice([k for k in (1, 1, 1, 2, channels) if k and channels % k == 0] or [1])
    window = _window(g, x)
    out = g.random.randint(1, 5)
    w = weight(g, (channels, out, *window["kernel_shape"]), 1, x)
    bias = g.constant(constant_values(g.random, g.rng, (out * group,), x.value.dtype)) if g.chance(0.3) else None
    strides = window["strides"] or [1] * (x.rank - 2)
    extra: dict[str, Any] = {}
    if g.chance(0.2):
        extra["output_padding"] = [g.random.randrange(stride) for stride in strides]
    elif g.chance(0.2) and "pads" not in window:
        extra["output_shape"] = [size * s + g.choose(0, 0, 1) for size, s in zip(x.shape[2:], strides, strict=True)]
    g.add("ConvTranspose", [x, w, bias], group=group if group > 1 else None, **window, **extra)


def gemm(g: GraphBuilder) -> None:
    """``Gemm`` with transposes, scales and every shape of C."""
    x = activation_for(g, 2)
    trans_a, trans_b = g.choose(None, None, 0, 1), g.choose(None, 1, 1, 0)
    rows, inner = x.shape[::-1] if trans_a else x.shape
    out = g.random.choice(_OUTPUT_CHANNELS)
    w = weight(g, (out, inner) if trans_b else (inner, out), 0 if trans_b else 1, x)
    bias = None
    if g.chance(0.6) or (g.opset < 11 and g.chance(0.5)):
        shape = g.choose((out,), (out,), (1, out), (rows, 1), (rows, out), (), (1,))
        bias = g.constant(constant_values(g.random, g.rng, shape, x.value.dtype))
    g.add(
        "Gemm",
        [x, w, bias],
        transA=trans_a,
        transB=trans_b,
        alpha=g.choose(None, None, 1.0, 0.5, -1.0, 0.3),
        beta=g.choose(None, None, 1.0, 0.5, 0.0),
    )


def matmul(g: GraphBuilder) -> None:
    """``MatMul`` by a weight: from either side, batched, or of vectors."""
    x = activation_for(g, 2, 2, 3, 3, 4, 1)
    inner, out = x.shape[-1], g.random.choice(_OUTPUT_CHANNELS)
    style = g.random.randrange(6)
    if style == 0 and x.rank >= 2:
        g.add("MatMul", [weight(g, (out, x.shape[-2]), 0, x), x])
    elif style == 1 and x.rank >= 3:
        g.add("MatMul", [x, weight(g, (*x.shape[:-2], inner, out), x.rank - 1, x)])
    elif style == 2:
        g.add("MatMul", [x, weight(g, (inner,), 0, x)])
    else:
        y = g.add("MatMul", [x, weight(g, (inner, out), 1, x)])
        if g.chance(0.3):
            g.add("Add", [y, constant_like(g, y, (out,))])


def product(g: GraphBuilder) -> None:
    """The product of two activations, as in attention."""
    x = activation_for(g, 2, 3, 4)
    y = activation_for(g, 2, 3, 4)
    if y.value.dtype != x.value.dtype:
        y = cast(g, y, x.value.dtype)
    if g.chance(0.3):
        y = x
    if x.shape[-1] == y.shape[-1]:
        order = [*range(y.rank - 2), y.rank - 1, y.rank - 2]
        y = g.add("Transpose", [y], perm=order)
    elif x.shape[-1] != y.shape[-2]:
        raise RejectedNodeError("inner sizes differ")
    scores = g.add("MatMul", [x, y])
    if g.chance(0.3):
        g.add("Softmax", [scores], axis=-1)


def einsum(g: GraphBuilder) -> None:
    """``Einsum`` of one or two operands."""
    x = activation_for(g, 2, 3, 4)
    letters = "abcd"[: x.rank]
    out = g.random.choice(_OUTPUT_CHANNELS[:6])
    style = g.random.randrange(4)
    if style == 0:
        result = "".join(g.random.sample(letters, x.rank))
        g.add("Einsum", [x], equation=f"{letters}->{result}")
    elif style == 1:
        g.add("Einsum", [x], equation=f"{letters}->{letters[: g.random.randint(0, x.rank)]}")
    else:
        w = weight(g, (x.shape[-1], out), 1, x)
        g.add("Einsum", [x, w], equation=f"{letters},{letters[-1]}z->{letters[:-1]}z")


def integer_product(g: GraphBuilder) -> None:
    """``MatMulInteger`` of codes."""
    x = g.pick_rank(2, 3)
    codes = cast(g, binarised(g, x), g.choose(np.int8, np.uint8)) if g.chance(0.5) else None
    if codes is None:
        codes = g.add("QuantizeLinear", [x, g.constant(np.float32(0.1)), g.constant(np.uint8(3))])
    w = g.constant(g.rng.integers(-2, 3, (codes.shape[-1], 4)).astype(np.int8))
    zero = g.choose(None, g.constant(np.asarray(1, codes.value.dtype)))
    cast(g, g.add("MatMulInteger", [codes, w, zero]), np.float32)


def pool(g: GraphBuilder) -> None:
    """``MaxPool``, ``AveragePool`` and ``LpPool``."""
    x = g.pick_rank(4, 4, 4, 3, 5)
    op = g.choose("MaxPool", "MaxPool", "AveragePool", "AveragePool", "LpPool")
    window = _window(g, x, dilate=op == "MaxPool" or g.opset >= 19)
    if g.chance(0.25):
        window["ceil_mode"] = 1
    if op == "AveragePool":
        window["count_include_pad"] = g.choose(None, 0, 1)
    if op == "LpPool":
        window["p"] = g.choose(None, 1, 2)
    outputs = 2 if op == "MaxPool" and g.chance(0.1) else 1
    g.add_several(op, [x], outputs=outputs, **window)


def global_pool(g: GraphBuilder) -> None:
    """Pools over the whole image."""
    x = g.pick_rank(4, 4, 3, 5)
    op = g.choose("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    g.add(op, [x], p=g.choose(None, 1, 2) if op == "GlobalLpPool" else None)


def batch_norm(g: GraphBuilder) -> None:
    """``BatchNormalization`` in inference, with any parameters a training may leave."""
    x = g.pick_rank(4, 4, 2, 3, 5)
    channels = (x.shape[1],)
    dtype = x.value.dtype
    plain = g.chance(0.25)
    gamma = np.ones(channels) if plain else constant_values(g.random, g.rng, channels, np.float64)
    beta = np.zeros(channels) if g.chance(0.25) else constant_values(g.random, g.rng, channels, np.float64)
    mean = np.zeros(channels) if g.chance(0.25) else constant_values(g.random, g.rng, channels, np.float64)
    variance = np.ones(channels) if plain else g.rng.uniform(0.05, 4, channels)
    parameters = [g.constant(value.astype(dtype)) for value in (gamma, beta, mean, variance)]
    g.add("BatchNormalization", [x, *parameters], epsilon=g.choose(None, None, 1e-3, 1e-7))


def norm(g: GraphBuilder) -> None:
    """Norms over instances, layers, groups and neighbours."""
    op = g.choose(
        "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization", "LRN",
        "MeanVarianceNormalization", "LpNormalization",
    )  # fmt: skip
    x = g.pick_rank(4, 3)
    dtype = x.value.dtype

    def parameter(*shape: int) -> Tensor:
        return g.constant(constant_values(g.random, g.rng, shape, dtype))

    channels = x.shape[1]
    if op == "InstanceNormalization":
        g.add(op, [x, parameter(channels), parameter(channels)], epsilon=g.choose(None, 1e-3))
    elif op in ("LayerNormalization", "RMSNormalization"):
        axis = g.random.randint(1, x.rank - 1)
        shape = x.shape[axis:]
        bias = parameter(*shape) if op[0] == "L" and g.chance(0.7) else None
        g.add(op, [x, parameter(*shape), bias], axis=g.choose(axis, axis - x.rank), epsilon=g.choose(None, 1e-3))
    elif op == "GroupNormalization":
        groups = g.random.choice([k for k in (1, 2, 3, 4, channels) if k and channels % k == 0])
        size = channels if g.opset >= 21 else groups
        g.add(op, [x, parameter(size), parameter(size)], num_groups=groups)
    elif op == "LRN":
        g.add(op, [x], size=g.choose(1, 2, 3, 5), alpha=g.choose(None, 0.1), beta=g.choose(None, 0.5), bias=1.0)
    elif op == "LpNormalization":
        g.add(op, [x], axis=g.choose(None, 1), p=g.choose(None, 1, 2))
    else:
        g.add(op, [x], axes=sorted({axis % x.rank for axis in some_axes(g, x)}) or None)


def block(g: GraphBuilder) -> None:
    """A residual block: binarise, convolve, normalise, add."""
    x = g.pick_rank(4)
    channels = x.shape[1]
    s = binarised(g, x)
    y = g.add("Conv", [s, weight(g, (channels, channels, 3, 3), 0, s)], pads=[1, 1, 1, 1])
    if g.chance(0.7):
        scale = g.constant(g.rng.uniform(-1, 1, (1, channels, 1, 1)).astype(y.value.dtype))
        y = g.add("Mul", [y, scale])
    if x.value.dtype == y.value.dtype:
        y = g.add("Add", [y, x])
    if g.chance(0.3):
        g.add(g.choose("Relu", "PRelu", "HardSwish"), [y])
