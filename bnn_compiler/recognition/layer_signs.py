"""The sign matrices of a network's binary layers, as the channel-tree solver wants them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import tvm

from bnn_compiler.composites import binary_composites, composite_names, read_composite
from bnn_compiler.frontend import import_onnx
from bnn_compiler.passes import DecideSignZeros, FoldBatchNorm, PartitionBinaryOps


@dataclass(frozen=True, eq=False)
class LayerSigns:
    """``groups`` uint8[M, N]: per group of the layer ``name`` its output channels, 1 where the weight is positive.

    Channels of different groups read different inputs, so each group has a tree of its own.
    """

    name: str
    op: str
    groups: tuple[npt.NDArray[np.uint8], ...]

    @property
    def channels(self) -> int:
        """Output channels of all groups."""
        return sum(len(group) for group in self.groups)

    @property
    def weights(self) -> int:
        """Weights of one output channel."""
        return int(self.groups[0].shape[1])


def binary_layer_signs(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[LayerSigns, ...]:
    """The binary layers of an ONNX model, in the order of the graph.

    Raises:
        BnncError: the model is refused.
    """
    imported = import_onnx(model, input_shapes=dict(input_shapes or {}))
    module = tvm.transform.Sequential([FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps()])(imported.module)
    return tuple(_read(module))


def _read(module: tvm.IRModule) -> Iterator[LayerSigns]:
    for function in binary_composites(module).values():
        spec, names = read_composite(function), composite_names(function)
        signs = spec.binary_weights.signs
        matrix = signs.reshape(signs.shape[0], -1).astype(np.uint8)
        groups = spec.geometry.groups if spec.geometry else 1
        yield LayerSigns(names.node, names.op, tuple(np.split(matrix, groups)))
