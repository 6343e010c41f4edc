"""Random chains: float operators, a binariser, moves, a product; once or twice; several chains in one model."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import onnx

from .activations import activation
from .float_operators import float_operator
from .graph_writer import Array, Exactness, GraphWriter, Tensor, make_model
from .moves import move
from .products import convolution, matrix_product

OPSETS = range(9, 22)
MAX_ELEMENTS = 4096
"""Of a tensor; chains that grow beyond it end there."""


@dataclass(frozen=True)
class RandomModel:
    """A model of several chains; ``exact`` names the outputs with one right answer, ``expected`` layers' statuses."""

    model: onnx.ModelProto
    exact: frozenset[str]
    expected: dict[str, str]

    def feeds(self, seed: int) -> dict[str, Array]:
        """Odd multiples of 1/16 up to 4, of which ±1/16 … ±1 are as frequent as the rest."""
        generator = np.random.default_rng(seed)
        feeds = {}
        for info in self.model.graph.input:
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            near = generator.integers(0, 8, shape) * 2 + 1
            far = generator.integers(0, 32, shape) * 2 + 1
            values = np.where(generator.random(shape) < 0.5, near, far) * generator.choice([-1, 1], shape) / 16
            feeds[info.name] = values.astype(onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
        return feeds


def random_model(random: Random, chains: int) -> RandomModel:
    """``chains`` random chains of one operator set as one model; the same for the same state of ``random``."""
    opset = random.choice(OPSETS)
    writers, outputs, exact = [], [], set()
    expected: dict[str, str] = {}
    for index in range(chains):
        dtype = np.dtype(random.choice([np.float32] * 8 + [np.float16, np.float64]))
        writer = GraphWriter(random, f"c{index}", opset, dtype, dyadic=random.randrange(4) > 0)
        for tensor in _chain(writer, expected):
            outputs.append((tensor.name, writer.element_type))
            if tensor.exactness == Exactness.EXACT:
                exact.add(tensor.name)
        writers.append(writer)
    # Kernels take float32 (and float16 as float32); float64 stays as it is.
    double = {node.name for writer in writers if writer.dtype == np.float64 for node in writer.nodes}
    kept = {name: status for name, status in expected.items() if name not in double}
    return RandomModel(make_model(writers, outputs, opset), frozenset(exact), kept)


def _chain(writer: GraphWriter, expected: dict[str, str]) -> list[Tensor]:
    """Write one chain; its outputs, each once and none of them an input."""
    random = writer.random
    rank = random.choice([0, 1, 2, 2, 2, 2, 2, 3])
    channels = random.choice([1, 2, 3, 4, 8, 12, 33] if rank < 3 else [1, 2, 4])
    space = [random.choice([1, 2, 4, 5, 6, 8] if rank < 3 else [2, 3, 4]) for _ in range(rank)]
    data = source = writer.input([random.choice([1, 1, 1, 2]), channels, *space])
    outputs: list[Tensor] = []
    for _ in range(random.choice([1, 1, 2])):
        for _ in range(random.choice([0, 0, 1, 2])):
            data = float_operator(writer, data)
        data = activation(writer, data)
        if random.randrange(8) == 0:
            outputs.append(data)
        for _ in range(random.choice([0, 0, 1, 2])):
            data = _small(move(writer, data), data)
        # ONNX Runtime has no convolution in double precision.
        convolves = len(data.shape) > 2 and not writer.is_double and random.randrange(8)
        product = convolution if convolves else matrix_product
        data = product(writer, data, expected)
        if random.randrange(8) == 0:
            outputs.append(data)
        for _ in range(random.choice([0, 0, 1, 2])):
            data = float_operator(writer, data)
    outputs.append(data)
    return list({tensor.name: tensor for tensor in outputs if tensor.name != source.name}.values())


def _small(new: Tensor, old: Tensor) -> Tensor:
    return new if np.prod(new.shape) <= MAX_ELEMENTS else old
