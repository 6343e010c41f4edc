"""Are both right? Where signs and codes of a compiled network differ from ONNX Runtime's, float64 decides.

Two float32 evaluations err, each by some rounding, and a value within that of a threshold may come out on either side.
The referee evaluates the network in float64 between its discontinuities (:mod:`.float64_model`), so that the difference
of a tensor from ONNX Runtime's is rounding alone. ``FACTOR`` times the largest such difference in a tensor is what a
float32 evaluation may err by there: 0 where float32 is exact, as in sums of signs.

1. Layer by layer: each activation that the artifact binarises otherwise must be what its binariser gives for a value
   within that error of the float64 one. Then ONNX Runtime goes on from the artifact's own signs and codes
   (:mod:`.corrections`), and the next layer is compared.
2. With the same signs and codes everywhere, outputs must be within the usual tolerance.
3. Discontinuities that are in no layer's binariser (a quantised output, an arg-max) cannot be seen in the artifact.
   There ONNX Runtime shows what rounding does: it runs with such errors added at each of them, up, down and at random,
   and the artifact may differ from it where those runs do, and elsewhere in at most ``FACTOR`` times as many values as
   one run more would add; by at most ``FACTOR`` times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from bnn_compiler.layers import BinaryLayer
from bnn_compiler.verification.corrections import corrected_name, correction_feed, with_corrections
from bnn_compiler.verification.end_to_end import RELATIVE_TOLERANCE
from bnn_compiler.verification.float64_model import SUFFIX, in_float64, static_shapes
from bnn_compiler.verification.inner_tensors import Runnable, layer_input
from bnn_compiler.verification.reference import Array, Feeds, Reference, expose, node_activation

FACTOR = 4.0
"""ONNX Runtime's own largest error is that of thousands of values; another order of sums seldom gives twice as much."""
IMPRECISE = 2.0**-18
"""Of a tensor's largest value: what it may err by where float64 was not to be had all the way."""
_NOISE = ((1, 1), (-1, -1), (-1, 1), (-1, 1), (-1, 1))
"""Ranges of the errors that are added, in units of what is allowed: up, down, at random."""

Values = Mapping[str, Array]


@dataclass(frozen=True)
class Ruling:
    """What float64 says: how many signs and codes are right either way, and what is wrong, if anything is."""

    decided: int = 0
    wrong: str | None = None


@dataclass(frozen=True)
class _Run:
    """One evaluation: float32 tensors, the float64 ones under the same names, and allowed errors."""

    single: Values
    double: Values
    errors: Mapping[str, float]


