"""Whether outputs are right.

The reference is ONNX Runtime, stock and without graph optimisation. Where both give the same multiples of 2^-10, as
graphs of integers do, or an output is not of floats, the values must be equal; other floats may be off by
``CLOSE`` times the largest. What is beyond that is held against ``RUNS`` evaluations with errors of rounding
(:mod:`tests.conformance.rounding`): right is what lies among these, or as far beside them again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from .one_node import Array, RejectedNodeError, make_session
from .rounding import Evaluation, RoundingModel

CLOSE = 1e-5
"""Real networks move by up to 3e-6 of the largest value where ONNX Runtime's own optimisations are switched off."""
RUNS = 10
_MARGIN = 2.0
_HALF_CLOSE = 4 * 2.0**-11


@dataclass
class Verdict:
    """``wrong`` says what is; ``rounding`` counts outputs that only rounding explains, ``undefined`` those without
    a defined value."""

    wrong: list[str] = field(default_factory=list)
    rounding: int = 0
    undefined: int = 0


class Judge:
    """The references of one model."""

    def __init__(self, reference: onnx.ModelProto, *, stock: onnx.ModelProto | None = None) -> None:
        """Make the sessions.

        Raises:
            RejectedNodeError: ONNX Runtime does not run the model.
        """
        self._model = reference
        self._outputs = [output.name for output in reference.graph.output]
        data = (stock or reference).SerializeToString()
        try:
            self._sessions = [make_session(data, optimise=True), make_session(data, optimise=False)]
        except Exception as error:
            raise RejectedNodeError(str(error)) from error
        self._rounding: RoundingModel | None = None

    def expected(self, feed: Mapping[str, Array]) -> list[dict[str, Array]]:
        """The outputs of both sessions.

        Raises:
            RejectedNodeError: the model fails on this input.
        """
        try:
            return [
                dict(zip(self._outputs, session.run(self._outputs, dict(feed)), strict=True))
                for session in self._sessions
            ]
        except Exception as error:
            raise RejectedNodeError(str(error)) from error

    def judge(
        self, actual: Mapping[str, Array], feed: Mapping[str, Array], undefined: frozenset[str] = frozenset()
    ) -> Verdict:
        """Compare outputs; ``undefined`` names nodes whose results NaN makes undefined.

        Raises:
            RejectedNodeError: the reference cannot be evaluated on this input.
        """
        verdict = Verdict()
        expected = self.expected(feed)
        doubtful = []
        for name in self._outputs:
            references = [outputs[name] for outputs in expected]
            if name not in actual:
                verdict.wrong.append(f"{name}: missing")
            elif actual[name].shape != references[0].shape or actual[name].dtype != references[0].dtype:
                found, wanted = (f"{a.dtype}{list(a.shape)}" for a in (actual[name], references[0]))
                verdict.wrong.append(f"{name}: {found} instead of {wanted}")
            elif not _agrees(actual[name], references).all():
                doubtful.append(name)
        if not doubtful:
            return verdict
        runs = self._evaluations(feed, undefined)
        for name in doubtful:
            if any(name in run.undefined for run in runs):
                verdict.undefined += 1
                continue
            references = [outputs[name] for outputs in expected]
            values = [run.values[name] for run in runs]
            good = _agrees(actual[name], references) | _within(actual[name], [*references, *values])
            if good.all():
                verdict.rounding += 1
            else:
                verdict.wrong.append(_describe(name, actual[name], references[0], ~good))
        return verdict

    def meets_nan(self, feed: Mapping[str, Array]) -> bool:
        """Whether the network computes NaN on this input somewhere, as ``Sqrt`` and ``Log`` do."""
        values = self._evaluations(feed, frozenset())[0].values.values()
        return any(value.dtype.kind == "f" and bool(np.isnan(value).any()) for value in values)

    def _evaluations(self, feed: Mapping[str, Array], undefined: frozenset[str]) -> list[Evaluation]:
        if self._rounding is None:
            self._rounding = RoundingModel(self._model)
        rng = np.random.default_rng(0)
        return [self._rounding.evaluate(feed, rng if i else None, undefined) for i in range(RUNS)]


def _agrees(actual: Array, references: Sequence[Array]) -> Array:
    """Elementwise: equal to either reference, or close where these are floats beyond a grid."""
    equal = np.zeros(actual.shape, bool)
    for reference in references:
        equal |= (actual == reference) | (_is_nan(actual) & _is_nan(reference))
    if actual.dtype.kind != "f" or equal.all():
        return np.asarray(equal)
    first, second = (reference.astype(np.float64) for reference in references)
    if np.array_equal(first, second, equal_nan=True) and _on_grid(first):
        return np.asarray(equal)
    finite = first[np.isfinite(first)]
    close = (_HALF_CLOSE if actual.dtype == np.float16 else CLOSE) * float(np.abs(finite).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        near = (np.abs(actual - first) <= close) | (np.abs(actual - second) <= close)
    return np.asarray(equal | near)


def _is_nan(values: Array) -> Array:
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)


def _on_grid(values: Array) -> bool:
    scaled = values[np.isfinite(values)] * 2.0**10
    return bool((np.abs(scaled) < 2.0**24).all() and (scaled == np.rint(scaled)).all())


def _within(actual: Array, values: Sequence[Array]) -> Array:
    """Elementwise: among the values, or as far beside them as they are apart."""
    wide = np.stack([value.astype(np.float64) for value in values])
    number = actual.astype(np.float64)
    special = np.zeros(actual.shape, bool)
    for value in wide:
        special |= (number == value) | (np.isnan(number) & np.isnan(value))
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(wide)
        low = np.min(np.where(finite, wide, np.inf), axis=0)
        high = np.max(np.where(finite, wide, -np.inf), axis=0)
        spread = np.where(high >= low, _MARGIN * (high - low), 0.0)
        # Where values vary at all, the last places of the rest may, too.
        varies = bool((spread > 0).any())
        rest = CLOSE * float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)) if varies else 0.0
        if actual.dtype.kind != "f":
            rest = 0.0
        return np.asarray(special | ((number >= low - spread - rest) & (number <= high + spread + rest)))


def _describe(name: str, actual: Array, reference: Array, wrong: Array) -> str:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{name} {actual.dtype}{list(actual.shape)}: {int(wrong.sum())} of {wrong.size} differ, "
        f"{actual[index]} instead of {reference[index]} at {list(index)}"
    )
