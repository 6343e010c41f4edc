"""Gather up to 64 rows of float activations into words: the bits of row c become bit c.

Adjacent elements (pixels, or features in strided order) fill the lanes of a vector; 32 rows are gathered into a vector
of 32-bit masks, one compare and one masked *or* each, and two of those make a vector of 64-bit words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx

from bnn_compiler.schedules.bit_rule_emitter import BitRuleEmitter
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    copy_lanes,
    load,
    register,
    serial,
    splat,
    store,
    tile_starts,
    typed,
)
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount import HALF_BITS, planes

#: Vectors of elements side by side: whole cache lines of every row, and the loop's bookkeeping shared.
_TILE_VECTORS = 4


class WordPacker:
    """The code of one kernel: packs up to 64 rows of adjacent elements into words."""

    def __init__(
        self,
        extent: int,
        length: int,
        rule: PackRule,
        isa: Isa,
        buffers: Mapping[str, Buffer],
        *,
        row_parameters: bool,
    ):
        """``extent`` elements per row; ``row_parameters`` says that a row shares its threshold, scale and shift.

        ``length`` is the number of channels (features) that have thresholds.
        """
        self.lanes = copy_lanes(extent, isa.vector_bits // 32)
        plane_count = planes(rule.alphabet)
        self._vectors = min(_TILE_VECTORS if plane_count <= 2 else _TILE_VECTORS // 2, extent // self.lanes)
        self._extent = extent
        self._rule = BitRuleEmitter(rule, length, isa, buffers, row_parameters=row_parameters)
        self._buffers = buffers
        self._row_parameters = row_parameters
        self._masks = [
            [[register(self.lanes, "uint32") for _ in range(2)] for _ in range(plane_count)]
            for _ in range(self._vectors)
        ]

    def emit(
        self,
        count: int,
        row_at: Callable[[Index], Expr],
        parameter_at: Callable[[Index], Expr],
        store_words: Callable[[int, Index, Expr], None],
    ) -> None:
        """Pack ``count`` rows; ``row_at(c)`` and ``parameter_at(c)`` are the indices of their first elements.

        ``store_words(plane, start, words)`` stores the words of ``lanes`` elements from ``start`` on.
        """
        full, rest = tile_starts(self._extent, self.lanes, self._vectors)
        with serial(full) as tile:
            first = tile * (self._vectors * self.lanes)
            starts = [first + vector * self.lanes for vector in range(self._vectors)]
            self._emit_tile(count, starts, row_at, parameter_at, store_words)
        if rest:
            self._emit_tile(count, rest, row_at, parameter_at, store_words)

    def bits_at(self, lanes: int, x: Index, parameter: Index, bit: Expr, zero: Expr) -> list[Expr]:
        """Per plane, ``bit`` where its bit is set for the elements at ``x``, else ``zero`` (of the same type)."""
        return self._rule.bits(load(self._buffers["x"], x, lanes), lanes, parameter, bit, zero)

    def _emit_tile(
        self,
        count: int,
        starts: list[Index],
        row_at: Callable[[Index], Expr],
        parameter_at: Callable[[Index], Expr],
        store_words: Callable[[int, Index, Expr], None],
    ) -> None:
        lanes = self.lanes
        for half in range(2):
            for masks in self._masks:
                for plane in masks:
                    store(plane[half], 0, constant(0, "uint32", lanes), lanes)
            with serial(max(0, min(HALF_BITS, count - half * HALF_BITS))) as step:
                row = step + half * HALF_BITS
                bit = bind(splat(tirx.const(1, "uint32") << step.astype("uint32"), lanes))
                x, parameter = bind(row_at(row)), parameter_at(row)
                for start, masks in zip(starts, self._masks, strict=False):
                    own_parameter = parameter if self._row_parameters else parameter + start
                    planes_bits = self.bits_at(lanes, x + start, own_parameter, bit, constant(0, "uint32", lanes))
                    for plane, bits in zip(masks, planes_bits, strict=True):
                        store(plane[half], 0, load(plane[half], 0, lanes) | bits, lanes)
        wide = typed("uint64", lanes)
        for start, masks in zip(starts, self._masks, strict=False):
            for plane_index, (low, high) in enumerate(masks):
                upper = load(high, 0, lanes).astype(wide) << constant(HALF_BITS, "uint64", lanes)
                store_words(plane_index, start, upper | load(low, 0, lanes).astype(wide))
