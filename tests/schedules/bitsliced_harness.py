"""Random layers with channel trees of every shape, for the tests of the bit-sliced kernels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.bit_pool import can_pool
from bnn_compiler.schedules.channel_program import ALL_MINUS, ALL_PLUS, ChannelTree
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.reference import binarise, conv2d_reference, pack_conv_reference, values_of
from tests.schedules.kernel_harness import Array
from tests.schedules.paddings import Padding

TreeKind = Literal["minus_star", "plus_star", "chain", "random", "synthetic", "equal", "opposite"]
TREES: tuple[TreeKind, ...] = ("minus_star", "plus_star", "chain", "random", "synthetic", "equal", "opposite")


def random_signs(geometry: ConvGeometry, kind: TreeKind, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Signs bool [O, Cg, kh, kw]; all channels alike or each the opposite of the one before for two of the kinds."""
    shape = (geometry.out_channels, geometry.group_in_channels, *geometry.kernel)
    signs = rng.random(shape) < rng.choice([0.1, 0.5, 0.8])
    if kind in ("equal", "opposite"):
        flip = np.arange(geometry.out_channels) % 2 if kind == "opposite" else np.zeros(geometry.out_channels)
        signs = signs[:1] ^ flip.astype(np.bool_).reshape(-1, 1, 1, 1)
    return np.ascontiguousarray(signs)


def grow_tree(vectors: NDArray[np.bool_], kind: TreeKind, rng: np.random.Generator) -> ChannelTree:
    """A tree over ``vectors`` [channels, N]: a star on a root, a chain, or anything; nodes in random order."""
    channels, weights = vectors.shape
    if kind == "synthetic":
        vectors = np.concatenate([vectors, rng.random((rng.integers(1, channels + 3), weights)) < 0.5])
    nodes = len(vectors)
    order = rng.permutation(nodes)
    parents = [ALL_MINUS] * nodes
    for place, node in enumerate(order):
        before = order[:place]
        if kind == "plus_star":
            parents[node] = ALL_PLUS
        elif kind in ("chain", "equal", "opposite") and place:
            parents[node] = int(before[-1])
        elif kind in ("random", "synthetic"):
            parents[node] = int(rng.choice([*before, ALL_MINUS, ALL_PLUS]))
    return ChannelTree(vectors, parents)


def grow_trees(signs: NDArray[np.bool_], groups: int, kind: TreeKind, rng: np.random.Generator) -> list[ChannelTree]:
    """One tree per group."""
    return [grow_tree(vectors, kind, rng) for vectors in signs.reshape(groups, len(signs) // groups, -1)]


def reader_of(writer: ConvGeometry, *, groups: int = 1, pads: tuple[int, int, int, int] = (0, 0, 0, 0)) -> ConvGeometry:
    """A 1x1 convolution of the output of ``writer``, which may be a pool."""
    batch, channels, height, width = writer.batch, writer.out_channels, writer.out_height, writer.out_width
    return ConvGeometry(batch, channels, height, width, groups, (1, 1), pads=pads, groups=groups)


#: Kernel, strides, pads (top, left, bottom, right) and dilations of max-pools; those that do not fit are left out.
POOLS: tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]], ...] = (
    ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((3, 2), (1, 1), (1, 0, 0, 1), (1, 2)),
    ((1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 3), (3, 2), (0, 1, 1, 2), (2, 1)),
    ((4, 4), (1, 2), (3, 3, 2, 1), (1, 1)),
)


def pool_of(writer: ConvGeometry, index: int) -> ConvGeometry:
    """One of the max-pools that fit the output of ``writer``."""
    channels, height, width = writer.out_channels, writer.out_height, writer.out_width
    pools = [
        ConvGeometry(writer.batch, channels, height, width, channels, kernel, strides, pads, dilations, channels)
        for kernel, strides, pads, dilations in POOLS
    ]
    fitting = [pool for pool in pools if min(pool.out_height, pool.out_width) > 0 and can_pool(pool)]
    return fitting[index % len(fitting)]


def random_layer(
    geometry: ConvGeometry, padding: Padding, signs: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Packed activations, and the integers z that NumPy's convolution makes of them."""
    rule = PackRule("gt", alphabet=padding.alphabet)
    x = rng.choice([-1.5, 0.0, 2.0], (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
    x = x.astype(np.float32)
    bits = pack_conv_reference(geometry, x, rule, (), pad_code=padding.pad_code, fused=True)
    values = values_of(binarise(x, rule, (), fused=True), padding.alphabet)
    return bits, conv2d_reference(geometry, values, signs, padding.pad_value)


def random_thresholds(z: Array, rng: np.random.Generator) -> Array:
    """Per channel one of its own numbers, a neighbour of one, or a number that all or none reach; int64 [O]."""
    largest = 10 * int(np.abs(z).max()) + 10
    return np.array(
        [
            rng.choice([rng.choice(channel) + rng.integers(-1, 2), -largest, largest], p=[0.8, 0.1, 0.1])
            for channel in np.moveaxis(z, 1, 0).reshape(z.shape[1], -1)
        ]
    ).astype(np.int64)
