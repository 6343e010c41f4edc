"""Max-pool of what a comparison makes bits of, on the bits: words of 64 channels each.

A comparison that grows with its operand gives [max x >= t] = OR over the window of [x >= t]; one that falls gives
[max x <= t] = AND of [x <= t]. Channels of the second kind are marked in a mask, and AND is the OR of opposites:

    pooled = (OR over the window of (bits ^ mask)) ^ mask

The padding of a max-pool never wins, so windows are clipped at the image's border. Per plane and row of the output, the
rows of the window are joined first, in whole vectors, then columns of that one row; ring columns hold the neutral 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    copy_lanes,
    load,
    serial,
    splat,
    store,
    tile_starts,
    workspace,
)
from bnn_compiler.schedules.pack_weights import pack_words
from bnn_compiler.schedules.padding_ring import copy_into_ring
from bnn_compiler.schedules.popcount import words_per

#: The buffer with the masks of channels whose bits are joined by AND.
MASKS = "pool_masks"


def can_pool(pool: ConvGeometry) -> bool:
    """Whether every window of ``pool`` (a max-pool; its channels do not count) holds an element of the image."""
    return all(
        all(_taps(pool, axis, index) for index in range((pool.out_height, pool.out_width)[axis])) for axis in range(2)
    )


def check_handover(writer: ConvGeometry, pool: ConvGeometry | None, reader: ConvGeometry) -> None:
    """Refuse a reader whose input is not the writer's output, through the max-pool if there is one.

    Raises:
        ValueError: that is so, or a window of the pool holds no element.
    """
    made = (writer.batch, writer.out_channels, writer.out_height, writer.out_width)
    if pool is not None:
        if made != (pool.batch, pool.in_channels, pool.height, pool.width) or not can_pool(pool):
            raise ValueError(f"bits of an output {made} do not fit a max-pool of {pool}")
        made = (pool.batch, pool.in_channels, pool.out_height, pool.out_width)
    if made != (reader.batch, reader.in_channels, reader.height, reader.width):
        raise ValueError(f"bits of an output {made} do not fit a convolution of {reader}")


def pool_arguments(reader: ConvGeometry, *, masked: bool) -> list[Argument]:
    """The masks, uint64 [words of an image], which stand behind a kernel's other constants if there are any.

    Their bits are those of the packed activation that ``reader`` reads.
    """
    words = reader.groups * words_per(reader.group_in_channels)
    return [Argument(MASKS, (words,), "uint64")] if masked else []


def pool_masks(reader: ConvGeometry, joined_by_and: NDArray[np.bool_]) -> tuple[NDArray[np.uint64], ...]:
    """The masks of channels bool [C], or nothing where all are joined by OR."""
    if not joined_by_and.any():
        return ()
    groups = joined_by_and.reshape(reader.groups, reader.group_in_channels)
    return (pack_words(groups, words_per(reader.group_in_channels)).reshape(-1),)


class ActivationWriter:
    """Writes planes of channels' words as the packed activation of a convolution, through a max-pool if there is one.

    Make it at the top of a kernel's body. ``buffers`` hold ``pool_masks`` if channels are joined by AND.
    """

    def __init__(self, reader: ConvGeometry, pool: ConvGeometry | None, buffers: Mapping[str, Buffer]) -> None:
        self._reader = reader
        self._pool = pool
        self._masks = buffers.get(MASKS)
        if pool is not None:
            assert can_pool(pool), "a window without elements has no maximum"
            self._row = workspace(pool.padded_width, "uint64")
            self._pooled = workspace(pool.out_height * pool.out_width, "uint64")

    def clear(self) -> None:
        """Emit what has to run once, before ``write``."""
        if self._pool is not None and self._pool.padded_width > self._pool.width:
            with serial(self._pool.padded_width) as index:
                store(self._row, index, constant(0, "uint64"))

    def write(self, source: Buffer, start: Index, word: Index, target: Buffer, plane: Expr, ring: Expr) -> None:
        """Write the plane of words at ``start``; these are the words ``word`` of all channels of an image."""
        source, start = self.pooled(source, start, word)
        copy_into_ring(self._reader, source, start, target, plane, ring)

    def finish(self, image: Index) -> None:
        """Emit what has to run behind the last word of an image."""

    def pooled(self, source: Buffer, start: Index, word: Index) -> tuple[Buffer, Index]:
        """The plane behind the max-pool, and where it starts."""
        if self._pool is None:
            return source, start
        mask = None if self._masks is None else bind(load(self._masks, word))
        _pool_plane(self._pool, source, start, self._row, self._pooled, mask)
        return self._pooled, 0


def _taps(pool: ConvGeometry, axis: int, index: int) -> tuple[int, ...]:
    """The taps of the window at ``index`` of an axis that lie inside the image."""
    first = index * pool.strides[axis] - pool.pads[axis]
    size = (pool.height, pool.width)[axis]
    return tuple(tap for tap in range(pool.kernel[axis]) if 0 <= first + tap * pool.dilations[axis] < size)


def _pool_plane(
    pool: ConvGeometry, source: Buffer, start: Index, row: Buffer, target: Buffer, mask: Expr | None
) -> None:
    """One plane of words, [H, W] at ``start`` to [OH, OW] at 0."""

    def flipped(value: Expr, lanes: int) -> Expr:
        return value if mask is None else value ^ splat(mask, lanes)

    def joined(taps: tuple[int, ...], at: Callable[[int], Expr]) -> Expr:
        value = at(taps[0])
        for tap in taps[1:]:
            value = value | at(tap)
        return value

    def pool_row(output_row: Index, taps: tuple[int, ...]) -> None:
        first_row = output_row * pool.strides[0] - pool.pads[0]

        def join_rows(column: Index, lanes: int) -> None:
            def at(tap: int) -> Expr:
                index = start + (first_row + tap * pool.dilations[0]) * pool.width + column
                return flipped(load(source, index, lanes), lanes)

            store(row, pool.pads[1] + column, joined(taps, at), lanes)

        def join_columns(column: Index, lanes: int) -> None:
            def at(tap: int) -> Expr:
                return load(row, column * pool.strides[1] + tap * pool.dilations[1], lanes, pool.strides[1])

            value = joined(tuple(range(pool.kernel[1])), at)
            store(target, output_row * pool.out_width + column, flipped(value, lanes), lanes)

        _in_vectors(pool.width, join_rows)
        _in_vectors(pool.out_width, join_columns)

    # Rows whose windows are clipped alike are one loop; few rows are at a border.
    for taps, rows in itertools.groupby(range(pool.out_height), lambda index: _taps(pool, 0, index)):
        first, *rest = rows
        with serial(1 + len(rest)) as index:
            pool_row(bind(first + index), taps)


def _in_vectors(extent: int, emit: Callable[[Index, int], None]) -> None:
    lanes = copy_lanes(extent, 8)
    full, rest = tile_starts(extent, lanes, 1)
    with serial(full) as vector:
        emit(vector * lanes, lanes)
    for column in rest:
        emit(column, lanes)
