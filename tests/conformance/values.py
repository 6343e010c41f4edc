"""Numbers for inputs, constants and weights."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np

from .one_node import Array

FEEDS = ("ordinary", "integers", "halves", "zeros", "half_zeros", "denormal", "huge", "nan", "infinite")
"""Kinds of inputs. What the compiler promises of the last three is less: see ``docs/architecture.md``."""


def feed_values(kind: str, like: Array, rng: np.random.Generator) -> Array:
    """An input of the shape and type of ``like``."""
    shape, dtype = like.shape, like.dtype
    if dtype.kind == "b":
        return np.zeros(shape, bool) if kind == "zeros" else rng.random(shape) < 0.5
    if dtype.kind in "iu":
        low = -6 if dtype.kind == "i" else 0
        return np.zeros(shape, dtype) if kind == "zeros" else rng.integers(low, 7, shape).astype(dtype)
    values: Array = rng.standard_normal(shape)
    if kind == "integers":
        values = rng.integers(-3, 4, shape).astype(np.float64)
    elif kind == "halves":
        values = rng.integers(-7, 8, shape) / 2
    elif kind == "zeros":
        values = np.zeros(shape)
    elif kind == "half_zeros":
        values = np.where(rng.random(shape) < 0.5, np.where(rng.random(shape) < 0.5, -0.0, 0.0), values)
    elif kind == "denormal":
        values = values * {2: 1e-6, 4: 1e-40, 8: 1e-310}[dtype.itemsize]
    elif kind == "huge":
        values = values * {2: 1e3, 4: 1e30, 8: 1e250}[dtype.itemsize]
    elif kind == "nan":
        values = np.where(rng.random(shape) < 0.1, np.nan, values)
    elif kind == "infinite":
        values = np.where(rng.random(shape) < 0.1, np.where(rng.random(shape) < 0.5, np.inf, -np.inf), values)
    return values.astype(dtype)


def constant_values(random: Random, rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    """A constant operand: normal, small integers, halves, signs, one number or powers of two."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        return rng.integers(1 if dtype.kind == "u" else -3, 5, shape).astype(dtype)
    style = random.randrange(7)
    values: Array
    if style == 0:
        values = rng.integers(-3, 4, shape).astype(np.float64)
    elif style == 1:
        values = rng.integers(-4, 5, shape) / 2
    elif style == 2:
        values = rng.choice([-1.0, 1.0], shape)
    elif style == 3:
        values = np.full(shape, random.choice([0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 100.0]))
    elif style == 4:
        values = 2.0 ** rng.integers(-3, 4, shape)
    else:
        values = rng.standard_normal(shape)
    return values.astype(dtype)


def weight_values(random: Random, rng: np.random.Generator, shape: Sequence[int], axis: int, dtype: Any) -> Array:
    """A layer's weight: ±1, ±α (per channel along ``axis``, or not), ternary, real, integer or constant."""
    style = random.choices(
        ["binary", "scaled", "channel", "ternary", "real", "integers", "same", "pruned"], [6, 2, 4, 2, 4, 1, 0.5, 1]
    )[0]
    signs = rng.choice([-1.0, 1.0], shape)
    values: Array
    per_channel = [1] * len(shape)
    per_channel[axis] = shape[axis]
    if style == "binary":
        values = signs
    elif style == "scaled":
        values = signs * random.choice([0.5, 0.25, 2.0, 0.1, 0.037, -0.3])
    elif style == "channel":
        powers = random.random() < 0.3
        scale = 2.0 ** rng.integers(-3, 3, per_channel) if powers else rng.uniform(0.02, 1.5, per_channel)
        values = signs * scale
    elif style == "ternary":
        values = signs * (rng.random(shape) < 0.6) * random.choice([1.0, 0.3])
    elif style == "integers":
        values = rng.integers(-3, 4, shape).astype(np.float64)
    elif style == "same":
        values = np.full(shape, random.choice([1.0, -1.0, 0.0]))
    elif style == "pruned":
        keep = rng.random(per_channel) < 0.7
        values = signs * keep
    else:
        values = rng.standard_normal(shape) * random.choice([0.1, 1.0])
    return values.astype(dtype)
