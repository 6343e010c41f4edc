"""Which elements of an axis are summed with which weights when it is resized: linear, cubic and antialiasing filters.

The weights are float32, computed operation by operation as ONNX Runtime does. With c the coordinate of a resized
element (``resize_coordinates``) and f = c - floor(c):

    linear      elements floor(c), floor(c) + 1 with weights 1 - f, f; c is clipped to the axis before
    cubic       elements floor(c) - 1 … floor(c) + 2 with k(1 + f), k(f), k(1 - f), k(2 - f); elements beyond the axis
                are its outermost ones, or, to ``exclude_outside``, have weight 0, and the others are divided by
                their sum
    antialias   all elements less than the filter's support from c, which grows where the axis shrinks, with the
                filter's value at their distance, divided by the sum

k is Keys' kernel (https://ieeexplore.ieee.org/document/1163711) with the coefficient a:

    k(d) = (a + 2) d³ - (a + 3) d² + 1         for d < 1
           a d³ - 5 a d² + 8 a d - 4 a         for d < 2
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .resize_coordinates import Floats, Integers, ResizedAxis

_HALF, _ONE = np.float32(0.5), np.float32(1)


@dataclass(frozen=True, eq=False)
class Taps:
    """``elements`` [resized, taps] in bounds, their ``weights``, and ``counts`` [resized]: how many are used.

    ``divisors`` [resized] divide the products, one by one, where they are not 1.
    """

    elements: Integers
    weights: Floats
    counts: Integers
    divisors: Floats


def linear_taps(axis: ResizedAxis, coordinates: Floats) -> Taps:
    """Two taps per element."""
    last = np.float32(axis.length - 1)
    clipped = np.maximum(np.float32(0), np.minimum(coordinates, last))
    first = np.minimum(clipped.astype(np.int64), axis.length - 1)
    second = np.minimum(first + 1, axis.length - 1)
    to_second, to_first = (np.abs(clipped - element.astype(np.float32)) for element in (first, second))
    alone = first == second
    weights = np.stack([np.where(alone, _HALF, to_first), np.where(alone, _HALF, to_second)], axis=1)
    return _all_used(np.stack([first, second], axis=1), weights)


def cubic_taps(axis: ResizedAxis, coordinates: Floats, coefficient: float, exclude_outside: bool) -> Taps:
    """Four taps per element."""
    below = np.floor(coordinates)
    f, a = np.abs(coordinates - below), np.float32(coefficient)
    one, two, three, four, five, eight = (np.float32(number) for number in (1, 2, 3, 4, 5, 8))

    def near(d: Floats) -> Floats:
        return ((a + two) * d - (a + three)) * d * d + one

    def far(d: Floats) -> Floats:
        return ((a * d - five * a) * d + eight * a) * d - four * a

    weights = np.stack([far(f + one), near(f), near(one - f), far(two - f)], axis=1)
    elements = below.astype(np.int64)[:, None] + np.arange(-1, 3)
    divisors = np.ones(axis.resized, np.float32)
    if exclude_outside:
        weights = np.where((elements < 0) | (elements >= axis.length), np.float32(0), weights)
        divisors = weights[:, 0] + weights[:, 1] + weights[:, 2] + weights[:, 3]
    return _all_used(np.clip(elements, 0, axis.length - 1), weights, divisors)


def antialias_taps(axis: ResizedAxis, coordinates: Floats, coefficient: float | None, exclude_outside: bool) -> Taps:
    """As many taps as the filter reaches: a triangle, or Keys' kernel where a ``coefficient`` is given.

    What lies beyond the axis is its outermost element, unless ``exclude_outside``.
    """
    scale = _ONE / axis.scale
    stretch = scale if scale >= 1 else _ONE
    support = np.float32(1 if coefficient is None else 2) * stretch
    kernel = _triangle if coefficient is None else _keys(np.float32(coefficient))
    window = int(np.ceil(support)) * 2 + 1
    rows = [
        _antialias_row(axis.length, coordinate, support, window, _ONE / stretch, kernel, exclude_outside)
        for coordinate in coordinates
    ]
    taps = max((len(weights) for _, weights in rows), default=0)
    elements, weights = np.zeros((axis.resized, taps), np.int64), np.zeros((axis.resized, taps), np.float32)
    for row, (first, values) in enumerate(rows):
        elements[row, : len(values)] = first + np.arange(len(values))
        weights[row, : len(values)] = values
    counts = np.asarray([len(values) for _, values in rows], np.int64)
    return Taps(elements, weights, counts, np.ones(axis.resized, np.float32))


def _antialias_row(
    length: int,
    coordinate: np.float32,
    support: np.float32,
    window: int,
    shrink: np.float32,
    kernel: Callable[[Floats], Floats],
    exclude_outside: bool,
) -> tuple[int, Floats]:
    """The first element of a window and the weights of its elements on the axis."""
    center = _HALF + coordinate
    start = int(np.floor(center - support + _HALF))
    stop = start + min(max(int(np.floor(center + support + _HALF)) - start, 0), window)
    first, last = (min(max(bound, 0), length) for bound in (start, stop))
    begin, end = (first, last) if exclude_outside else (start, stop)
    values = kernel((np.arange(begin, end, dtype=np.float32) - center + _HALF) * shrink)
    total = np.float32(0)
    for value in values:
        total = total + value
    if not exclude_outside and first < last:
        for position in range(min(max(-begin, 0), len(values) - 1)):
            values[min(max(-begin, 0), len(values) - 1)] += values[position]
        beyond = min(max(end - length, 0), len(values) - 1)
        for position in range(len(values) - beyond, len(values)):
            values[len(values) - beyond - 1] += values[position]
        values = values[first - begin :]
    return first, values[: last - first] * (_ONE if total == 0 else _ONE / total)


def _triangle(distance: Floats) -> Floats:
    away = np.abs(distance)
    return np.where(away < 1, _ONE - away, np.float32(0))


def _keys(a: np.float32) -> Callable[[Floats], Floats]:
    """Keys' kernel as the antialiasing filter has it: another order of operations than for four taps."""
    one, two, three, four, five, eight = (np.float32(number) for number in (1, 2, 3, 4, 5, 8))

    def kernel(distance: Floats) -> Floats:
        x = np.abs(distance)
        near = ((a + two) * x - (a + three)) * x * x + one
        far = (((x - five) * x + eight) * x - four) * a
        return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))

    return kernel


def _all_used(elements: Integers, weights: Floats, divisors: Floats | None = None) -> Taps:
    rows, taps = elements.shape
    ones = np.ones(rows, np.float32)
    return Taps(elements, weights, np.full(rows, taps), ones if divisors is None else divisors)
