"""Max and average pooling on NCHW: a window over padded phase planes, one channel at a time, in cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_planes import Planes, nchw, vector_store
from .float_tile import DTYPE, axis, index, parameter, ramp, registers, scratch, serial, whole
from .geometry import ConvGeometry

PoolKind = Literal["max", "average"]

# Vectors in flight per tap: enough to hide latency, few enough for 16 registers.
_VECTORS = 4


@dataclass(frozen=True)
class PoolPlan:
    """One pooling kernel: ``geometry`` is that of a depthwise convolution with the same windows."""

    geometry: ConvGeometry
    kind: PoolKind
    lanes: int
    spatial_rank: int

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
                planes = layout.allocate()
                acc = scratch("acc", (1, layout.block_vectors * plan.lanes))
                layout.fill_border(planes, 0.0 if average else -np.inf)
                with serial(g.batch) as n, serial(g.in_channels) as c:
                    layout.copy_interior(data, planes, n, c, plan.spatial_rank)
                    _combine_windows(plan, planes, acc, c)
                    layout.store(acc, out, n, c, 1, index(0), finish)
        return builder.get()


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
    identity = -np.inf if plan.kind == "max" else 0.0
    for start in starts:
        T.buffer_store(totals, tirx.Broadcast(tirx.const(identity, DTYPE), lanes), [ramp(start, lanes)])
    with serial(g.kernel[0]) as ky, serial(g.kernel[1]) as kx:
        for start in starts:
            operand = layout.tap(planes, index(0), ky, kx, first + start)
            T.buffer_store(totals, combine(totals.vload([start], f"{DTYPE}x{lanes}"), operand), [ramp(start, lanes)])
    for start in starts:
        vector_store(acc, totals.vload([start], f"{DTYPE}x{lanes}"), index(0), first + start, lanes)
