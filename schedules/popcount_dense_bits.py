"""Popcount dense layers from bits to bits: results are thresholded and packed for the dense layer that reads them.

The bit [z >= T] of a feature is [P <= Q], Q = floor((offset − T)/step) (see ``popcount`` for z = offset − step·P), or
its opposite. A feature's bit is kept in a word of its own until the row is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.feature_bits import FeaturePacker
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    PrimFunc,
    bind,
    build_kernel,
    constant,
    load,
    serial,
    store,
    workspace,
)
from bnn_compiler.schedules.popcount import Alphabet, code_step, common_offset
from bnn_compiler.schedules.popcount_dense import DenseEmitter, DenseLayer, dense_bits_shape, dense_weights_shape


def popcount_dense_bits_constants(
    in_features: int,
    constants: Sequence[NDArray[Any]],
    thresholds: NDArray[np.int64],
    inverted: NDArray[np.bool_],
    *,
    alphabet: Alphabet,
) -> tuple[NDArray[np.generic], ...]:
    """Weights, bounds Q int32 [N] and ``inverted`` uint32 [N].

    ``constants`` are those of ``popcount_dense_constants``. Feature n gives the bits [z >= thresholds[n]], or their
    opposites where ``inverted[n]``.
    """
    weights, *offsets = constants
    offset = offsets[0].astype(np.int64) if offsets else common_offset(alphabet, in_features)
    bounds = (offset - thresholds) // code_step(alphabet)
    return weights, bounds.astype(np.int32), inverted.astype(np.uint32)


def popcount_dense_bits(rows: int, in_features: int, out_features: int, *, alphabet: Alphabet, isa: Isa) -> PrimFunc:
    """The kernel (bits, weights, bounds, inverted) -> bits, uint64 of ``dense_bits_shape(rows, out_features)``.

    ``popcount_dense_bits_constants`` gives the arguments behind ``bits``.
    """
    layer = DenseLayer(rows, in_features, out_features, alphabet, True, isa)
    arguments = [
        Argument("bits", dense_bits_shape(rows, in_features, alphabet), "uint64"),
        Argument("weights", dense_weights_shape(layer), "uint64"),
        Argument("bounds", (out_features,), "int32"),
        Argument("inverted", (out_features,), "uint32"),
        Argument("output", dense_bits_shape(rows, out_features, "bipolar"), "uint64"),
    ]
    name = f"popcount_dense_bits_{alphabet}_{isa.name}"
    return build_kernel(name, name, arguments, lambda buffers: _BitsEmitter(layer, buffers).emit())


class _BitsEmitter(DenseEmitter):
    """Results become words of 0 or 1, a row of which becomes bits."""

    def __init__(self, layer: DenseLayer, buffers: Mapping[str, Buffer]) -> None:
        super().__init__(layer, buffers)
        self.packer = FeaturePacker(layer.out_features, layer.isa)
        self.found = workspace(layer.rows * self.packer.stride, "uint32")

    def emit(self) -> None:
        """All products, then all rows."""
        super().emit()
        with serial(self.layer.rows) as row:
            start = bind(row * self.packer.stride)
            self.packer.clear_rest(self.found, start)
            self.packer.pack(self.found, start, self.buffers["output"], row * self.packer.words)

    def finisher(self, feature: Index, lanes: int) -> Callable[[Expr, Expr], None]:
        """Compare with the bounds."""
        bound = bind(load(self.buffers["bounds"], feature, lanes))
        missed = bind(load(self.buffers["inverted"], feature, lanes))
        reached = bind(missed ^ constant(1, "uint32", lanes))

        def finish(row: Expr, disagreements: Expr) -> None:
            found = tirx.Select(disagreements <= bound, reached, missed)
            store(self.found, row * self.packer.stride + feature, found, lanes)

        return finish
