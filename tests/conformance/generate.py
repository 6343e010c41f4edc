"""A random case: a graph, its reference, inputs and options."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import onnx

from . import binarisers, elementwise, layers, shapes
from .graph_builder import GraphBuilder, Tensor
from .one_node import Array, RejectedNodeError
from .values import FEEDS, feed_values

Emitter = Callable[[GraphBuilder], None]

EMITTERS: dict[Emitter, float] = {
    binarisers.binarise: 8,
    layers.conv: 7,
    layers.block: 2,
    layers.conv_transpose: 1.5,
    layers.gemm: 2.5,
    layers.matmul: 3,
    layers.product: 1.5,
    layers.einsum: 0.5,
    layers.integer_product: 0.3,
    layers.pool: 3,
    layers.global_pool: 1,
    layers.batch_norm: 3,
    layers.norm: 1,
    elementwise.unary: 3,
    elementwise.activation: 2,
    elementwise.clip: 1,
    elementwise.binary: 5,
    elementwise.variadic: 0.7,
    elementwise.integer_arithmetic: 1.2,
    elementwise.compare: 1,
    elementwise.logical: 0.7,
    elementwise.select: 1,
    elementwise.convert: 1,
    elementwise.gate: 1,
    elementwise.scale_and_shift: 1.5,
    elementwise.residual: 2.5,
    elementwise.drop: 0.3,
    elementwise.like: 0.2,
    elementwise.remainder: 0.2,
    shapes.reshape: 1,
    shapes.flatten: 1,
    shapes.transpose: 1.5,
    shapes.squeeze: 0.5,
    shapes.unsqueeze: 0.5,
    shapes.expand: 0.5,
    shapes.tile: 0.4,
    shapes.concat: 2,
    shapes.split: 1,
    shapes.slices: 1,
    shapes.gather: 1,
    shapes.scatter: 0.4,
    shapes.pad: 1.2,
    shapes.blocks: 0.6,
    shapes.triangle: 0.2,
    shapes.resize: 1,
    shapes.sample: 0.2,
    shapes.reduce: 2,
    shapes.argmax: 0.4,
    shapes.top: 0.3,
    shapes.cumulate: 0.3,
    shapes.softmax: 0.7,
    shapes.one_hot: 0.3,
    shapes.shape_arithmetic: 0.5,
    shapes.make: 0.2,
    shapes.branch: 0.2,
    shapes.rare: 0.05,
    shapes.fold: 0.4,
    shapes.join: 0.4,
}

OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
_LIKELY_OPSETS = (9, 11, 13, 13, 15, 17, 17, 18, 20, 21)


@dataclass(frozen=True)
class Options:
    """What the compiler is asked for; ``sign_zero`` of None is its default."""

    algorithm: str = "auto"
    sign_zero: str | None = None
    target: str = "native"
    threads: int = 1


@dataclass(frozen=True)
class Case:
    """One model, the standard model that says what is right, inputs by kind, and options."""

    model: bytes
    reference: bytes
    feeds: dict[str, dict[str, Array]]
    options: Options = field(default_factory=Options)

    def to_bytes(self) -> bytes:
        """For another process of the same user."""
        return pickle.dumps(self)

    @staticmethod
    def from_bytes(data: bytes) -> Case:
        """The opposite of ``to_bytes``; only ever of data that this program wrote."""
        case = pickle.loads(data)
        assert isinstance(case, Case)
        return case

    def with_models(self, model: onnx.ModelProto, reference: onnx.ModelProto) -> Case:
        """The same with other models."""
        return replace(self, model=model.SerializeToString(), reference=reference.SerializeToString())


def random_case(
    seed: str, *, largest: int = 30, targets: Sequence[str] = ("native",), kinds: Sequence[str] = FEEDS
) -> Case:
    """The case of a seed; ``largest`` bounds the number of nodes, more or less. ``kinds`` are those of its inputs."""
    random = Random(seed)
    opset = random.choice(_LIKELY_OPSETS if random.random() < 0.8 else OPSETS)
    g = GraphBuilder(random, opset)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        g.add_input(_input_value(g))
    wanted = random.randint(5, largest)
    emitters, weights = list(EMITTERS), list(EMITTERS.values())
    for _ in range(8 * wanted):
        if len(g.entries) >= wanted:
            break
        with contextlib.suppress(RejectedNodeError):
            random.choices(emitters, weights)[0](g)
    open_batch = random.random() < 0.1 and all(tensor.rank and tensor.shape[0] for tensor in g.inputs)
    model, reference = g.models(_outputs(g), open_batch)
    feeds = {
        kind: {tensor.name: feed_values(kind, tensor.value, g.rng) for tensor in g.inputs}
        for kind in FEEDS
        if kind != "ordinary"
    }
    feeds = {"ordinary": {tensor.name: tensor.value for tensor in g.inputs}, **feeds}
    feeds = {kind: feed for kind, feed in feeds.items() if kind in kinds}
    options = Options(
        random.choices(["auto", "float", "popcount", "bitsliced"], [5, 2, 2, 2])[0],
        random.choices([None, "exact", "plus"], [3, 1, 1])[0],
        random.choice(targets),
        random.choice([1, 1, 1, 2]),
    )
    return Case(model.SerializeToString(), reference.SerializeToString(), feeds, options)


def _input_value(g: GraphBuilder) -> Array:
    dtype: Any = g.random.choices(
        [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.int8, bool],
        [30, 1.5, 1.5, 1, 1, 1, 0.5, 0.5],
    )[0]
    if not g.inputs and np.dtype(dtype).kind != "f":
        dtype = np.float32
    shape = _shape(g)
    return feed_values("ordinary", np.zeros(shape, dtype), g.rng)


def _shape(g: GraphBuilder) -> tuple[int, ...]:
    if g.inputs and g.chance(0.4):
        return g.random.choice(g.inputs).shape
    batch = g.choose(1, 1, 1, 2, 3)
    channels = g.choose(1, 2, 3, 4, 5, 8, 12, 16, 17, 32, 33, 64)
    rank = g.random.choices([4, 3, 2, 5, 1, 0], [12, 3, 4, 1, 0.5, 0.3])[0]
    sizes = [g.choose(1, 2, 3, 4, 5, 6, 7, 8, 9) for _ in range(rank)]
    shape = [batch, channels, *sizes][: max(rank, 0)]
    if rank == 5:
        shape = [batch, g.choose(1, 2, 3, 4), *(min(size, 5) for size in sizes[:3])]
    if shape and g.chance(0.015):
        shape[g.random.randrange(len(shape))] = 0
    return tuple(shape)


def _outputs(g: GraphBuilder) -> list[Tensor]:
    """What nothing reads, some of the rest, and at times an input, a constant, or one tensor under two names."""
    read = {name for entry in g.entries for name in entry.node.input}
    loose = [tensor for tensor in g.pool if tensor.name not in read and tensor not in g.inputs]
    if len(loose) > 5:
        loose = loose[-5:]
    outputs = loose or [g.pool[-1]]
    inner = [tensor for tensor in g.pool if tensor.name in read and tensor not in g.inputs]
    for _ in range(g.choose(0, 0, 1, 2)):
        if inner:
            outputs.append(g.random.choice(inner))
    if g.chance(0.04):
        outputs.append(g.inputs[0])
    if g.chance(0.04) and g.constants:
        name = g.random.choice(list(g.constants))
        outputs.append(Tensor(name, g.constants[name], constant=True))
    if g.chance(0.04):
        with contextlib.suppress(RejectedNodeError):
            outputs.append(g.add("Identity", [outputs[0]]))
    unique = {tensor.name: tensor for tensor in outputs}
    return list(unique.values())
