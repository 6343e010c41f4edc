"""Float transposed convolutions in ONNX Runtime's order of summation.

Per output channel: a matrix product of the weights of all taps, [taps, channels], and the image, [channels, pixels],
whose sums run over the channels in order; then each tap's row is added to the result where it belongs, tap by tap.
Sums of ±α that cancel leave the same rounding noise behind as there, and a sign behind them is the same.
"""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from .float_tile import DTYPE, TileShape, axis, index, parameter, ramp, register_tile, scratch, serial, shared, whole
from .float_transpose import flat

# Rows of the register tile: taps. With one vector of pixels each, all fit the registers of any processor.
_ROWS = 8


@dataclass(frozen=True)
class TransposedConvPlan:
    """``shape`` [batch, inputs, …], ``weight`` [inputs, outputs / groups, …], ``out_sizes``; crops at the starts."""

    shape: tuple[int, ...]
    weight: tuple[int, ...]
    out_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    crops: tuple[int, ...]
    groups: int
    lanes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the image."""
        return self.shape[2:]

    @property
    def channels(self) -> int:
        """Summed channels: those of a group."""
        return self.shape[1] // self.groups

    @property
    def plane(self) -> tuple[int, ...]:
        """What an uncropped result needs, and the cropped one reads."""
        return tuple(
            max((size - 1) * stride + (taps - 1) * dilation + 1, crop + out)
            for size, stride, taps, dilation, crop, out in zip(
                self.sizes, self.strides, self.weight[2:], self.dilations, self.crops, self.out_sizes, strict=True
            )
        )

    @property
    def block(self) -> int:
        """Channels whose sum is taken before it is added to that of the ones before: ONNX Runtime's blocks."""
        pixels, block, width = math.prod(self.sizes), 128, 128
        if pixels < self.channels:
            while width > 16 and width // 2 >= pixels:
                block, width = 2 * block, width // 2
        return block

    def cycles(self) -> int:
        """Estimated cycles of one image."""
        taps, pixels = math.prod(self.weight[2:]), math.prod(self.sizes)
        return self.shape[1] * self.weight[1] * taps * pixels // self.lanes


def transposed_conv_kernel(plan: TransposedConvPlan) -> tirx.PrimFunc:
    """Build the kernel (data, weight, out); not fusable."""
    outputs = plan.weight[1]
    taps, pixels = math.prod(plan.weight[2:]), math.prod(plan.sizes)
    images, image = (plan.shape[0] * plan.cycles(), 0) if plan.shape[0] > 1 else (0, plan.cycles())
    with IRBuilder() as builder:
        with T.prim_func(is_private=True, s_tir=True):
            # 8 = kOpaque. Scheduled: no pass is to change what is contracted.
            T.func_attr({"tirx.noalias": True, "op_pattern": 8, "tirx.is_scheduled": True})
            data, weight = parameter("data", plan.shape), parameter("weight", plan.weight)
            out = parameter("out", (plan.shape[0], plan.groups * outputs, *plan.out_sizes))
            with T.sblock("root"):
                T.reads()
                T.writes()
                columns = scratch("columns", (taps, pixels))
                plane = scratch("plane", plan.plane)
                with shared(plan.shape[0], images) as n, shared(plan.groups * outputs, image) as c:
                    _multiply(plan, data, weight, columns, n, c)
                    _add_taps(plan, columns, plane, c)
                    _crop(plan, plane, out, n, c)
        return builder.get()


