"""Expanding a channel program at load: the vectors of its nodes, one bit per weight, become lists of planes.

An artifact stores the nodes' vectors, in the program's order of rows and with bits in the order of taps (a channel that
does not exist has no bit), and the node table. Vectors follow each other without gaps, so that they take one bit per
weight and node however few weights a channel has (a depthwise layer has nine). A synthetic node that is of any use has
two children at least, so there are fewer of them than channels: at most 2 bits per weight. The lists take about five
times as much and are derived: ``expand_program`` makes exactly the indices of ``make_program``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bnn_compiler.schedules.bit_planes import PlaneLayout
from bnn_compiler.schedules.channel_program import (
    ALL_PLUS,
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
    constant,
    load,
    register,
    serial,
    store,
)
from bnn_compiler.schedules.popcount import WORD_BITS, words_per

_PARENT_ROW = NODE_FIELDS.index("parent_row")
_ALL_ONES = (1 << WORD_BITS) - 1


def pack_node_vectors(layout: PlaneLayout, trees: Sequence[ChannelTree], program: ChannelProgram) -> NDArray[np.uint64]:
    """The node vectors, rows as in the program, as one string of bits: bit i is bit i % 64 of word i // 64.

    uint64 [packed_words]; what is behind the last vector is 0.
    """
    by_tap = np.argsort(layout.weight_taps())
    rows = [
        tree.vectors[program.order[first:last]][:, by_tap]
        for tree, first, last in zip(trees, program.first_rows[:-1], program.first_rows[1:], strict=True)
    ]
    bits = np.concatenate(rows).reshape(-1)
    padded = np.zeros(packed_words(layout, len(program.nodes)) * WORD_BITS, np.bool_)
    padded[: bits.size] = bits
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


def packed_words(layout: PlaneLayout, nodes: int) -> int:
    """Words of ``pack_node_vectors``: one more than the bits need, because words are read in pairs."""
    return words_per(nodes * layout.weights) + 1


def expand_program(layout: PlaneLayout, nodes: int, indices: int, name: str = "expand_program") -> PrimFunc:
    """The kernel (vectors uint64 [packed_words], nodes int32 [nodes, fields]) -> indices uint16 [indices]."""
    arguments = [
        Argument("vectors", (packed_words(layout, nodes),), "uint64"),
        Argument("nodes", (nodes, len(NODE_FIELDS)), "int32"),
        Argument("indices", (indices,), "uint16"),
    ]
    return build_kernel(name, "expand_program", arguments, lambda buffers: _Emitter(layout, nodes, buffers).emit())


@dataclass(frozen=True)
class _Vector:
    """Where a vector begins, in bits; of a virtual parent ``keep`` is 0 and every bit is that of ``fill``."""

    first_bit: Expr
    keep: Expr | None = None
    fill: Expr | None = None


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
        store(self.position, 0, tirx.const(0, "int32"))
        with serial(self.nodes) as row:
            node = _Vector(bind(self._first_bit(row)))
            parent = self._parent(bind(load(self.buffers["nodes"], row * len(NODE_FIELDS) + _PARENT_ROW)))
            for minuend, subtrahend in ((parent, node), (node, parent)):
                self._list(minuend, subtrahend, 0)
                if self.layout.plane_stride:
                    self._list(subtrahend, minuend, self.layout.plane_stride)
                with serial(-load(self.position, 0) & tirx.const(SHORT_BLOCK - 1, "int32")):
                    self._append(tirx.const(self.layout.zero_plane, "int32"))

    def _first_bit(self, row: Expr) -> Expr:
        return row.astype("int64") * self.layout.weights

    def _parent(self, row: Expr) -> _Vector:
        none, all_ones = constant(0, "uint64"), constant(_ALL_ONES, "uint64")
        return _Vector(
            bind(self._first_bit(tirx.max(row, 0))),
            keep=bind(tirx.Select(row >= 0, all_ones, none)),
            fill=bind(tirx.Select(row == ALL_PLUS, all_ones, none)),
        )

    def _list(self, minuend: _Vector, subtrahend: _Vector, plane: int) -> None:
        """Append the taps of the weights that one vector has and the other has not."""
        # Whole words of channels lie as densely as their taps; of the last word only the real channels have bits.
        area = self.layout.geometry.kernel[0] * self.layout.geometry.kernel[1]
        channels, rest = divmod(self.layout.geometry.group_in_channels, WORD_BITS)
        dense = channels * area
        with serial(dense) as word:
            self._word(minuend, subtrahend, word, lambda bit: word * WORD_BITS + bit + plane)
        if rest:
            first_tap = dense * WORD_BITS + plane
            words, tail = words_per(area * rest), area * rest % WORD_BITS
            with serial(words) as word:

                def tap_of(bit: Expr) -> Expr:
                    weight = bind(word * WORD_BITS + bit)
                    return first_tap + weight // rest * WORD_BITS + weight % rest

                # Behind the last weights come those of the next vector.
                real = constant((1 << tail) - 1 if tail else _ALL_ONES, "uint64")
                mask = tirx.Select(word == words - 1, real, constant(_ALL_ONES, "uint64"))
                self._word(minuend, subtrahend, dense + word, tap_of, mask)

    def _word(
        self,
        minuend: _Vector,
        subtrahend: _Vector,
        word: Expr,
        tap_of: Callable[[Expr], Expr],
        mask: Expr | None = None,
    ) -> None:
        one = tirx.const(1, "uint64")
        differing = self._bits_of(minuend, word) & tirx.bitwise_not(self._bits_of(subtrahend, word))
        differing = bind(differing if mask is None else differing & mask)
        store(self.bits, 0, differing)
        with serial(tirx.popcount(differing).astype("int32")):
            bits = bind(load(self.bits, 0))
            # The number of zeros below the lowest one.
            lowest = bind(tirx.popcount((bits - one) & tirx.bitwise_not(bits)).astype("int32"))
            store(self.bits, 0, bits & (bits - one))
            self._append(tap_of(lowest))

    def _bits_of(self, vector: _Vector, word: Expr) -> Expr:
        """The 64 bits of a vector from bit 64·word on, which lie in two words of the string."""
        bit = bind(vector.first_bit + word.astype("int64") * WORD_BITS)
        index = bind(bit // WORD_BITS)
        low, high = (load(self.buffers["vectors"], index + i) for i in range(2))
        shift = bind((bit % WORD_BITS).astype("uint64"))
        # A shift by 64 is undefined: by 1, then by the 63 that are left.
        high = high << tirx.const(1, "uint64") << (tirx.const(WORD_BITS - 1, "uint64") - shift)
        bits = (low >> shift) | high
        if vector.keep is not None:
            bits = (bits & vector.keep) | vector.fill
        return bind(bits)

    def _append(self, tap: Expr) -> None:
        position = bind(load(self.position, 0))
        store(self.buffers["indices"], position, (tap * index_scale(self.layout)).astype("uint16"))
        store(self.position, 0, position + 1)
