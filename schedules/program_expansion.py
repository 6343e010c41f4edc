"""Expanding a channel program at load: the vectors of its nodes, one bit per weight, become lists of planes.

An artifact stores the nodes' vectors, in the program's order of rows and with bits in the order of taps (a channel that
does not exist has no bit), and the node table. The lists take about five times as much and are derived:
``expand_program`` makes exactly the indices of ``make_program``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.channel_program import (
    ALL_MINUS,
    NODE_FIELDS,
    SHORT_BLOCK,
    ChannelProgram,
    ChannelTree,
    index_scale,
)
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    PrimFunc,
    bind,
    build_kernel,
    load,
    register,
    serial,
    store,
)
from bnn_compiler.schedules.popcount import WORD_BITS, words_per


def pack_node_vectors(layout: PlaneLayout, trees: Sequence[ChannelTree], program: ChannelProgram) -> NDArray[np.uint64]:
    """The node vectors uint64 [nodes + 2, words]: rows as in the program, then those of all −1 and of all +1."""
    by_tap = np.argsort(layout.weight_taps())
    rows = [
        tree.vectors[program.order[first:last]]
        for tree, first, last in zip(trees, program.first_rows[:-1], program.first_rows[1:], strict=True)
    ]
    weights = layout.weights
    bits = np.concatenate([*rows, np.zeros((1, weights), np.bool_), np.ones((1, weights), np.bool_)])
    padded = np.zeros((len(bits), words_per(weights) * WORD_BITS), np.bool_)
    padded[:, :weights] = bits[:, by_tap]
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def expand_program(layout: PlaneLayout, nodes: int, indices: int, name: str = "expand_program") -> PrimFunc:
    """The kernel (vectors uint64 [nodes + 2, words], nodes int32 [nodes, fields]) -> indices uint16 [indices]."""
    arguments = [
        Argument("vectors", (nodes + 2, words_per(layout.weights)), "uint64"),
        Argument("nodes", (nodes, len(NODE_FIELDS)), "int32"),
        Argument("indices", (indices,), "uint16"),
    ]
    return build_kernel(name, "expand_program", arguments, lambda buffers: _Emitter(layout, nodes, buffers).emit())


class _Emitter:
    """Emits the loops over nodes, lists, words and bits."""

    def __init__(self, layout: PlaneLayout, nodes: int, buffers: Mapping[str, Buffer]) -> None:
        self.layout = layout
        self.nodes = nodes
        self.buffers = buffers
        self.position = register(1, "int32")
        self.bits = register(1, "uint64")

    def emit(self) -> None:
        """Write the lists of all nodes in order."""
        words = words_per(self.layout.weights)
        store(self.position, 0, tirx.const(0, "int32"))
        with serial(self.nodes) as row:
            parent = load(self.buffers["nodes"], row * len(NODE_FIELDS) + NODE_FIELDS.index("parent_row"))
            # The virtual parents −1 and −2 are the rows behind the nodes.
            parent = bind(tirx.Select(parent >= 0, parent, self.nodes + ALL_MINUS - parent))
            first, before = bind(row * words), bind(parent * words)
            for minuend, subtrahend in ((before, first), (first, before)):
                self._list(minuend, subtrahend, 0)
                if self.layout.plane_stride:
                    self._list(subtrahend, minuend, self.layout.plane_stride)
                with serial(-load(self.position, 0) & tirx.const(SHORT_BLOCK - 1, "int32")):
                    self._append(tirx.const(self.layout.zero_plane, "int32"))

    def _list(self, minuend: Expr, subtrahend: Expr, plane: int) -> None:
        """Append the taps of the weights that one vector has and the other has not."""
        # Whole words of channels lie as densely as their taps; of the last word only the real channels have bits.
        area = self.layout.geometry.kernel[0] * self.layout.geometry.kernel[1]
        channels, rest = divmod(self.layout.geometry.group_in_channels, WORD_BITS)
        dense = channels * area
        with serial(dense) as word:
            self._word(minuend + word, subtrahend + word, lambda bit: word * WORD_BITS + bit + plane)
        if rest:
            first_tap = dense * WORD_BITS + plane
            with serial(words_per(area * rest)) as word:

                def tap_of(bit: Expr) -> Expr:
                    weight = bind(word * WORD_BITS + bit)
                    return first_tap + weight // rest * WORD_BITS + weight % rest

                self._word(minuend + dense + word, subtrahend + dense + word, tap_of)

    def _word(self, minuend: Expr, subtrahend: Expr, tap_of: Callable[[Expr], Expr]) -> None:
        vectors = self.buffers["vectors"]
        one = tirx.const(1, "uint64")
        differing = bind(load(vectors, minuend) & tirx.bitwise_not(load(vectors, subtrahend)))
        store(self.bits, 0, differing)
        with serial(tirx.popcount(differing).astype("int32")):
            bits = bind(load(self.bits, 0))
            # The number of zeros below the lowest one.
            lowest = bind(tirx.popcount((bits - one) & tirx.bitwise_not(bits)).astype("int32"))
            store(self.bits, 0, bits & (bits - one))
            self._append(tap_of(lowest))

    def _append(self, tap: Expr) -> None:
        position = bind(load(self.position, 0))
        store(self.buffers["indices"], position, (tap * index_scale(self.layout)).astype("uint16"))
        store(self.position, 0, position + 1)
