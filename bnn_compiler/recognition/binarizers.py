"""From a value set to bits: which comparison makes the bit, and what do its two values mean?

An activation is packed as bit = [x predicate threshold], with value ``high`` for 1 and ``low`` for 0. The alphabets:

- *bipolar*: low = −high (±a); the layer counts as binary;
- *unsigned*: low = 0 (ReLU behind a sign, {0, a});
- *affine*: any other pair of values;
- *ternary*: {−a, 0, +a}, two bits per activation;
- *codes*: the values ``levels``, a few bits per activation (``code_binarizers``).

An activation that holds its values only up to rounding (``rounded``, see ``residue``) is packed as the values
themselves; one that the model leaves undefined at the threshold (``undefined``, 0/0) takes one of the two there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of
from bnn_compiler.options import SignZero
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.step_function import Padding, Region, StepFunction
from bnn_compiler.recognition.value_sets import ValueSet

Alphabet = Literal["bipolar", "unsigned", "affine", "ternary", "codes"]
# Index: which of (below, equal, above) are high. The second name also holds for NaN.
_PREDICATES: dict[tuple[bool, bool, bool], tuple[str, str]] = {
    (False, True, True): ("ge", "nlt"),
    (False, False, True): ("gt", "nle"),
    (True, False, False): ("lt", "nge"),
    (True, True, False): ("le", "ngt"),
    (False, True, False): ("eq", "eq"),
    (True, False, True): ("ne", "ne"),
}


@dataclass(frozen=True, eq=False)
class Binarizer:
    """How one activation tensor becomes bits: compare ``base``, then apply ``moves``, then ``padding``.

    ``direction`` (±1, broadcast as ``threshold``) multiplies the base first. For codes, ``levels`` are the values in
    ascending order, and ``threshold`` has one more axis in front: level i holds from threshold i − 1 on.
    """

    base: Var
    threshold: Array
    predicate: str
    low: float
    high: float
    alphabet: Alphabet
    moves: tuple[Call, ...] = ()
    padding: Padding | None = None
    levels: tuple[float, ...] = ()
    direction: Array | None = None
    rounded: bool = False
    undefined: bool = False

    @property
    def remarks(self) -> str:
        """What a reader of the report should know of a layer with this activation; empty if nothing."""
        remarks = {
            f"0/0, NaN in the model, taken as {self.low:g} or {self.high:g}": self.undefined,
            f"activations are {self.low:g} and {self.high:g} up to rounding": self.rounded,
        }
        return "; ".join(remark for remark, applies in remarks.items() if applies)


def plan_binarizer(activation: relax.Expr, known: ValueSet | None, sign_zero: SignZero) -> Binarizer | NotBinary:
    """How ``activation`` can be packed, or why it cannot be."""
    if known is None or not isinstance(activation, Var):
        return NotBinary("activations_float", "the activation may hold any float")
    if not all(math.isfinite(value) for value in known.values):
        return NotBinary("activations_not_two_valued", "the activation takes infinite or undefined values")
    if known.undefined and sign_zero == "exact":
        return NotBinary("activations_not_two_valued", "the activation is NaN where its divisor is 0")
    plan = _plan(activation, known)
    if isinstance(plan, NotBinary) or known.is_exact:
        return plan
    return replace(plan, rounded=known.rounded, undefined=known.undefined)


def _plan(activation: Var, known: ValueSet) -> Binarizer | NotBinary:
    steps = known.steps
    if steps is not None and dtype_of(steps.base) == "float32" and (steps.threshold.size == 1 or not steps.moves):
        plan = _from_steps(steps)
        if plan is not None:
            return plan
    return _from_values(activation, known)


def _from_steps(steps: StepFunction) -> Binarizer | None:
    below, equal, above, nan = steps.regions
    reached = {float(value) for value in (below, equal, above) if value is not None}
    if len(reached) == 3:
        low, high = min(reached), max(reached)
        if not steps.is_sign_like or below == high:
            return None
        if not np.any(steps.threshold) and (not steps.padding or steps.padding.value == 0.0):
            return Binarizer(steps.base, steps.threshold, "ternary", low, high, "ternary", steps.moves, steps.padding)
        return None
    if len(reached) == 1 and 0.0 not in reached:
        reached |= {-value for value in reached}  # a constant is an alphabet of which one letter is never used
    if len(reached) != 2:
        return None
    low, high = min(reached), max(reached)
    alphabet = two_valued_alphabet(low, high)
    if alphabet == "unsigned" and high == 0.0:
        low, high = 0.0, low
    flags = [value is not None and float(value) == high for value in (below, equal, above)]
    if above is None:
        flags[2] = flags[1] if equal is not None else not flags[0]
    if below is None:
        flags[0] = not flags[2]
    if equal is None:
        flags[1] = flags[2]
    names = _PREDICATES.get((flags[0], flags[1], flags[2]))
    if names is None or not _padding_fits(steps.padding, low, high, alphabet):
        return None
    predicate = names[1] if _is(nan, high) else names[0]
    threshold = steps.threshold.astype(np.float32)
    return Binarizer(steps.base, threshold, predicate, low, high, alphabet, steps.moves, steps.padding)


def _from_values(activation: Var, known: ValueSet) -> Binarizer | NotBinary:
    """Pack the activation's own float values: they are exactly ``low`` or ``high`` (or a sign's 0)."""
    values = sorted(known.values)
    if len(values) == 3 and values[1] == 0.0 and values[0] == -values[2]:
        zero = np.zeros((), np.float32)
        return Binarizer(activation, zero, "ternary", values[0], values[2], "ternary")
    if len(values) != 2:
        shown = ", ".join(f"{value:g}" for value in values[:5]) + (", …" if len(values) > 5 else "")
        return NotBinary("activations_not_two_valued", f"the activation takes the values {{{shown}}}")
    low, high = values
    middle = np.asarray((low + high) / 2, np.float32)
    alphabet = two_valued_alphabet(low, high)
    if alphabet == "unsigned" and high == 0.0:
        return Binarizer(activation, middle, "le", 0.0, low, "unsigned")
    return Binarizer(activation, middle, "ge", low, high, alphabet)


def two_valued_alphabet(low: float, high: float) -> Alphabet:
    """The alphabet of two values."""
    if low == -high:
        return "bipolar"
    return "unsigned" if 0.0 in (low, high) else "affine"


def _padding_fits(padding: Padding | None, low: float, high: float, alphabet: Alphabet) -> bool:
    """A ring of 0 beside ±a is zero padding; other rings must be one of the two values."""
    return padding is None or padding.value in (low, high) or (padding.value == 0.0 and alphabet == "bipolar")


def _is(value: Region, expected: float) -> bool:
    return value is not None and float(value) == expected
