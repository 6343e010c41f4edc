"""The columns of a popcount convolution: an im2col of packed words, one band of output rows at a time."""

from __future__ import annotations

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
from bnn_compiler.schedules.popcount_conv_plan import PopcountPlan


def gather_columns(plan: PopcountPlan, bits: Buffer, columns: Buffer, plane: Expr, first_row: Expr) -> None:
    """columns[word, ky, kx][pixel] of one band; rows are copied in vectors that may overlap."""
    geometry = plan.geometry
    (kernel_height, kernel_width), (stride_y, stride_x) = geometry.kernel, geometry.strides
    lanes = copy_lanes(geometry.out_width, 8)
    full, rest = tile_starts(geometry.out_width, lanes, 1)
    with (
        serial(plan.words) as word,
        serial(kernel_height) as tap_y,
        serial(kernel_width) as tap_x,
        serial(plan.band_rows) as row,
    ):
        input_row = (first_row + row) * stride_y + tap_y * geometry.dilations[0]
        source = (plane * plan.words + word) * geometry.padded_height + input_row
        source = bind(source * geometry.padded_width + tap_x * geometry.dilations[1])
        k = (word * kernel_height + tap_y) * kernel_width + tap_x
        target = bind(k * plan.column_stride + row * geometry.out_width)

        def copy(start: Index) -> None:
            store(columns, target + start, load(bits, source + start * stride_x, lanes, stride_x), lanes)

        with serial(full) as vector:
            copy(vector * lanes)
        for start in rest:
            copy(start)