class Referee:
    """Judges the artifact on one input after the other.

    Raises:
        ModelError: ONNX Runtime cannot run the network in float64.
    """

    def __init__(self, compiled: Runnable, model: ModelProto, layers: Sequence[BinaryLayer]) -> None:
        """Load ``model``, whose Sign(0) must be the artifact's, in float32 and in float64."""
        self._compiled, self._model = compiled, model
        self._shapes = static_shapes(model)
        self._layers = [layer for layer in layers if layer.input_tensor in self._shapes]
        tensors = [layer.input_tensor for layer in self._layers if layer.input_tensor is not None]
        network = in_float64(model, tensors)
        self._imprecise, self._forced = network.imprecise, network.forced
        self._watched = [name for name in dict.fromkeys((*tensors, *network.jumps)) if name in network.watched]
        corrected = with_corrections(model, self._watched, self._shapes)
        self._names = {name: corrected_name(model, name) for name in self._watched}
        self._outputs = [info.name for info in model.graph.output]
        self._single = Reference(expose(corrected, [*network.forced, *self._names.values()]), optimise=False)
        # A network without discontinuities has nothing that float64 would be asked for.
        self._double = Reference(network.model, optimise=False) if self._watched else None
        self._scales: dict[str, float] = {}

    def judge(self, feed: Feeds) -> Ruling:
        """Rule on one input."""
        bits = self._compiled.activation_bits(feed)
        actual = self._compiled.run(feed)
        corrections: dict[str, Array] = {}
        decided = 0
        wrong: str | None = None
        run = first = self._run(feed, corrections)
        while wrong is None:
            layer = next((each for each in self._layers if self._flipped(each, run, bits) is not None), None)
            if layer is None:
                break
            found = self._explain(layer, run, bits, corrections)
            if isinstance(found, str):
                wrong = found
                break
            decided += found
            run = self._run(feed, corrections)
        if wrong is None:
            wrong = self._compare_outputs(actual, run)
        if wrong is not None and self._as_noisy(feed, first, bits, actual):
            wrong = None
        return Ruling(decided, wrong)

    def _run(self, feed: Feeds, corrections: Values) -> _Run:
        single = self._single.run({**feed, **correction_feed(corrections, self._watched, self._shapes)})
        forced = {name: single[name] for name in self._forced}
        double = {} if self._double is None else self._double.run({**feed, **forced})
        values = {name: single[given] for name, given in self._names.items()}
        wide = {name: double[name + SUFFIX] for name in self._watched}
        errors = {}
        for name in self._watched:
            computed = values[name] - corrections[name] if name in corrections else values[name]
            errors[name] = self._error(name, computed, wide[name])
        return _Run({**single, **values}, wide, errors)

    def _error(self, name: str, single: Array, double: Array) -> float:
        finite = np.isfinite(single) & np.isfinite(double)
        error = FACTOR * float(np.abs(single[finite] - double[finite]).max(initial=0.0))
        largest = float(np.abs(double[finite]).max(initial=0.0))
        if name in self._imprecise:
            return max(error, IMPRECISE * largest)
        # Small tensors may come out exact by luck; those that are exact by construction are so in float64.
        exact = error == 0 and bool((double[finite] == single[finite]).all())
        return 0.0 if exact else max(error, 2.0**-23 * largest)

    def _flipped(self, layer: BinaryLayer, run: _Run, bits: Values) -> Array | None:
        """The bits of the layer's activations that differ; None if none do, or if the artifact does not show them."""
        if layer.function not in bits:
            return None
        flipped = bits[layer.function] ^ self._binarised(layer, layer_input(layer, run.single))
        return flipped if flipped.any() else None

    def _binarised(self, layer: BinaryLayer, value: Array) -> Array:
        return self._compiled.run_function(f"{layer.function}_bits", np.ascontiguousarray(value, np.float32))

    def _explain(self, layer: BinaryLayer, run: _Run, bits: Values, corrections: dict[str, Array]) -> int | str:
        """Correct the layer's input so that it gives the artifact's bits: how many changed, or a sentence."""
        name, wanted = layer.input_tensor, bits[layer.function]
        assert name is not None, "only layers whose tensors have names are looked at"
        value, error = layer_input(layer, run.single), run.errors[name]
        wide = layer_input(layer, {name: run.double[name]})
        chosen = value.copy()
        before = self._binarised(layer, value) ^ wanted
        for candidate in ((wide + error).astype(np.float32), (wide - error).astype(np.float32)):
            elements = _elements(lambda array: self._binarised(layer, array), chosen, candidate, wanted)
            chosen.reshape(-1)[elements] = candidate.reshape(-1)[elements]
        left = self._binarised(layer, chosen) ^ wanted
        if left.any():
            return (
                f"{ones(left)} bits of the activations of layer {layer.name!r} are other than in ONNX Runtime, and "
                f"wrong by an evaluation in float64: no value within {error:.3g} of it gives them"
            )
        moved = (chosen - value).astype(np.float32)
        shape = self._shapes[name]
        if layer.input_axes is not None:
            permuted = moved.reshape([shape[axis] for axis in layer.input_axes])
            moved = permuted.transpose(np.argsort(layer.input_axes))
        corrections[name] = corrections.get(name, np.zeros(shape, np.float32)) + moved.reshape(shape)
        return ones(before)

    def _compare_outputs(self, actual: Values, run: _Run) -> str | None:
        for name in self._outputs:
            expected = run.single[name]
            self._scales[name] = max(self._scales.get(name, 0.0), _scale(expected))
            wrong, error = _differing(actual[name], expected, RELATIVE_TOLERANCE * self._scales[name])
            if wrong:
                return (
                    f"{wrong} values of output {name!r} differ from ONNX Runtime's by up to {error:.3g} where both "
                    "have the same signs and codes"
                )
        return None

    def _as_noisy(self, feed: Feeds, run: _Run, bits: Values, actual: Values) -> bool:
        """Rule 3: whether errors at unseen discontinuities do as much to ONNX Runtime's results."""
        unseen = [name for name in self._watched if name not in self._seen(bits) and run.errors[name] > 0]
        if not unseen:
            return False
        noise = np.random.default_rng(0)
        changed: dict[str, list[Array]] = {}
        largest: dict[str, float] = dict.fromkeys(self._outputs, 0.0)
        for low, high in _NOISE:
            other = self._run(
                feed, {name: run.errors[name] * noise.uniform(low, high, self._shapes[name]) for name in unseen}
            )
            for layer in self._layers:
                if layer.function in bits:
                    both = (self._binarised(layer, layer_input(layer, each.single)) for each in (other, run))
                    changed.setdefault(layer.function, []).append(_flat(np.bitwise_xor(*both)) != 0)
            for name in self._outputs:
                beyond, error = _beyond(other.single[name], run.single[name], self._tolerance(name, run))
                changed.setdefault(name, []).append(beyond)
                largest[name] = max(largest[name], error)
        for layer in self._layers:
            flipped = self._flipped(layer, run, bits)
            if flipped is not None and not _is_typical(_flat(flipped) != 0, changed[layer.function]):
                return False
        for name in self._outputs:
            beyond, error = _beyond(actual[name], run.single[name], self._tolerance(name, run))
            if (error > FACTOR * largest[name] and beyond.any()) or not _is_typical(beyond, changed[name]):
                return False
        return True

    def _tolerance(self, name: str, run: _Run) -> float:
        return RELATIVE_TOLERANCE * max(self._scales.get(name, 0.0), _scale(run.single[name]))

    def _seen(self, bits: Values) -> set[str]:
        """Tensors between the inputs of layers whose bits are shown and their binary activations."""
        shown = [layer for layer in self._layers if layer.function in bits]
        seen: set[str] = set()
        for layer in shown:
            activation = node_activation(self._model, layer.name)
            assert layer.input_tensor is not None, "as above"
            seen |= _between(self._model, layer.input_tensor, activation or layer.input_tensor)
        return seen


