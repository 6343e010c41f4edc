"""Element-wise step functions of one float tensor: the form that every spelling of a binariser takes.

A step function has one value where its base x is below a threshold t, one where x = t, one where x > t and one where x
is NaN. Element-wise operators act on it value by value, so a chain of operators is *evaluated* on these four
representatives, in the model's own arithmetic, instead of being recognised by its text:

    Sign(x)             t = 0:  −1,  0, +1, NaN
    Sign(x) + 0.1               −0.9, 0.1, 1.1, NaN
    Sign(Sign(x) + 0.1)         −1, +1, +1, NaN          that is: +1 where x >= 0

A region that x cannot reach is ``None`` (x = ReLU(…) is never below 0, so its sign is a {0, 1} tensor).

``rounded``: the tensor holds the values only up to float rounding (``residue``): (sign − clip) + clip.
``undefined``: the model computes NaN at the threshold (x/|x| at 0), and the value above it is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tvm.ir import Call, Var

from bnn_compiler.constants import Array

#: How far, relatively, a ``rounded`` tensor may be from its values: a few roundings of numbers up to 2 are 4 units of
#: 2^-24 around 1.
MAX_RESIDUE = 2.0**-20
#: A value as a 0-d array, None where the base never is.
Region = Array | None
#: Evaluates an operator on scalars (0-d arrays) and gives a scalar.
Evaluate = Callable[[Sequence[Array]], Array]


@dataclass(frozen=True)
class Padding:
    """Constant spatial padding (top, left, bottom, right) of an NCHW tensor by ``value``."""

    widths: tuple[int, int, int, int]
    value: float


@dataclass(frozen=True, eq=False)
class StepFunction:
    """values[region of base relative to threshold], then ``moves``, then ``padding``; see the module's docstring.

    ``base`` is a float variable; ``threshold`` broadcasts against it; ``moves`` are the shape-changing calls between
    the base and this tensor, outermost last.
    """

    base: Var
    threshold: Array
    below: Region
    equal: Region
    above: Region
    nan: Region
    moves: tuple[Call, ...] = ()
    padding: Padding | None = None
    rounded: bool = False
    undefined: bool = False

    @property
    def regions(self) -> tuple[Region, Region, Region, Region]:
        """Values below, at, above the threshold and for NaN; None where unreachable."""
        return (self.below, self.equal, self.above, self.nan)

    @property
    def values(self) -> frozenset[float]:
        """All values that a number (not NaN) can lead to, the padding's included."""
        reached = {float(value) for value in self.regions[:3] if value is not None}
        return frozenset(reached | ({self.padding.value} if self.padding else set()))

    @property
    def is_sign_like(self) -> bool:
        """Whether the value at the threshold is 0 and the values beside it are opposites."""
        if self.below is None or self.equal is None or self.above is None:
            return False
        return float(self.equal) == 0.0 and float(self.below) == -float(self.above)

    def same_partition(self, other: StepFunction) -> bool:
        """Whether both cut the same tensor at the same threshold, so that they can be combined value by value."""
        return (
            bool(self.base.same_as(other.base))
            and np.array_equal(self.threshold, other.threshold)
            and len(self.moves) == len(other.moves)
            and all(a.same_as(b) for a, b in zip(self.moves, other.moves, strict=True))
            and (self.padding is None) == (other.padding is None)
            and (self.padding is None or other.padding is None or self.padding.widths == other.padding.widths)
        )


def cut(
    base: Var, threshold: Array, evaluate: Evaluate, *, reachable: tuple[bool, bool, bool], padding: Padding | None
) -> StepFunction:
    """The step function of an operator that compares ``base`` with ``threshold``.

    ``evaluate`` gives the operator's value for the difference x − t; ``reachable`` says whether base can be below,
    at and above the threshold. ``padding`` surrounds the base with its value, and the result with the operator's value
    of it.
    """
    with np.errstate(all="ignore"):
        below, equal, above, nan = (np.asarray(evaluate([np.asarray(x, threshold.dtype)])) for x in (-1, 0, 1, np.nan))
        if padding is not None:
            distance = np.asarray(padding.value - threshold.reshape(()), threshold.dtype)
            padding = replace(padding, value=float(evaluate([distance])))
    return StepFunction(
        base,
        threshold,
        below=below if reachable[0] else None,
        equal=equal if reachable[1] else None,
        above=above if reachable[2] else None,
        nan=nan,
        padding=padding,
    )


def combine(evaluate: Evaluate, operands: Sequence[StepFunction | Array]) -> StepFunction:
    """Apply an element-wise operator to step functions of the same partition and scalars."""
    first = next(operand for operand in operands if isinstance(operand, StepFunction))

    def at(region: int) -> Region:
        arguments = []
        for operand in operands:
            value = operand.regions[region] if isinstance(operand, StepFunction) else operand
            if value is None:
                return None
            arguments.append(value)
        return np.asarray(evaluate(arguments))

    with np.errstate(all="ignore"):
        below, equal, above, nan = (at(region) for region in range(4))
        padding = first.padding
        if padding is not None:
            arguments = [
                np.asarray(operand.padding.value, np.asarray(operand.nan).dtype)
                if isinstance(operand, StepFunction) and operand.padding
                else np.asarray(operand)
                for operand in operands
            ]
            padding = replace(padding, value=float(evaluate(arguments)))
    return replace(first, below=below, equal=equal, above=above, nan=nan, padding=padding)
