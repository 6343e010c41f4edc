"""How much work each effort means: steps, never seconds, so that a seed gives the same tree everywhere.

The seconds in the comments are of one core of a 2.6 GHz Zen 5 server.
"""

from __future__ import annotations

from dataclasses import dataclass

from .problem import Effort

# A sweep of regrafts is worth M²·W: M steps, each over about 4M places of 2W words.
_WORK = {"fast": 4e7, "default": 5e8, "thorough": 1e10}


@dataclass(frozen=True)
class SyntheticBudget:
    """Annealing of trees with synthetic nodes: ``restarts`` runs of ``sweeps`` regrafts per channel."""

    restarts: int
    sweeps: int


@dataclass(frozen=True)
class PlainBudget:
    """Annealing of plain trees: ``restarts`` runs of ``sweeps`` relabelings per channel."""

    restarts: int
    sweeps: int


def synthetic_budget(effort: Effort, channels: int, words: int) -> SyntheticBudget:
    """About 0.5 s, 5 s, 100 s at 512 channels; never so few steps that the heat cannot fall, nor more than help."""
    least, most = {"fast": (1, 20), "default": (3, 100), "thorough": (20, 1000)}[effort]
    work = _WORK[effort] * max(1.0, channels / 512)
    return SyntheticBudget(restarts=1, sweeps=min(max(int(work / (channels**2 * words)), least), most))


def plain_budget(effort: Effort, channels: int) -> PlainBudget:
    """A relabeling reads one row of distances: about 0.1 s, 1 s, 10 s at 512 channels."""
    restarts, sweeps = {"fast": (1, 200), "default": (6, 1500), "thorough": (16, 6000)}[effort]
    return PlainBudget(restarts, max(2, min(sweeps, int(sweeps * 512**2 / channels**2))))
