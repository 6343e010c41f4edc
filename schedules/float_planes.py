"""Padded phase planes: how float convolutions and pools read a strided, padded, dilated window.

Tap (ky, kx) of output pixel (oy, ox) reads row ``oy*sy + ky*dy`` and column ``ox*sx + kx*dx`` of the padded input. The
padded input is split into its sy x sx phases, ``plane[(py, px)][y, x] = padded[y*sy + py, x*sx + px]``; then every tap
is a window of one plane, shifted by (ky*dy // sy, kx*dx // sx), and rows of a window are contiguous.

Planes are stored with a fixed ``pitch`` and output pixels are numbered ``q = oy*pitch + ox``. A tap's operand for
consecutive q is then consecutive in memory across row ends too, so vectors need no edge cases; the columns between the
output width and the pitch are computed and dropped. For a 3x3 kernel that is 2 columns per row.

A block is ``rows_per_block`` output rows, rounded up to whole vectors of q.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import DTYPE, EPILOGUE_ATTR, axis, every_second, index, ramp, region, scratch, serial, whole
from .geometry import ConvGeometry

SHORTEST_ROW = 4
"""Elements from which on a row is read as vectors: LLVM 22 makes invalid code of shuffles of two lanes."""


@dataclass(frozen=True)
class Planes:
    """Layout of the planes of ``channels`` input channels at a time; lengths in elements."""

    geometry: ConvGeometry
    channels: int
    lanes: int
    rows_per_block: int

    @property
    def phases(self) -> tuple[int, int]:
        """Planes per axis that some tap reads."""
        g = self.geometry
        rows, columns = (max(k * g.dilations[a] % g.strides[a] for k in range(g.kernel[a])) + 1 for a in (0, 1))
        return rows, columns

    @property
    def reach(self) -> tuple[int, int]:
        """Largest shift of a tap's window in its plane, rows and columns."""
        g = self.geometry
        rows, columns = ((g.kernel[a] - 1) * g.dilations[a] // g.strides[a] for a in (0, 1))
        return rows, columns

    @property
    def pitch(self) -> int:
        """Elements from one plane row to the next."""
        return self.geometry.out_width + self.reach[1]

    @property
    def blocks(self) -> int:
        """Row blocks of one image."""
        return -(-self.geometry.out_height // self.rows_per_block)

    @property
    def block_vectors(self) -> int:
        """Vectors of q in a block, dropped columns included."""
        pixels = (self.rows_per_block - 1) * self.pitch + self.geometry.out_width
        return -(-pixels // self.lanes)

    @property
    def rows(self) -> int:
        """Rows of a plane, enough that no tile reads past its end."""
        last_block = (self.blocks - 1) * self.rows_per_block * self.pitch
        elements = last_block + self.block_vectors * self.lanes + self.reach[0] * self.pitch + self.reach[1]
        return -(-elements // self.pitch)

    @property
    def elements(self) -> int:
        """Elements from one plane to the next: an odd number of cache lines, so planes spread over the cache's sets."""
        lines = -(-self.rows * self.pitch // 16)
        return (lines | 1) * 16

    def allocate(self) -> Any:
        """Allocate the planes in the innermost sblock."""
        return scratch("planes", (self.channels * self.phases[0] * self.phases[1], self.elements))

    def fill_border(self, planes: Any, value: float) -> None:
        """Emit a sblock that sets everything that ``copy_interior`` never writes. Once per call is enough."""
        with T.sblock("border"):
            T.reads()
            T.writes(planes[whole(planes)])
            with serial(self.channels) as c, serial(self.phases[0]) as py, serial(self.phases[1]) as px:
                plane = self._plane(c, py, px)
                (top, bottom), (left, right) = self._interior(0, py), self._interior(1, px)

                def fill(start: Any, stop: Any) -> None:
                    with T.serial(index(0), stop - start) as i:
                        T.buffer_store(planes, tirx.const(value, DTYPE), [plane, start + i])

                fill(index(0), top * self.pitch + left)
                # Loops start at 0: TVM's CanonicalizeLoop gets a start wrong that depends on a loop with a start.
                with T.serial(index(0), bottom - top) as row:
                    # The right end of this row and the left end of the next.
                    y = top + row
                    fill(y * self.pitch + right, (y + 1) * self.pitch + left)
                fill(bottom * self.pitch + left, index(self.elements))

    def copy_interior(self, data: Any, planes: Any, n: Any, first_channel: Any, spatial_rank: int) -> None:
        """Emit a sblock that copies the image's pixels of channels ``first_channel`` … to the planes."""
        g = self.geometry
        with T.sblock("planes"):
            vn = axis(g.batch, n)
            vc = axis(g.in_channels, first_channel)
            image = nchw(spatial_rank, (vn, 1), (vc, self.channels), (index(0), g.height), (index(0), g.width))
            T.reads(data[region(*image)])
            T.writes(planes[whole(planes)])
            with serial(self.channels) as c, serial(self.phases[0]) as py:
                top, bottom = self._interior(0, py)
                with T.serial(index(0), bottom - top) as row:
                    y = top + row
                    in_y = y * g.strides[0] + py - g.pads[0]

                    def load(x: Any, px: Any, lanes: int = 1, shift: int = 0) -> Any:
                        in_x = x * g.strides[1] + (px - g.pads[1] + shift)
                        position = nchw(spatial_rank, vn, vc + c, in_y, in_x)
                        return data.vload(position, f"{DTYPE}x{lanes}") if lanes > 1 else data[tuple(position)]

                    if g.strides[1] == 2:
                        for px in range(self.phases[1]):
                            self._copy_even_columns(planes, self._plane(c, py, px), y, px, load)
                    else:
                        with serial(self.phases[1]) as px:
                            left, right = self._interior(1, px)
                            with T.serial(index(0), right - left) as column:
                                x = left + column
                                T.buffer_store(planes, load(x, px), [self._plane(c, py, px), y * self.pitch + x])

    def _copy_even_columns(self, planes: Any, plane: Any, y: Any, px: int, load: Any) -> None:
        """Copy every second pixel of a row. A shuffle of two vectors; LLVM's own is a gather, six times slower."""
        left, right = (int(bound) for bound in self._interior(1, px))
        if right == left:
            return
        lanes = min(self.lanes, 1 << (right - left).bit_length() - 1)
        if lanes < SHORTEST_ROW:
            lanes = 1
        with serial(-(-(right - left) // lanes)) as vector:
            x = (
                tirx.min(vector * lanes + left, index(right - lanes))
                if (right - left) % lanes
                else vector * lanes + left
            )
            if lanes == 1:
                value = load(x, px)
            else:
                value = every_second(load(x, px, lanes), load(x, px, lanes, lanes - 1), lanes)
            T.buffer_store(planes, value, [plane, ramp(y * self.pitch + x, lanes) if lanes > 1 else y * self.pitch + x])

    def tap(self, planes: Any, c: Any, ky: Any, kx: Any, q: Any) -> Any:
        """Load the operands of tap (ky, kx) for pixels q … q + lanes."""
        g = self.geometry
        row, column = ky * g.dilations[0], kx * g.dilations[1]
        plane = self._plane(c, tirx.floormod(row, g.strides[0]), tirx.floormod(column, g.strides[1]))
        shift = tirx.floordiv(row, g.strides[0]) * self.pitch + tirx.floordiv(column, g.strides[1])
        return planes.vload([plane, q + shift], f"{DTYPE}x{self.lanes}")

    def _plane(self, c: Any, py: Any, px: Any) -> Any:
        return (c * self.phases[0] + py) * self.phases[1] + px

    def _interior(self, a: int, phase: Any) -> tuple[Any, Any]:
        """First and last + 1 position of axis ``a`` of a plane that holds a pixel of the image, where any does."""
        g = self.geometry
        size, before, stride = (g.height, g.width)[a], g.pads[a], g.strides[a]
        limit = (self.rows, self.pitch)[a]
        if stride == 1 or isinstance(phase, int):
            phase = 0 if stride == 1 else phase
            start = min(max(-((phase - before) // stride), 0), limit)
            return index(start), index(max(start, min(-((phase - before - size) // stride), limit)))
        start = tirx.min(tirx.max(tirx.floordiv(before - phase + (stride - 1), stride), 0), limit)
        stop = tirx.min(tirx.floordiv(before + size - phase + (stride - 1), stride), limit)
        return start, tirx.max(start, stop)

    def store(self, acc: Any, out: Any, n: Any, first_channel: Any, channels: int, block: Any, finish: Any) -> None:
        """Emit the epilogue sblock: acc[channel, q within the block] to out[n, first_channel + channel, oy, ox].

        ``finish(value, oy, ox)`` is applied on the way.
        """
        g, rows = self.geometry, self.rows_per_block
        spatial_rank = len(out.ty.shape) - 2
        if self.pitch == g.out_width and g.out_height % rows == 0:
            # No dropped columns: one long loop instead of one per row.
            loops = [channels, rows * g.out_width]
        else:
            loops = [channels, rows, g.out_width]
        with T.grid(*(index(extent) for extent in loops)) as variables, T.sblock("out"):
            c, row, x = (*variables, None)[:3]
            if x is None:
                row, x = tirx.floordiv(row, g.out_width), tirx.floormod(row, g.out_width)
            vn = axis(g.batch, n)
            vc = axis(int(out.ty.shape[1]), first_channel + c)
            vy = axis(g.out_height, block * rows + row)
            vx = axis(g.out_width, x)
            if g.out_height % rows:
                T.where(block * rows + row < g.out_height)
            source = acc[tirx.floormod(vc, channels), tirx.floormod(vy, rows) * self.pitch + vx]
            T.reads(source)
            T.writes(out[tuple(nchw(spatial_rank, vn, vc, vy, vx))])
            T.sblock_attr({EPILOGUE_ATTR: 1})
            T.buffer_store(out, finish(source, vy, vx), nchw(spatial_rank, vn, vc, vy, vx))


def nchw(spatial_rank: int, n: Any, c: Any, y: Any, x: Any) -> list[Any]:
    """Indices (or anything else per axis) of an activation; with one spatial axis there is no y."""
    return [n, c, y, x] if spatial_rank == 2 else [n, c, x]


def vector_store(buffer: Any, value: Any, row: Any, first: Any, lanes: int) -> None:
    """Store a vector at ``buffer[row, first : first + lanes]``."""
    T.buffer_store(buffer, value, [row, ramp(first, lanes)])
