"""What the elements of a tensor are drawn from: numbers that they hit exactly, and a continuum that they do not.

A float that comes out of a convolution with trained weights equals a given number by accident only: once in ten million
elements or so. A ReLU's 0, a pad, a sum of signs or an integer is hit exactly, again and again. ``Mixture`` keeps the
two apart, as a distribution is split into its atoms and its continuous part:

- ``points``: the atoms that are known, the numbers that are hit exactly; per channel where they differ by channel;
- ``unknown``: whether there may be further atoms, 0 among them;
- ``sources``: for the continuous part, of which variables its elements are multiples, and by which factors. x and
  relu(x) have elements in common, so x − relu(x) is exactly 0 where neither x nor its weights are anything special; two
  convolutions have none.

A mixture without a continuous part and without unknown atoms says which values are possible at all, unless it
``leaks``: the ``Sign`` of a continuous tensor is ±1, and 0 by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tvm.ir import Var

from bnn_compiler.constants import Array

#: Elements of ``points``: beyond, atoms count as unknown.
MAX_POINTS = 1 << 22
#: Variables that a continuous part is traced to; what has more is a variable of its own.
_MAX_SOURCES = 512
_MAX_FACTORS = 8

#: variable -> factors.
Sources = Mapping[Var, frozenset[float]]


@dataclass(frozen=True, eq=False)
class Mixture:
    """See the module's docstring.

    ``points`` [C or 1, V] in the tensor's dtype (V may be 0); row c holds for index c of axis ``axis``, and is alone
    where ``axis`` is None. ``sources`` is None where there is no continuous part. ``zero`` names the tensor in which 0
    became an atom.
    """

    points: Array
    axis: int | None = None
    sources: Sources | None = None
    unknown: bool = False
    leaks: bool = False
    zero: Var | None = field(default=None)

    @property
    def is_continuous(self) -> bool:
        """Whether there is a continuous part."""
        return self.sources is not None

    @property
    def is_discrete(self) -> bool:
        """Whether ``points`` are all values that are possible."""
        return self.sources is None and not self.unknown

    @property
    def may_hold_zero(self) -> bool:
        """Whether 0 (of either sign) is an atom, or may be one."""
        return self.has_atom(0.0)

    def can_equal(self, value: float) -> bool | None:
        """Whether an element can equal ``value``; None where that is not known."""
        return bool(np.any(self.points == value)) if self.is_discrete and not self.leaks else None

    def has_atom(self, value: float) -> bool:
        """Whether ``value`` is an atom, or may be one."""
        return self.unknown or bool(np.any(self.points == value))

    def flat_points(self) -> Array:
        """The atoms of all channels, ascending, each once: [V]."""
        return np.unique(self.points)

    def flattened(self) -> Mixture:
        """The same without the distinction of channels."""
        return self if self.axis is None else replace(self, points=self.flat_points()[None], axis=None)

    def bounded(self) -> Mixture:
        """The same, with too many atoms to keep made unknown ones."""
        if self.points.size <= MAX_POINTS:
            return self
        return replace(self, points=no_points(self.points.dtype), axis=None, unknown=True)


def no_points(dtype: np.dtype[np.generic]) -> Array:
    """No atoms."""
    return np.zeros((1, 0), dtype)


def at_points(points: Sequence[float] | Array, dtype: np.dtype[np.generic]) -> Mixture:
    """These values and no others."""
    return Mixture(np.unique(np.asarray(points, dtype))[None])


def continuum(variable: Var, dtype: np.dtype[np.generic], *, unknown: bool = False) -> Mixture:
    """Any numbers, those of ``variable``."""
    return Mixture(no_points(dtype), sources={variable: frozenset({1.0})}, unknown=unknown)


def anything(variable: Var, dtype: np.dtype[np.generic]) -> Mixture:
    """What is known of a tensor of which nothing is known."""
    return continuum(variable, dtype, unknown=True)


def union(mixtures: Sequence[Mixture], *, aligned: bool = False) -> Mixture:
    """Elements of any of ``mixtures`` (of one dtype); with ``aligned``, of the same channel."""
    rows = {len(mixture.points) for mixture in mixtures if mixture.axis is not None}
    axes = {mixture.axis for mixture in mixtures if mixture.axis is not None}
    if aligned and len(rows) == 1 and len(axes) == 1:
        count = next(iter(rows))
        parts = [np.broadcast_to(mixture.points, (count, mixture.points.shape[1])) for mixture in mixtures]
        points, axis = np.concatenate(parts, axis=1), next(iter(axes))
    else:
        points, axis = np.unique(np.concatenate([mixture.points.reshape(-1) for mixture in mixtures]))[None], None
    found: Sources | None = None
    for mixture in mixtures:
        found = merge_sources(found, mixture.sources)
    zero = next((mixture.zero for mixture in mixtures if mixture.zero is not None), None)
    unknown = any(mixture.unknown for mixture in mixtures)
    return Mixture(points, axis, found, unknown, any(mixture.leaks for mixture in mixtures), zero).bounded()


def merge_sources(left: Sources | None, right: Sources | None) -> Sources | None:
    """What either is made of; None where neither has a continuous part."""
    if left is None or right is None:
        return left if right is None else right
    return {key: left.get(key, frozenset()) | right.get(key, frozenset()) for key in (*left, *right)}


def scaled(sources: Sources, factors: Sequence[float], result: Var) -> Sources:
    """``sources`` times any of ``factors``; ``result`` itself where these are too many to tell what cancels."""
    if len(factors) > _MAX_FACTORS or len(sources) > _MAX_SOURCES:
        return {result: frozenset({1.0})}
    made = {key: frozenset(old * new for old in scales for new in factors) for key, scales in sources.items()}
    return made if all(len(scales) <= _MAX_FACTORS for scales in made.values()) else {result: frozenset({1.0})}


def may_cancel(left: Sources, right: Sources) -> bool:
    """Whether x + y may be 0 because x and y have elements in common, but for their signs."""
    return any(-factor in right[key] for key, factors in left.items() if key in right for factor in factors)
