"""Subgradient ascent for the Lagrangian bound of ``bnn_compiler.trees.bounds``.

``prices[k, i, j]`` is the price that channel j at level k + 2 pays for parent i, and that i earns at level k + 1.
Levels here are depths: channels of level 1 hang on the root.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .levels import Distances
from .machine_code import Ints, compiled

Prices = npt.NDArray[np.float32]
Scaled = npt.NDArray[np.int32]


@compiled
def choose(
    distances: Distances, to_root: Ints, prices: Prices, earned: npt.NDArray[np.float32],
    cost: npt.NDArray[np.float32], giver: Ints, level: Ints,
) -> float:  # fmt: skip
    """Let every channel choose its level and parent under ``prices``; return the value of the relaxation.

    ``earned`` [levels + 1, M] is what a channel earns at each level; ``cost``, ``giver`` are scratch [levels, M] for
    the cheapest parent at each level above the first.
    """
    levels, channels = prices.shape[0], prices.shape[1]
    for k in range(levels):
        for j in range(channels):
            cost[k, j] = np.float32(1e9)
        for i in range(channels):
            for j in range(channels):
                value = np.float32(distances[i, j]) + prices[k, i, j]
                if value < cost[k, j]:
                    cost[k, j] = value
                    giver[k, j] = i
    total = 0.0
    for j in range(channels):
        best = np.float64(to_root[j]) - np.float64(earned[0, j])
        level[j] = 0
        for k in range(levels):
            value = np.float64(cost[k, j]) - np.float64(earned[k + 1, j])
            if value < best:
                best = value
                level[j] = k + 1
        total += best
    return total


@compiled
def ascend(distances: Distances, to_root: Ints, max_depth: int, upper: int, iterations: int, patience: int) -> Prices:
    """Prices float32[D - 1, M, M] >= 0 of a good bound; Polyak's steps toward ``upper``, halved when they stall."""
    channels, levels = distances.shape[0], max_depth - 1
    prices = np.zeros((levels, channels, channels), np.float32)
    best_prices = np.zeros((levels, channels, channels), np.float32)
    earned = np.zeros((levels + 1, channels), np.float32)
    cost = np.zeros((levels, channels), np.float32)
    giver = np.zeros((levels, channels), np.int64)
    level = np.zeros(channels, np.int64)
    best = -1e30
    pace = 1.0
    stalled = 0
    for _ in range(iterations):
        value = choose(distances, to_root, prices, earned, cost, giver, level)
        if value > best + 0.01:
            best = value
            best_prices[:] = prices
            stalled = 0
        else:
            stalled += 1
            if stalled >= patience:
                pace *= 0.7
                stalled = 0
                prices[:] = best_prices
                for k in range(levels):
                    for i in range(channels):
                        total = 0.0
                        for j in range(channels):
                            total += prices[k, i, j]
                        earned[k, i] = total
                value = choose(distances, to_root, prices, earned, cost, giver, level)
        # The subgradient is x[i, j, k] - y[i, k - 1], without the components that the bound 0 stops.
        norm = 0.0
        for j in range(channels):
            k = level[j] - 1
            if k >= 0 and level[giver[k, j]] != k:
                norm += 1.0
            if level[j] < levels:
                own = level[j]
                for child in range(channels):
                    if prices[own, j, child] > 0 and not (level[child] == own + 1 and giver[own, child] == j):
                        norm += 1.0
        if norm == 0.0:
            break
        step = np.float32(pace * max(upper - value, 1.0) / norm)
        for j in range(channels):
            if level[j] < levels:
                own = level[j]
                total = 0.0
                for child in range(channels):
                    price = prices[own, j, child]
                    if not (level[child] == own + 1 and giver[own, child] == j):
                        price = max(price - step, np.float32(0))
                        prices[own, j, child] = price
                    total += price
                earned[own, j] = total
        for j in range(channels):
            k = level[j] - 1
            if k >= 0 and level[giver[k, j]] != k:
                prices[k, giver[k, j], j] += step
                earned[k, giver[k, j]] += step
    return best_prices


@compiled
def evaluate(distances: Distances, to_root: Ints, prices: Scaled, units: int) -> int:
    """The bound of integer ``prices`` int32[D - 1, M, M], in 1/``units`` of a plane."""
    levels, channels = prices.shape[0], prices.shape[1]
    total = np.int64(0)
    for j in range(channels):
        earned = np.int64(0)
        for child in range(channels):
            earned += prices[0, j, child]
        best = np.int64(to_root[j]) * units - earned
        for k in range(levels):
            least = np.int64(1) << 60
            for i in range(channels):
                if i != j:
                    least = min(least, np.int64(distances[i, j]) * units + prices[k, i, j])
            if k + 1 < levels:
                for child in range(channels):
                    least -= prices[k + 1, j, child]
            best = min(best, least)
        total += best
    return int(total)


@compiled
def slack(distances: Distances, to_root: Ints, prices: Scaled, units: int) -> Ints:
    """How much more than its best choice each choice costs a channel: int64[D, M, M] in 1/``units`` of a plane.

    Entry [k, i, j] is of channel j at level k + 1 below i; at level 1, below the root, i = j stands for the root. A
    tree that takes a choice costs at least the bound plus its slack.
    """
    levels, channels = prices.shape[0], prices.shape[1]
    slacks = np.full((levels + 1, channels, channels), np.int64(1) << 60)
    for j in range(channels):
        least = np.int64(1) << 60
        for k in range(levels + 1):
            earned = np.int64(0)
            if k < levels:
                for child in range(channels):
                    earned += prices[k, j, child]
            if k == 0:
                slacks[0, j, j] = np.int64(to_root[j]) * units - earned
                least = slacks[0, j, j]
            else:
                for i in range(channels):
                    if i != j:
                        value = np.int64(distances[i, j]) * units + prices[k - 1, i, j] - earned
                        slacks[k, i, j] = value
                        least = min(least, value)
        for k in range(levels + 1):
            for i in range(channels):
                slacks[k, i, j] -= least
    return slacks