def _is_typical(different: Array, runs: Sequence[Array]) -> bool:
    """Whether elements that differ are those that errors change, or no more of others than a further run would add."""
    union = np.logical_or.reduce(runs)
    news = [
        runs[index] & ~np.logical_or.reduce([other for number, other in enumerate(runs) if number != index])
        for index in range(2, len(runs))  # at random: those up and down are the only ones of their kind
    ]
    added = max(int(new.sum()) for new in news)
    within = int(different.sum()) <= FACTOR * int(union.sum())
    return within and int((different & ~union).sum()) <= FACTOR * added


def ones(bits: Array) -> int:
    """How many bits are set."""
    return int(np.unpackbits(np.ascontiguousarray(bits).view(np.uint8)).sum())


def _elements(binarise: Callable[[Array], Array], value: Array, candidate: Array, wanted: Array) -> Array:
    """Indices of the elements of ``value`` whose bits become ``wanted`` ones, otherwise than now, by ``candidate``'s.

    Which bit belongs to which element is the kernel's own business; each element's index is read off by replacing, for
    each binary digit, the elements whose index has it.
    """
    now = binarise(value)
    hits = np.flatnonzero(_flat((now ^ wanted) & (now ^ binarise(candidate))))
    indices = np.zeros(hits.size, np.int64)
    if hits.size:
        numbers = np.arange(value.size).reshape(value.shape)
        for digit in range(max(1, int(value.size - 1).bit_length())):
            mixed = np.where((numbers >> digit) & 1 == 1, candidate, value)
            indices |= _flat(binarise(mixed) ^ now)[hits].astype(np.int64) << digit
    return np.unique(indices)


def _flat(bits: Array) -> Array:
    return np.unpackbits(np.ascontiguousarray(bits).view(np.uint8))


def _scale(value: Array) -> float:
    numbers = value[np.isfinite(value)] if value.dtype.kind == "f" else np.zeros(0)
    return float(np.abs(numbers).max(initial=0.0))


def _beyond(actual: Array, expected: Array, tolerance: float) -> tuple[Array, float]:
    """Which elements are beyond the tolerance, and the largest error; infinite where NaN or infinity differs."""
    if expected.dtype.kind != "f":
        beyond = np.asarray(actual != expected)
        return beyond, float(beyond.any())
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.nan_to_num(np.abs(left - right), nan=np.inf, posinf=np.inf))
    return error > tolerance, float(error.max(initial=0.0))


def _differing(actual: Array, expected: Array, tolerance: float) -> tuple[int, float]:
    beyond, error = _beyond(actual, expected, tolerance)
    return int(beyond.sum()), error


def _between(model: ModelProto, source: str, target: str) -> set[str]:
    """Tensors on paths from ``source`` to ``target``, both included."""
    before, after = {source}, {target}
    for node in model.graph.node:
        if not before.isdisjoint(node.input):
            before.update(node.output)
    for node in reversed(model.graph.node):
        if not after.isdisjoint(node.output):
            after.update(node.input)
    return (before & after) | {source}
