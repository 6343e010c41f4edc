"""Channel-packed XNOR-popcount dense layers: y = x·Wᵀ for x [M, K] and W [N, K] of ±1.

Bits arrive as uint64 [M, planes·KW] in strided order (``pack``). Vectors run over adjacent output features, which lie
next to each other in the packed weights; activation words are broadcast. One row (batch 1) streams the weights once
through the caches and keeps as many feature vectors in flight as there are registers; several rows share each load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.intrinsics import VectorPopcount, vector_popcount
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
    register,
    serial,
    store,
)
from bnn_compiler.schedules.pack_weights import DENSE_INTERLEAVE, pack_dense_weights
from bnn_compiler.schedules.popcount import (
    Alphabet,
    OutDtype,
    PopcountTile,
    channel_offsets,
    code_bits,
    common_offset,
    default_zero,
    float_result,
    has_offset_per_channel,
    integer_result,
    narrowed,
    planes,
    spans,
    words_per,
)


def dense_bits_shape(rows: int, in_features: int, alphabet: Alphabet) -> tuple[int, int]:
    """Shape of the packed activation (uint64) that a dense layer reads."""
    return (rows, planes(alphabet) * words_per(in_features))


def popcount_dense_constants(
    signs: NDArray[np.bool_], *, alphabet: Alphabet, zero: int | None = None
) -> tuple[NDArray[np.generic], ...]:
    """The arguments of ``popcount_dense`` between bits and scale, from the weights' signs bool [N, K].

    They are weights uint64 [ceil(N/8), KW, 8] (ternary: 2·KW), then offsets int32 [N] where they differ.
    """
    weights = pack_dense_weights(signs, alphabet)
    zero = default_zero(alphabet) if zero is None else zero
    if not has_offset_per_channel(alphabet, zero):
        return (weights,)
    return weights, channel_offsets(signs, alphabet, zero)


def popcount_dense(
    rows: int,
    in_features: int,
    out_features: int,
    *,
    alphabet: Alphabet,
    has_scale: bool,
    has_bias: bool,
    isa: Isa,
    out_dtype: OutDtype = "float32",
    zero: int | None = None,
) -> PrimFunc:
    """The kernel (bits, weights, [offsets], [scale f32 [N]], [bias f32 [N]]) -> y [M, N].

    ``popcount_dense_constants`` gives the arguments behind ``bits``. ``zero`` is what c·code is where an activation is
    0 (see ``popcount``); None for the alphabet's own. An int32 result takes neither scale nor bias.
    """
    if out_dtype == "int32" and (has_scale or has_bias):
        raise ValueError("an int32 result takes neither scale nor bias")
    zero = default_zero(alphabet) if zero is None else zero
    layer = DenseLayer(rows, in_features, out_features, alphabet, has_offset_per_channel(alphabet, zero), isa)
    arguments = [
        Argument("bits", dense_bits_shape(rows, in_features, alphabet), "uint64"),
        Argument("weights", dense_weights_shape(layer), "uint64"),
    ]
    if layer.offset_per_feature:
        arguments.append(Argument("offsets", (out_features,), "int32"))
    if has_scale:
        arguments.append(Argument("scale", (out_features,), "float32"))
    if has_bias:
        arguments.append(Argument("bias", (out_features,), "float32"))
    arguments.append(Argument("output", (rows, out_features), out_dtype))
    name = f"popcount_dense_{alphabet}_{isa.name}"
    return build_kernel(name, name, arguments, lambda buffers: DenseEmitter(layer, buffers).emit())


@dataclass(frozen=True)
class DenseLayer:
    """The sizes that shape the loops."""

    rows: int
    in_features: int
    out_features: int
    alphabet: Alphabet
    offset_per_feature: bool
    isa: Isa

    @property
    def depth(self) -> int:
        """Words of activation per dot product."""
        return planes(self.alphabet) * words_per(self.in_features)

    @property
    def weight_depth(self) -> int:
        """Words of weights per dot product: the planes of a code share them."""
        return self.depth // code_bits(self.alphabet)


def dense_weights_shape(layer: DenseLayer) -> tuple[int, int, int]:
    """Shape of the packed weights, uint64."""
    return (-(-layer.out_features // DENSE_INTERLEAVE), layer.weight_depth, DENSE_INTERLEAVE)


class DenseEmitter:
    """Emits the loops of one dense layer; ``finisher`` is what becomes of its results."""

    def __init__(self, layer: DenseLayer, buffers: Mapping[str, Buffer]) -> None:
        self.layer = layer
        self.buffers = buffers
        self.unit: VectorPopcount = vector_popcount(layer.isa)
        lanes = self.unit.lanes
        vectors = -(-layer.out_features // lanes)
        tile_vectors, tile_rows = self.unit.tile
        self.tile_rows = min(tile_rows, layer.rows)
        # Few rows leave registers for more vectors of features.
        self.tile_vectors = min(tile_vectors * tile_rows // self.tile_rows, self.unit.tile[0] * 2, vectors)
        self.tile = PopcountTile(
            self.unit, self.tile_vectors, self.tile_rows, layer.weight_depth, code_bits(layer.alphabet)
        )
        self.spill = register(lanes, "int32")

    def emit(self) -> None:
        """Features outside, rows inside: a tile's weights stay in L1 for all rows."""
        tile_features = self.tile_vectors * self.unit.lanes
        with serial(self.layer.out_features // tile_features) as tile:
            self._rows(tile * tile_features, tile_features)
        if rest := self.layer.out_features % tile_features:
            self._rows(self.layer.out_features - rest, rest)

    def _rows(self, first_feature: Index, features: int) -> None:
        with serial(self.layer.rows // self.tile_rows) as tile:
            self._block(tile * self.tile_rows, self.tile_rows, first_feature, features)
        if rest := self.layer.rows % self.tile_rows:
            self._block(self.layer.rows - rest, rest, first_feature, features)

    def _block(self, first_row: Index, rows: int, first_feature: Index, features: int) -> None:
        """One register tile; the last vector of ``features`` may be partly real."""
        layer = self.layer
        lanes = self.unit.lanes
        vectors = -(-features // lanes)
        # Vectors narrower than the interleave take a part of it.
        parts = DENSE_INTERLEAVE // lanes
        first_block = first_feature // DENSE_INTERLEAVE
        first_part = first_feature // lanes % parts

        def vector_at(_plane: int, k: Index, i: int) -> Expr:
            part = first_part + i
            block = first_block + part // parts
            row = block * layer.weight_depth + k
            return load(self.buffers["weights"], row * DENSE_INTERLEAVE + part % parts * lanes, lanes)

        def word_at(plane: int, k: Index, j: int) -> Expr:
            return load(self.buffers["bits"], (first_row + j) * layer.depth + plane * layer.weight_depth + k)

        totals = self.tile.emit(vectors, rows, vector_at, word_at)
        whole = features // lanes
        for i, count in spans([vector * lanes for vector in range(whole)], lanes, layer.isa):
            feature, width = first_feature + i * lanes, count * lanes
            finish = self.finisher(feature, width)
            for j in range(rows):
                finish(first_row + j, narrowed([totals[i + vector][j] for vector in range(count)], lanes))
        for j in range(rows if whole < vectors else 0):
            store(self.spill, 0, narrowed(totals[whole][j : j + 1], lanes), lanes)
            for lane in range(features - whole * lanes):
                self.finisher(first_feature + whole * lanes + lane, 1)(first_row + j, load(self.spill, lane))

    def finisher(self, feature: Index, lanes: int) -> Callable[[Expr, Expr], None]:
        """What takes the disagreements of a row with ``lanes`` adjacent features, int32, and stores the result."""
        parameters = self._parameters(feature, lanes)

        def finish(row: Expr, disagreements: Expr) -> None:
            z = integer_result(disagreements, self._offset(feature, lanes), self.layer.alphabet, lanes)
            self._store(row * self.layer.out_features + feature, z, parameters, lanes)

        return finish

    def _parameters(self, feature: Index, lanes: int) -> list[Expr | None]:
        return [
            bind(load(self.buffers[name], feature, lanes)) if name in self.buffers else None
            for name in ("scale", "bias")
        ]

    def _offset(self, feature: Index, lanes: int) -> Expr:
        if self.layer.offset_per_feature:
            return load(self.buffers["offsets"], feature, lanes)
        return constant(common_offset(self.layer.alphabet, self.layer.in_features), "int32", lanes)

    def _store(self, index: Expr, z: Expr, parameters: list[Expr | None], lanes: int) -> None:
        output = self.buffers["output"]
        if str(output.dtype) == "float32":
            z = float_result(z, parameters[0], parameters[1], lanes, self.layer.isa)
        store(output, index, z, lanes)
