"""Verification of a compiled network against ONNX Runtime.

*Layer by layer.* ONNX Runtime runs the network without graph optimisation; each binary layer of the artifact is then
fed ONNX Runtime's own input of that layer and must reproduce ONNX Runtime's output, exactly in the sense of
:mod:`bnn_compiler.verification.layer_check`.

*End to end.* Outputs are compared on ``INPUTS`` inputs with the plain network in ONNX Runtime.

- An *integer-only* network must agree exactly. That is a network without float layers, whose binary layers are all
  exact, and whose reference outputs do not depend on ONNX Runtime's graph optimisation and lie on a grid of 2^-10: it
  computes with integers throughout, and so has only one right answer.
- Elsewhere the float layers round differently. An output may differ by ``RELATIVE_TOLERANCE`` times its own largest
  absolute value over all inputs. Switching ONNX Runtime's graph optimisation off moves outputs of real networks by up
  to 3e-6 of that measure; kernels that sum up to ten thousand terms in another order stay an order of magnitude below
  1e-4.
- A value next to a threshold of a binariser may round to the other side and flip a sign, and a flipped sign moves the
  outputs by more than any tolerance for rounding. So an input may be beyond tolerance if a sign flipped on it, by no
  more than ``FLIP_TOLERANCE``, and at most half of the inputs may; wrong float glue would show on every input.

*Sign flips* are counted as ``inner_tensors`` says, and in the first layer that has any there may be no more of them
than rounding explains. What comes after it may be chaotic.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from onnx import ModelProto

from bnn_compiler.errors import ModelError, VerificationError
from bnn_compiler.frontend.half_precision import uses_half_precision
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.report import OutputCheckReport, VerificationReport
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.exact_sums import with_exact_sums
from bnn_compiler.verification.inner_tensors import Feeds, FlipCheck, InnerTensors, Runnable
from bnn_compiler.verification.layer_check import LayerCheck
from bnn_compiler.verification.reference import Array, Reference, sample_feeds, take_zero_as_plus_one

INPUTS = 4
RELATIVE_TOLERANCE = 1e-4
HALF_PRECISION_TOLERANCE = 16 * 2.0**-11
"""Of a float16 output: ONNX Runtime may round to half precision, by 2^-11, behind any operator, and does behind few."""
FLIP_TOLERANCE = 0.5


class Network(Protocol):
    """What verification needs of the imported model."""

    @property
    def onnx_model(self) -> ModelProto:
        """The network as ONNX Runtime runs it."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Names, shapes and dtypes of the inputs."""
        ...


@dataclass(frozen=True)
class OutputCheck:
    """One output over all inputs."""

    name: str
    max_abs_error: float
    tolerance: float
    beyond_tolerance: int
    beyond_flip_tolerance: int

    def to_report(self) -> OutputCheckReport:
        """Return the entry of the report."""
        return {
            "name": self.name,
            "max_abs_error": self.max_abs_error,
            "tolerance": self.tolerance,
            "inputs_beyond_tolerance": self.beyond_tolerance,
        }


