"""A roofline as numbers: attainable multiply-accumulates per second over multiply-accumulates per byte, in log scales.

Williams, Waterman, Patterson: Roofline: an insightful visual performance model (CACM 52, 2009). Bytes are those of a
kernel's arguments, each counted once, so the intensity is the best that any schedule can have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .machine_peaks import PeaksReport
from .profile import KernelProfile

WIDTH, HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 20, 50


@dataclass(frozen=True)
class Point:
    """A kernel: pixel, what a reader is told, and how much of its roof it reaches (0 to 1)."""

    x: float
    y: float
    kernel: KernelProfile
    intensity: float
    roof: float

    @property
    def part(self) -> float:
        """Part of the roof that is reached."""
        return self.kernel["gmacs_per_second"] / self.roof if self.roof else 0.0


@dataclass(frozen=True)
class Line:
    """A line of the chart, in pixels, with its label."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str


@dataclass(frozen=True)
class Roofline:
    """Everything a drawing needs."""

    points: tuple[Point, ...]
    ceilings: tuple[Line, ...]
    slopes: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM
    width: float = WIDTH
    height: float = HEIGHT


def make_roofline(kernels: Sequence[KernelProfile], peaks: PeaksReport) -> Roofline | None:
    """The roofline of the calls that compute layers; None where none took measurable time."""
    computing = [kernel for kernel in kernels if kernel["gmacs_per_second"] and _bytes(kernel)]
    if not computing:
        return None
    intensities = [kernel["macs"] / _bytes(kernel) for kernel in computing]
    tops = {"binary": peaks["popcount_gmacs_per_second"], "float": peaks["float_gmacs_per_second"]}
    rates = [kernel["gmacs_per_second"] for kernel in computing]
    x_axis = _Axis(min(intensities), max(*intensities, 10.0), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(min(rates), max(*rates, *tops.values()), HEIGHT - _BOTTOM, _TOP)
    points = []
    for kernel, intensity in zip(computing, intensities, strict=True):
        roof = min(tops[kernel["kind"]], intensity * _bandwidth(_bytes(kernel), peaks))
        points.append(Point(x_axis.at(intensity), y_axis.at(kernel["gmacs_per_second"]), kernel, intensity, roof))
    left, right = x_axis.low, x_axis.high
    ceilings = [
        Line(x_axis.at(left), y_axis.at(top), x_axis.at(right), y_axis.at(top), f"{name}: {top:,.0f} GMAC/s")
        for name, top in tops.items()
    ]
    slopes = [_slope(level["level"], level["gbytes_per_second"], x_axis, y_axis) for level in peaks["bandwidth"]]
    return Roofline(
        tuple(points),
        tuple(ceilings),
        tuple(slope for slope in slopes if slope is not None),
        x_axis.ticks(),
        y_axis.ticks(),
    )


class _Axis:
    """A logarithmic axis over whole decades."""

    def __init__(self, least: float, most: float, start: float, end: float) -> None:
        self.low = 10.0 ** math.floor(math.log10(least))
        self.high = 10.0 ** math.ceil(math.log10(most) + 1e-9)
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        """The pixel of ``value``."""
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self._start + part * (self._end - self._start), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Pixels and labels of the decades."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return tuple((self.at(10.0**power), f"{10.0**power:,g}") for power in range(first, last + 1))


def _slope(level: str, bandwidth: float, x_axis: _Axis, y_axis: _Axis) -> Line | None:
    """rate = intensity · bandwidth, inside the chart."""
    first = max(x_axis.low, y_axis.low / bandwidth)
    last = min(x_axis.high, y_axis.high / bandwidth)
    if first >= last:
        return None
    label = f"{level}: {bandwidth:,.0f} GB/s"
    ends = (x_axis.at(first), y_axis.at(first * bandwidth), x_axis.at(last), y_axis.at(last * bandwidth))
    return Line(*ends, label)


def _bytes(kernel: KernelProfile) -> int:
    return kernel["bytes_read"] + kernel["bytes_written"]


def _bandwidth(size: int, peaks: PeaksReport) -> float:
    """GB/s of the first memory that twice the buffer measured there would fit: the whole cache."""
    for level in peaks["bandwidth"]:
        if size <= 2 * level["bytes"]:
            return level["gbytes_per_second"]
    return peaks["bandwidth"][-1]["gbytes_per_second"]
