"""Max and average pooling on NCHW, one channel at a time, in cache.

Rows of results are computed straight from the image where that holds them whole (``PoolPlan.reads_image``): vectors
of neighbouring windows, with stride 2 every second pixel of two vectors; fewer than four windows one by one. Other
windows, those of short rows among them, read padded phase planes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_planes import SHORTEST_ROW, Planes, nchw, vector_store
from .float_tile import DTYPE, axis, every_second, index, parameter, ramp, registers, scratch, serial, shared, whole
from .float_transpose import flat
from .geometry import ConvGeometry, windows_hold_pixels

PoolKind = Literal["max", "average"]

# Taps of a window that code is unrolled for.
_MAX_TAPS = 25
# Vectors in flight per tap: enough to hide latency, few enough for 16 registers.
_VECTORS = 4
_CYCLES_PER_VECTOR = 3
# What ONNX Runtime pads maxima with, and gives for a window without pixels.
_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class PoolPlan:
    """One pooling kernel: ``geometry`` is that of a depthwise convolution with the same windows."""

    geometry: ConvGeometry
    kind: PoolKind
    lanes: int
    spatial_rank: int

    @property
    def inner_columns(self) -> tuple[int, int]:
        """First and last + 1 column of the result whose windows are inside the image's columns."""
        g = self.geometry
        first = -(-g.pads[1] // g.strides[1])
        return first, max(first, min((g.width + g.pads[1] - g.kernel[1]) // g.strides[1] + 1, g.out_width))

    @property
    def reads_image(self) -> bool:
        """Whether windows are read from the image.

        1. Windows are short, dense and one or two columns apart.
        2. A window of maxima that hangs over the edge can take the image's nearest pixels: it has those anyway.
        3. A window of averages does not hang over the edge, not even where it counts no padding.
        4. A row has a quarter of a vector of windows that are inside.
        """
        g, (first, last) = self.geometry, self.inner_columns
        inside = not any(g.pads)
        return (
            g.kernel[0] * g.kernel[1] <= _MAX_TAPS
            and g.dilations == (1, 1)
            and g.strides[1] in (1, 2)
            and (inside or (self.kind == "max" and windows_hold_pixels(g)))
            and last - first >= self.lanes // 4
        )

    def cycles(self) -> int:
        """Estimated cycles of one image: a few per vector that is read or written."""
        g = self.geometry
        pixels = g.height * g.width + g.out_height * g.out_width
        return _CYCLES_PER_VECTOR * g.in_channels * pixels // self.lanes

    @property
    def planes(self) -> Planes:
        """Layout of one channel; a block is the whole image."""
        return Planes(self.geometry, 1, self.lanes, self.geometry.out_height)


def average_weights(
    geometry: ConvGeometry, pads: tuple[int, int, int, int], count_padding: bool
) -> npt.NDArray[np.float32]:
    """Reciprocal [out height, out width] of the number of pixels averaged per window.

    ``pads`` counts where ``count_padding`` says so; what ``geometry`` pads beyond it (ceil mode) never does.
    """
    g = geometry
    counts = []
    for a, (size, out) in enumerate(((g.height, g.out_height), (g.width, g.out_width))):
        taps = np.arange(out)[:, None] * g.strides[a] + np.arange(g.kernel[a]) * g.dilations[a] - g.pads[a]
        low, high = (-pads[a], size + pads[a + 2]) if count_padding else (0, size)
        counts.append(((taps >= low) & (taps < high)).sum(axis=1))
    return np.asarray(1 / np.maximum(counts[0][:, None] * counts[1], 1), np.float32)


def pool_kernel(plan: PoolPlan) -> tirx.PrimFunc:
    """Build the kernel (data, out), for averages (data, weights, out) with ``average_weights``. Fusable."""
    g, layout = plan.geometry, plan.planes
    average = plan.kind == "average"
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            T.func_attr({"tirx.noalias": True, "op_pattern": 4})
            data = parameter("data", nchw(plan.spatial_rank, g.batch, g.in_channels, g.height, g.width))
            weights = parameter("weights", (g.out_height, g.out_width)) if average else None
            out = parameter("out", nchw(plan.spatial_rank, g.batch, g.in_channels, g.out_height, g.out_width))

            def finish(value: Any, y: Any, x: Any) -> Any:
                return value if weights is None else value * weights[y, x]

            with T.sblock("root"):
                T.reads()
                T.writes()
                if plan.reads_image:
                    # Threads share the images of a batch, or an image's channels.
                    cycles = plan.cycles()
                    images, image = (g.batch * cycles, 0) if g.batch > 1 else (0, cycles)
                    # Results without gaps between rows, as of planes of their size that are read pixel by pixel.
                    results = replace(g, height=g.out_height, width=g.out_width)
                    pixels = replace(results, kernel=(1, 1), strides=(1, 1), pads=(0, 0, 0, 0))
                    layout = Planes(pixels, 1, plan.lanes, g.out_height)
                    acc = scratch("acc", (1, g.out_height * g.out_width))
                    with shared(g.batch, images) as n, shared(g.in_channels, image) as c:
                        _combine_rows(plan, data, acc, n, c)
                        layout.store(acc, out, n, c, 1, index(0), finish)
                else:
                    planes = layout.allocate()
                    acc = scratch("acc", (1, layout.block_vectors * plan.lanes))
                    layout.fill_border(planes, 0.0 if average else _LOWEST)
                    with serial(g.batch) as n, serial(g.in_channels) as c:
                        layout.copy_interior(data, planes, n, c, plan.spatial_rank)
                        _combine_windows(plan, planes, acc, c)
                        layout.store(acc, out, n, c, 1, index(0), finish)
        return builder.get()


def _combine_rows(plan: PoolPlan, data: Any, acc: Any, n: Any, channel: Any) -> None:
    """Emit the sblock acc[0, window] = the maximum or sum of each window of one channel of the image."""
    g = plan.geometry
    combine = tirx.max if plan.kind == "max" else _add
    first, last = plan.inner_columns
    lanes = min(plan.lanes, 1 << (last - first).bit_length() - 1)
    if lanes < SHORTEST_ROW:  # every window by itself
        first = last = 0
    with T.sblock("combine"):
        vn, vc = axis(g.batch, n), axis(g.in_channels, channel)
        T.reads(data[whole(data)])
        T.writes(acc[whole(acc)])
        image = (vn * g.in_channels + vc) * (g.height * g.width)
        with serial(g.out_height) as y:
            rows = []
            for ky in range(g.kernel[0]):
                line = y * g.strides[0] + (ky - g.pads[0])
                if any(g.pads):
                    line = tirx.max(tirx.min(line, g.height - 1), 0)
                rows.append(T.Bind(image + line * g.width))

            def window(load: Callable[[Any, int], Any]) -> Any:
                values = [load(row, kx) for row in rows for kx in range(g.kernel[1])]
                return functools.reduce(lambda left, right: T.Bind(combine(left, right)), values)

            def edge(x: int) -> None:
                columns = [min(max(x * g.strides[1] - g.pads[1] + kx, 0), g.width - 1) for kx in range(g.kernel[1])]
                best = window(lambda row, kx: data[tuple(flat(data, row + columns[kx]))])
                T.buffer_store(acc, best, [index(0), y * g.out_width + x])

            for x in (*range(first), *range(last, g.out_width)):
                edge(x)
            if first == last:
                return
            with serial(-(-(last - first) // lanes)) as vector:
                # The last vector overlaps the one before.
                x = T.Bind(tirx.min(vector * lanes + first, index(last - lanes)))
                start = x * g.strides[1] - g.pads[1]
                best = window(lambda row, kx: _every(data, row + start + kx, g.strides[1], lanes))
                T.buffer_store(acc, best, [index(0), ramp(y * g.out_width + x, lanes)])


def _every(data: Any, position: Any, stride: int, lanes: int) -> Any:
    """Every pixel, or every second one, from ``position`` on: ``lanes`` of them."""

    def load(shift: int) -> Any:
        return T.Bind(data.vload(flat(data, position + shift), f"{DTYPE}x{lanes}"))

    if stride == 1:
        return load(0)
    return T.Bind(every_second(load(0), load(lanes - 1), lanes))


def _combine_windows(plan: PoolPlan, planes: Any, acc: Any, channel: Any) -> None:
    g, layout = plan.geometry, plan.planes
    combine = tirx.max if plan.kind == "max" else _add
    with T.sblock("combine"):
        axis(g.in_channels, channel)
        T.reads(planes[whole(planes)])
        T.writes(acc[whole(acc)])
        full, rest = divmod(layout.block_vectors, _VECTORS)
        with serial(full) as tile:
            _combine_tile(plan, planes, acc, tile * (_VECTORS * plan.lanes), _VECTORS, combine)
        if rest:
            _combine_tile(plan, planes, acc, index(full * _VECTORS * plan.lanes), rest, combine)


def _add(left: Any, right: Any) -> Any:
    return left + right


def _combine_tile(
    plan: PoolPlan, planes: Any, acc: Any, first: Any, vectors: int, combine: Callable[[Any, Any], Any]
) -> None:
    g, layout, lanes = plan.geometry, plan.planes, plan.lanes
    totals = registers("totals", vectors * lanes)
    starts = [index(v * lanes) for v in range(vectors)]
    identity = _LOWEST if plan.kind == "max" else 0.0
    for start in starts:
        T.buffer_store(totals, tirx.Broadcast(tirx.const(identity, DTYPE), lanes), [ramp(start, lanes)])
    with serial(g.kernel[0]) as ky, serial(g.kernel[1]) as kx:
        for start in starts:
            operand = layout.tap(planes, index(0), ky, kx, first + start)
            T.buffer_store(totals, combine(totals.vload([start], f"{DTYPE}x{lanes}"), operand), [ramp(start, lanes)])
    for start in starts:
        vector_store(acc, totals.vload([start], f"{DTYPE}x{lanes}"), index(0), first + start, lanes)
