"""Which bits an activation becomes: a predicate, thresholds, and the code from each threshold on.

bit = predicate(v, threshold) with v = x, or v = x·scale + shift per channel (a folded batch normalisation, say).

Predicates follow IEEE 754: all but ``ne`` and the negated ones (``nge`` is "not x >= t") are false on NaN.

Activations of several levels become codes of k bits, a plane each. With ordered thresholds t_1 <= t_2 <= …, the code
changes from c_{i-1} to c_i at t_i, so bit p is the exclusive or of [v predicate t_i] over those i that change bit p.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from bnn_compiler.schedules.kernel_builder import Argument
from bnn_compiler.schedules.popcount import Alphabet, code_bits

Predicate = Literal["ge", "gt", "le", "lt", "eq", "ne", "nge", "ngt", "nle", "nlt"]
FloatDtype = Literal["float16", "float32", "float64"]


@dataclass(frozen=True)
class PackRule:
    """How an activation becomes a bit (or, ternary, two; or the bits of a code).

    ``threshold`` is a number, or "channel" for a buffer with one per channel (feature). ``affine`` says that buffers
    scale and shift are given and applied first. A threshold buffer is float64 for float64 activations, all else is
    float32 (float16 activations are converted, which is exact). A ternary
    alphabet packs v > threshold, then v < threshold, and takes the predicate ``gt`` only.

    ``codes`` are for alphabets of codes: the code below all thresholds, which is 0, and the code from each threshold
    on. There is one threshold less than codes, ascending: a tuple, or "channel" for a buffer [thresholds, channels].
    The predicate is ``ge`` or, where NaN is above all thresholds, ``nlt``; any with a single threshold.
    """

    predicate: Predicate = "ge"
    threshold: float | tuple[float, ...] | Literal["channel"] = 0.0
    alphabet: Alphabet = "bipolar"
    affine: bool = False
    dtype: FloatDtype = "float32"
    codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a ternary alphabet with another predicate, an affine map of float64, codes that do not fit."""
        if self.affine and self.dtype == "float64":
            raise ValueError("an affine map is applied in float32: cast float64 activations first")
        if self.alphabet == "ternary" and self.predicate != "gt":
            raise ValueError(f"ternary activations are packed with predicate 'gt', found {self.predicate!r}")
        if code_bits(self.alphabet) == 1 and not self.codes and not isinstance(self.threshold, tuple):
            return
        bits = code_bits(self.alphabet)
        if bits == 1 or len(self.codes) < 2 or self.codes[0] != 0 or not all(0 <= c < 1 << bits for c in self.codes):
            raise ValueError(f"the codes {self.codes} do not fit {self.alphabet} activations")
        if self.threshold != "channel" and len(self.thresholds) != len(self.codes) - 1:
            raise ValueError(f"{len(self.codes)} codes have {len(self.codes) - 1} thresholds, found {self.threshold}")
        if len(self.codes) > 2 and self.predicate not in ("ge", "nlt"):
            raise ValueError(f"codes are packed with predicate 'ge' or 'nlt', found {self.predicate!r}")

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The constant thresholds; none where they come in a buffer."""
        if self.threshold == "channel":
            return ()
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    def changes(self, plane: int) -> tuple[int, ...]:
        """The thresholds at which bit ``plane`` of the code changes."""
        pairs = itertools.pairwise(self.codes)
        return tuple(i for i, (before, after) in enumerate(pairs) if (before ^ after) >> plane & 1)

    @property
    def compute_dtype(self) -> str:
        """The type of the comparison."""
        return "float64" if self.dtype == "float64" else "float32"

    def predicates(self) -> tuple[Predicate, ...]:
        """One predicate per bit plane."""
        return ("gt", "lt") if self.alphabet == "ternary" else (self.predicate,)

    def parameters(self, length: int) -> list[Argument]:
        """The parameter buffers, between the activation and the bits."""
        names = ["scale", "shift"] if self.affine else []
        arguments = [Argument(name, (length,), self.compute_dtype) for name in names]
        if self.threshold == "channel":
            shape = (len(self.codes) - 1, length) if self.codes else (length,)
            arguments.append(Argument("threshold", shape, self.compute_dtype))
        return arguments