@dataclass(frozen=True)
class VerificationResult:
    """Everything that was compared."""

    seed: int
    inputs: int
    integer_only: bool
    layers: tuple[LayerCheck, ...]
    outputs: tuple[OutputCheck, ...]
    reference_sign_flips: int
    flips: tuple[tuple[FlipCheck, ...], ...] = ()
    """Per input, its layers with flips, in order; no entry per input where the artifact does not show activations."""
    exact_sums: bool = False
    skipped: tuple[str, ...] = ()
    """Binary layers that could only be compared as parts of the network: their tensors have no names in the model."""

    @property
    def sign_flips(self) -> int | None:
        """Flipped signs over all inputs; None where the artifact does not show its activations."""
        return sum(check.flips for checks in self.flips for check in checks) if self.flips else None

    @property
    def failure(self) -> str | None:
        """The first failure, layers in order before outputs, as a sentence; None when all agree."""
        for layer in self.layers:
            if not layer.passed:
                return layer.describe_failure()
        for checks in self.flips:
            if checks and (self.integer_only or not checks[0].plausible):
                first = checks[0]
                return (
                    f"{first.flips} of {first.activations} activations of layer {first.layer!r} have another sign than "
                    "in ONNX Runtime, more than rounding explains, though every binary layer before it agrees"
                )
        allowed = 0 if self.integer_only else self.inputs // 2
        if self.flips:
            allowed = min(allowed, sum(bool(checks) for checks in self.flips))
        for output in self.outputs:
            if output.beyond_tolerance > allowed or output.beyond_flip_tolerance:
                return (
                    f"output {output.name!r} differs from ONNX Runtime by {output.max_abs_error:.3g} on "
                    f"{output.beyond_tolerance} of {self.inputs} inputs (tolerance {output.tolerance:.3g}), "
                    "though every binary layer agrees"
                )
        return None

    @property
    def passed(self) -> bool:
        """Whether everything agrees."""
        return self.failure is None

    @property
    def undecided(self) -> FlipCheck | None:
        """The first layer whose flipped signs explain a failure without any error; None if nothing does.

        Every binary layer agrees, the network computes with floats, and on each input with flips all those of the first
        layer that has any are of values so near a threshold that the order of a sum decides their sign.
        """
        first = [checks[0] for checks in self.flips if checks]
        explained = first and not self.integer_only and all(layer.passed for layer in self.layers)
        return first[0] if explained and all(check.undecided for check in first) else None

    def raise_for_failure(self) -> None:
        """Raise :class:`VerificationError` unless everything agrees; say what may be the cause, and the way out."""
        if self.failure is None:
            return
        undecided = self.undecided
        if undecided is not None:
            raise VerificationError(
                f"verification failed: {self.failure}; in ONNX Runtime the values that layer {undecided.layer!r} sees "
                "otherwise lie within rounding of its thresholds, where the order of a float sum decides and neither "
                "result is wrong, as in networks without trained weights; trained weights go around it, and so does "
                "--no-verify where the outputs are not needed to agree"
            )
        if not self.flips and not self.integer_only and all(layer.passed for layer in self.layers):
            cause = "values within rounding of a threshold may be the cause, or a bug of the compiler: please report it"
        else:
            cause = "this is a bug of the compiler, please report it"
        raise VerificationError(
            f"verification failed: {self.failure}; {cause} (--algorithm float or --no-verify go around it)"
        )

    def to_report(self) -> VerificationReport:
        """Return the ``verification`` entry of the report."""
        return {
            "passed": self.passed,
            "seed": self.seed,
            "inputs": self.inputs,
            "integer_only": self.integer_only,
            "exact_sums": self.exact_sums,
            "sign_flips": self.sign_flips,
            "reference_sign_flips": self.reference_sign_flips,
            "layers": [layer.to_report() for layer in self.layers],
            "layers_not_compared": list(self.skipped),
            "outputs": [output.to_report() for output in self.outputs],
        }