def _multiply(plan: TransposedConvPlan, data: Any, weight: Any, columns: Any, n: Any, c: Any) -> None:
    """Emit columns[tap, pixel] = sum of weight · data over the channels of a group."""
    outputs, taps, pixels = plan.weight[1], math.prod(plan.weight[2:]), math.prod(plan.sizes)
    lanes = min(plan.lanes, 1 << pixels.bit_length() - 1)
    with T.sblock("multiply"):
        vn, vc = axis(plan.shape[0], n), axis(plan.groups * outputs, c)
        T.reads(data[whole(data)], weight[whole(weight)])
        T.writes(columns[whole(columns)])
        group, output = T.Bind(vc // outputs), T.Bind(vc % outputs)
        with serial(-(-pixels // lanes)) as vector:
            # The last vector overlaps the one before.
            first = T.Bind(tirx.min(vector * lanes, index(pixels - lanes)))
            for start in range(0, plan.channels, plan.block):
                depth = min(plan.block, plan.channels - start)
                for tap in range(0, taps, _ROWS):
                    rows = min(_ROWS, taps - tap)
                    _tile(plan, (data, weight, columns), (vn, group, output, first, start), depth, tap, rows, lanes)


def _tile(
    plan: TransposedConvPlan,
    buffers: tuple[Any, Any, Any],
    place: tuple[Any, Any, Any, Any, int],
    depth: int,
    tap: int,
    rows: int,
    lanes: int,
) -> None:
    """Emit the sums of ``depth`` channels for ``rows`` taps and ``lanes`` pixels, added to what is there already."""
    data, weight, columns = buffers
    n, group, output, first, start = place
    outputs, taps, pixels = plan.weight[1], math.prod(plan.weight[2:]), math.prod(plan.sizes)

    def load_scalar(k: Any, row: int) -> Any:
        channel = group * plan.channels + (k + start)
        return weight[tuple(flat(weight, (channel * outputs + output) * taps + (tap + row)))]

    def load_vector(k: Any, _: int) -> Any:
        channel = n * plan.shape[1] + group * plan.channels + (k + start)
        return data.vload(flat(data, channel * pixels + first), f"{DTYPE}x{lanes}")

    def store(row: int, _: int, value: Any) -> None:
        cell = [index(tap + row), first]
        total = value if start == 0 else columns.vload(cell, f"{DTYPE}x{lanes}") + value
        T.buffer_store(columns, total, [cell[0], ramp(first, lanes)])

    register_tile(TileShape(rows, 1), lanes, depth, load_scalar, load_vector, store)


def _add_taps(plan: TransposedConvPlan, columns: Any, plane: Any, c: Any) -> None:
    """Emit plane[pixel · stride + tap · dilation] += columns[tap, pixel], tap by tap."""
    with T.sblock("add_taps"):
        axis(plan.groups * plan.weight[1], c)
        T.reads(columns[whole(columns)])
        T.writes(plane[whole(plane)])
        with serial(math.prod(plan.plane)) as position:
            T.buffer_store(plane, tirx.const(0, DTYPE), flat(plane, position))
        for tap, steps in enumerate(itertools.product(*(range(extent) for extent in plan.weight[2:]))):
            with ExitStack() as nest:
                pixel = [nest.enter_context(serial(size)) for size in plan.sizes]
                source: Any = index(0)
                for size, coordinate in zip(plan.sizes, pixel, strict=True):
                    source = source * size + coordinate
                cell = [
                    coordinate * stride + step * dilation
                    for coordinate, stride, step, dilation in zip(
                        pixel, plan.strides, steps, plan.dilations, strict=True
                    )
                ]
                T.buffer_store(plane, plane[tuple(cell)] + columns[index(tap), source], cell)


def _crop(plan: TransposedConvPlan, plane: Any, out: Any, n: Any, c: Any) -> None:
    """Emit out = the plane without its crops."""
    with T.sblock("crop"):
        vn, vc = axis(plan.shape[0], n), axis(plan.groups * plan.weight[1], c)
        T.reads(plane[whole(plane)])
        T.writes(out[whole(out)])
        with ExitStack() as nest:
            pixel = [nest.enter_context(serial(size)) for size in plan.out_sizes]
            cell = [coordinate + crop for coordinate, crop in zip(pixel, plan.crops, strict=True)]
            T.buffer_store(out, plane[tuple(cell)], [vn, vc, *pixel])
