"""Max and average pooling on NCHW, one channel at a time, in cache.

Rows of results are computed straight from the image where that holds them whole (``PoolPlan.reads_image``): vectors
of neighbouring windows, with stride 2 every second pixel of two vectors; fewer than four windows one by one. Other
windows, those of short rows among them, read padded phase planes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_nan import largest, maximum
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
# What ONNX Runtime pads maxima with.
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
                        (_sum_rows if average else _maximum_rows)(plan, data, acc, n, c)
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


def _sum_rows(plan: PoolPlan, data: Any, acc: Any, n: Any, channel: Any) -> None:
    """Emit the sblock acc[0, window] = the sum of each window of one channel of the image, none of which hangs over."""
    g = plan.geometry
    with T.sblock("combine"):
        image = _image(plan, data, acc, n, channel)
        with serial(g.out_height) as y:
            rows = [T.Bind(image + (y * g.strides[0] + ky) * g.width) for ky in range(g.kernel[0])]
            with _vectors(g.out_width, plan.lanes) as (x, lanes):
                taps = [(row, kx) for row in rows for kx in range(g.kernel[1])]
                values = [_every(data, row + x * g.strides[1] + kx, g.strides[1], lanes) for row, kx in taps]
                total = functools.reduce(lambda left, right: T.Bind(left + right), values)
                T.buffer_store(acc, total, [index(0), _span(y * g.out_width + x, lanes)])


def _maximum_rows(plan: PoolPlan, data: Any, acc: Any, n: Any, channel: Any) -> None:
    """Emit the sblock acc[0, window] = the maximum of each window of one channel of the image, NaN where it holds one.

    First the maxima of columns, in a row of their own, padded at both ends; then those of neighbouring columns.
    """
    g = plan.geometry
    left, stride = g.pads[1], g.strides[1]
    size = max(left + g.width, (g.out_width - 1) * stride + g.kernel[1])
    with T.sblock("combine"):
        image = _image(plan, data, acc, n, channel)
        columns = scratch("columns", (size,))
        for position in (*range(left), *range(left + g.width, size)):
            T.buffer_store(columns, tirx.const(_LOWEST, DTYPE), [index(position)])
        with serial(g.out_height) as y:
            rows = []
            for ky in range(g.kernel[0]):
                line = y * g.strides[0] + (ky - g.pads[0])
                if any(g.pads):
                    # Beyond the edge, the image's nearest row: the window has that anyway.
                    line = tirx.max(tirx.min(line, g.height - 1), 0)
                rows.append(T.Bind(image + line * g.width))
            with _vectors(g.width, plan.lanes) as (x, lanes):
                values = [T.Bind(_load(data, row + x, lanes)) for row in rows]
                T.buffer_store(columns, largest(values, T.Bind), [_span(x + left, lanes)])
            with _vectors(g.out_width, plan.lanes) as (x, lanes):
                best = largest(_taps(columns, x * stride, g.kernel[1], stride, lanes), T.Bind)
                T.buffer_store(acc, best, [index(0), _span(y * g.out_width + x, lanes)])


def _image(plan: PoolPlan, data: Any, acc: Any, n: Any, channel: Any) -> Any:
    """Declare what the sblock works on; returns where the channel's image begins."""
    g = plan.geometry
    vn, vc = axis(g.batch, n), axis(g.in_channels, channel)
    T.reads(data[whole(data)])
    T.writes(acc[whole(acc)])
    return (vn * g.in_channels + vc) * (g.height * g.width)


@contextmanager
def _vectors(extent: int, widest: int) -> Iterator[tuple[Any, int]]:
    """A loop over the starts of vectors that cover ``extent``, the last of which may overlap; and their lanes."""
    lanes = min(widest, 1 << extent.bit_length() - 1)
    lanes = 1 if lanes < SHORTEST_ROW else lanes
    with serial(-(-extent // lanes)) as vector:
        yield T.Bind(tirx.min(vector * lanes, index(extent - lanes))), lanes


def _taps(columns: Any, start: Any, taps: int, stride: int, lanes: int) -> list[Any]:
    """The windows' first elements, their second ones …, each a vector; windows are ``stride`` (1 or 2) apart."""
    if stride == 1 or lanes == 1:
        return [T.Bind(_load(columns, start + tap, lanes)) for tap in range(taps)]
    values = []
    for tap in range(0, taps - 1, 2):
        pair = [T.Bind(_load(columns, start + tap + shift, lanes)) for shift in (0, lanes)]
        values += [T.Bind(tirx.Shuffle(pair, list(range(odd, 2 * lanes, 2)))) for odd in (0, 1)]
    if taps % 2:
        values.append(_every(columns, start + (taps - 1), stride, lanes))
    return values


def _load(data: Any, position: Any, lanes: int) -> Any:
    place = flat(data, position)
    return data[tuple(place)] if lanes == 1 else data.vload(place, f"{DTYPE}x{lanes}")


def _span(start: Any, lanes: int) -> Any:
    return start if lanes == 1 else ramp(start, lanes)


def _every(data: Any, position: Any, stride: int, lanes: int) -> Any:
    """Every pixel, or every second one, from ``position`` on: ``lanes`` of them."""

    first = T.Bind(_load(data, position, lanes))
    if stride == 1 or lanes == 1:
        return first
    return T.Bind(every_second(first, T.Bind(_load(data, position + (lanes - 1), lanes)), lanes))


def _combine_windows(plan: PoolPlan, planes: Any, acc: Any, channel: Any) -> None:
    g, layout = plan.geometry, plan.planes
    combine = maximum if plan.kind == "max" else _add
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
