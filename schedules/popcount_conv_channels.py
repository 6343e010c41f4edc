"""Counting with output channels in the lanes, for maps whose pixels do not fill vectors: 7x7, 3x3, 2x2, a single pixel.

A register tile holds a few vectors of channels, whose weight words lie side by side, against the words of four pixels,
broadcast from the columns. No lane is lost to the end of the map: a 2x2 map takes half the vectors that pixels in the
lanes would, a 7x7 map seven eighths. The counts are turned in registers, so that a channel's pixels lie side by side in
cache, and everything behind sees them as if pixels had been in the lanes.
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx

from bnn_compiler.schedules.kernel_builder import Buffer, Expr, Index, bind, load, serial, store, workspace
from bnn_compiler.schedules.popcount import PopcountTile, code_bits, narrowed, spans
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan

#: Pixels that are turned together.
_SQUARE = 4


class ChannelCounter:
    """Counts tiles of ``channels`` (or fewer) against all pixels of a band; make it at the top of a kernel's body.

    The disagreements of channel c of a tile with pixel p come to ``counts[c·stride + p]``, int32. ``most_channels`` is
    how many channels it will be asked for at most.
    """

    def __init__(self, plan: PopcountPlan, buffers: Mapping[str, Buffer], columns: Buffer, most_channels: int) -> None:
        self._plan, self._unit = plan, plan.unit
        self._weights, self._columns = buffers["weights"], columns
        lanes = self._unit.lanes
        tile_vectors, tile_pixels = self._unit.tile
        self._pixels = min(tile_pixels, plan.pixels)
        # Few pixels leave registers for more vectors.
        wanted = min(tile_vectors * tile_pixels // self._pixels, 2 * tile_vectors)
        self._vectors = min(wanted, -(-most_channels // lanes))
        self.channels = self._vectors * lanes
        self._tile = PopcountTile(self._unit, self._vectors, self._pixels, plan.weight_depth, code_bits(plan.alphabet))
        # Squares may stick out at the end of a row, and whoever reads whole vectors, two of them, behind the last row.
        self.stride = 1 if plan.pixels == 1 else -(-plan.pixels // _SQUARE) * _SQUARE
        self.counts = workspace(self.channels * self.stride + 2 * lanes, "int32")

    def count(self, first_channel: Expr, channels: int, column_start: Index) -> None:
        """Count ``channels`` channels from ``first_channel`` on, a multiple of the lanes."""
        vectors = -(-channels // self._unit.lanes)
        first_row = bind(first_channel // self._unit.lanes)
        with serial(self._plan.pixels // self._pixels) as tile:
            self._count_pixels(first_row, vectors, column_start, tile * self._pixels, self._pixels)
        if rest := self._plan.pixels % self._pixels:
            self._count_pixels(first_row, vectors, column_start, self._plan.pixels - rest, rest)

    def _count_pixels(self, first_row: Expr, vectors: int, column_start: Index, pixel: Index, pixels: int) -> None:
        """One register tile."""
        plan, lanes = self._plan, self._unit.lanes

        def vector_at(_plane: int, k: Index, i: int) -> Expr:
            return load(self._weights, ((first_row + i) * plan.weight_depth + k) * lanes, lanes)

        def word_at(plane: int, k: Index, j: int) -> Expr:
            row = k + plane * plan.weight_depth
            return load(self._columns, column_start + row * plan.column_stride + pixel + j)

        totals = self._tile.emit(vectors, pixels, vector_at, word_at)
        for i, count in spans([vector * lanes for vector in range(vectors)], lanes, plan.isa):
            width = count * lanes
            found = [bind(narrowed([totals[i + vector][j] for vector in range(count)], lanes)) for j in range(pixels)]
            if self.stride == 1:
                store(self.counts, i * lanes, found[0], width)
            else:
                found += found[-1:] * (_SQUARE - pixels)
                self._store_turned(found, i * lanes, width, pixel)

    def _store_turned(self, found: list[Expr], channel: int, width: int, pixel: Index) -> None:
        """Store four pixels of ``width`` channels each as ``width`` rows of four."""
        first, second = _zipped(found[0], found[1], width, 1), _zipped(found[2], found[3], width, 1)
        turned = [value for pair in zip(first, second, strict=True) for value in _zipped(*pair, width, 2)]
        # Now value v holds elements v·width … of the rows, one behind the other.
        piece = width if self.stride == _SQUARE else min(width, _SQUARE)
        for start in range(0, _SQUARE * width, piece):
            value = turned[start // width]
            if piece < width:
                value = tirx.Shuffle([value], [start % width + lane for lane in range(piece)])
            row = (channel + start // _SQUARE) * self.stride + start % _SQUARE
            store(self.counts, pixel + row, value, piece)


def _zipped(a: Expr, b: Expr, lanes: int, size: int) -> list[Expr]:
    """Runs of ``size`` elements of ``a`` and ``b`` in turn, as two vectors."""
    order = [
        source * lanes + start + element
        for start in range(0, lanes, size)
        for source in range(2)
        for element in range(size)
    ]
    return [bind(tirx.Shuffle([a, b], order[half * lanes : (half + 1) * lanes])) for half in range(2)]
