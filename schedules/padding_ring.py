"""Copy a plane of words into the middle of a padded one, and fill the ring around it."""

from __future__ import annotations

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.kernel_builder import (
    Buffer,
    Expr,
    Index,
    bind,
    copy_lanes,
    load,
    serial,
    store,
    tile_starts,
)


def copy_into_ring(
    geometry: ConvGeometry, source: Buffer, source_start: Index, target: Buffer, target_start: Expr, ring: Expr
) -> None:
    """Copy an [H, W] plane of words into the middle of an [H + pads, W + pads] plane, and fill the ring around it."""
    top, left, bottom, right = geometry.pads
    width, padded_width = geometry.width, geometry.padded_width

    def fill(start: Expr, count: int) -> None:
        with serial(count) as index:
            store(target, start + index, ring)

    lanes = copy_lanes(width, 8)
    full, rest = tile_starts(width, lanes, 1)
    fill(target_start, top * padded_width)
    with serial(geometry.height) as row:
        row_target = bind(target_start + (top + row) * padded_width)
        row_source = source_start + row * width
        fill(row_target, left)
        with serial(full) as vector:
            value = load(source, row_source + vector * lanes, lanes)
            store(target, row_target + left + vector * lanes, value, lanes)
        for start in rest:
            store(target, row_target + left + start, load(source, row_source + start, lanes), lanes)
        fill(row_target + left + width, right)
    fill(target_start + (top + geometry.height) * padded_width, bottom * padded_width)