def verify_model(
    compiled: Runnable,
    imported: Network,
    layers: Sequence[BinaryLayer],
    *,
    seed: int = 0,
    feeds: Sequence[Feeds] | None = None,
    original: ModelProto | None = None,
    zero_as_plus_one: Collection[str] = (),
    float_layers: int = 0,
    exact_sums: bool = False,
    progress: Callable[[float], None] = lambda _: None,
) -> VerificationResult:
    """Compare ``compiled`` with ONNX Runtime; the result says whether they agree, nothing is raised for that.

    ``feeds`` replaces the ``INPUTS`` seeded random inputs. ``original`` is the model as the user gave it (same inputs
    and outputs as ``imported.onnx_model``): end to end it is the reference, so that the front end is verified too.
    Where ONNX Runtime cannot load it (custom operators that the front end expressed in ONNX), ``imported`` stands in;
    and where it computes in half precision: roundings that the compiled network leaves out move values across
    thresholds, as far from them as 2^-11.
    ``zero_as_plus_one`` names the tensors whose ``Sign`` was compiled with Sign(0) = +1. ``float_layers`` is the
    number of layers that are neither binary nor binary-weight. ``exact_sums`` takes the imported network with the
    sums of its binary layers exact (:mod:`bnn_compiler.verification.exact_sums`) for the reference.

    Raises:
        ModelError: ONNX Runtime cannot run the network.
    """
    count = INPUTS if feeds is None else len(feeds)
    model = take_zero_as_plus_one(imported.onnx_model, zero_as_plus_one)
    if exact_sums:
        model = with_exact_sums(model, [layer.name for layer in layers])
    inner = InnerTensors(compiled, model, layers)
    if exact_sums:
        plain = Reference(model, optimise=False)  # optimised, the scales would become parts of the weights again
        network = plain, plain
    else:
        network = _whole_network(model, original, zero_as_plus_one)
    checks: tuple[LayerCheck, ...] = ()
    reference_flips = 0
    flips: list[tuple[FlipCheck, ...]] = []
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in network[0].outputs}
    integer_only = float_layers == 0 and bool(layers) and all(layer.exact for layer in layers)
    for index in range(count):
        # One at a time: inputs can be large.
        feed = sample_feeds(imported.inputs, seed, index) if feeds is None else feeds[index]
        values = inner.reference_values(feed)
        reference_flips += inner.reference_flips(feed, values)
        flips += inner.flips(feed, values)
        if index == 0:
            # One input per layer: it already is thousands of independent dot products.
            checks = inner.check_layers(values)
        expected, unoptimised = (reference.run(feed) for reference in network)
        actual = compiled.run(feed)
        for name, reference in expected.items():
            integer_only = integer_only and _on_grid(reference) and np.array_equal(reference, unoptimised[name])
            errors[name].append(_difference(actual[name], reference))
        progress((index + 1) / count)
    outputs = tuple(
        _judge(name, pairs, integer_only, half=actual[name].dtype == np.float16) for name, pairs in errors.items()
    )
    return VerificationResult(
        seed, count, integer_only, checks, outputs, reference_flips, tuple(flips), exact_sums, inner.skipped
    )


def _whole_network(
    model: ModelProto, original: ModelProto | None, zero_as_plus_one: Collection[str]
) -> tuple[Reference, Reference]:
    """The reference end to end, optimised and plain."""
    if original is not None and not uses_half_precision(original):
        signs = {node.input[0] for node in original.graph.node if node.op_type == "Sign"}
        # A Sign that the front end found elsewhere (in a function, behind another name) cannot be adjusted here.
        if signs.issuperset(zero_as_plus_one):
            with contextlib.suppress(ModelError):
                adjusted = take_zero_as_plus_one(original, zero_as_plus_one)
                return Reference(adjusted), Reference(adjusted, optimise=False)
    return Reference(model), Reference(model, optimise=False)


def _difference(actual: Array, expected: Array) -> tuple[float, float]:
    """Largest absolute error and largest finite absolute reference; infinite where NaN or infinity disagree."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf, 0.0
    if expected.dtype.kind != "f":
        equal = np.array_equal(actual, expected)
        return (0.0 if equal else math.inf), 0.0
    left, right = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(right)
    special = (left == right) | (np.isnan(left) & np.isnan(right))
    if not (finite | special).all() or not np.isfinite(left[finite]).all():
        return math.inf, 0.0
    scale = float(np.abs(right[finite]).max(initial=0.0))
    return float(np.abs(left[finite] - right[finite]).max(initial=0.0)), scale


def _judge(name: str, pairs: Sequence[tuple[float, float]], integer_only: bool, *, half: bool) -> OutputCheck:
    largest = max((error for error, _ in pairs), default=0.0)
    scale = max((scale for _, scale in pairs), default=0.0)
    tolerance = HALF_PRECISION_TOLERANCE if half else RELATIVE_TOLERANCE
    relative = 0.0 if integer_only else tolerance
    # Of the largest value over all inputs: on one of them all results may cancel to zero but for rounding.
    beyond = sum(error > relative * scale for error, _ in pairs)
    beyond_flip = sum(error > FLIP_TOLERANCE * scale for error, _ in pairs)
    return OutputCheck(name, min(largest, float(np.finfo(np.float64).max)), relative * scale, beyond, beyond_flip)


def _on_grid(values: Array) -> bool:
    """Whether all values are multiples of 2^-10 of moderate size, as sums of integers are and other floats are not."""
    if values.dtype.kind != "f":
        return values.dtype.kind in "iub"
    scaled = values.astype(np.float64) * 2.0**10
    return bool((np.abs(scaled) < 2.0**24).all() and (scaled == np.rint(scaled)).all())
