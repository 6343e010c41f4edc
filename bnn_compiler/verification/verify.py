"""Verification of a compiled network against ONNX Runtime.

*Layer by layer.* ONNX Runtime runs the network without graph optimisation; each binary layer of the artifact is then
fed ONNX Runtime's own input of that layer and must reproduce ONNX Runtime's output, exactly in the sense of
:mod:`bnn_compiler.verification.layer_check`.

*End to end.* Outputs are compared with those of the model as the user gave it, in ONNX Runtime as its users run it, on
the inputs of :mod:`bnn_compiler.verification.sample_inputs`. Only where they differ, and there is a reason why they
may, does another reference decide whether the network is compiled rightly (``compared_with``): the same model with
Sign(0) = +1 where it was compiled so, or the front end's form of it where the file computes in half precision. How far
the result is from the user's own model is reported all the same (``own``).

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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from onnx import ModelProto

from bnn_compiler.errors import ModelError, VerificationError
from bnn_compiler.frontend.half_precision import uses_half_precision
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.report import ComparedWith, SignZeroReport, VerificationReport
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.end_to_end import EndToEnd, OutputCheck
from bnn_compiler.verification.exact_sums import with_exact_sums
from bnn_compiler.verification.inner_tensors import FlipCheck, InnerTensors, Runnable
from bnn_compiler.verification.layer_check import LayerCheck
from bnn_compiler.verification.own_model import OwnComparison, OwnModel, compare_by_kind
from bnn_compiler.verification.referee import Ruling
from bnn_compiler.verification.reference import Array, Feeds, Reference, pads_of, take_zero_as_plus_one
from bnn_compiler.verification.sample_inputs import Kind, Sample, number_of_inputs, sample_inputs
from bnn_compiler.verification.sign_zeros import count_sign_zeros, may_be_common


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
    skipped: tuple[str, ...] = ()
    """Binary layers that could only be compared as parts of the network: their tensors have no names in the model."""
    compared_with: ComparedWith = "model"
    """What ``outputs`` are judged by."""
    own: OwnComparison | None = None
    """Beside the model as the user gave it; None where none was given."""
    sign_zeros: Mapping[str, float] = field(default_factory=dict)
    """Tensors whose Sign was compiled as +1 at zero, with the share of zeros in them, where that is no accident."""
    ruling: Ruling | None = None
    """What float64 says of differences; None where it was not asked."""

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
        if self.ruling is not None:
            return self.ruling.wrong
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
        undecided = self.undecided if self.ruling is None else None
        if undecided is not None:
            raise VerificationError(
                f"verification failed: {self.failure}; in ONNX Runtime the values that layer {undecided.layer!r} sees "
                "otherwise lie within rounding of its thresholds, where the order of a float sum decides and neither "
                "result is wrong, as in networks without trained weights; trained weights go around it, and so does "
                "--no-verify where the outputs are not needed to agree"
            )
        if (
            self.ruling is None
            and not self.flips
            and not self.integer_only
            and all(layer.passed for layer in self.layers)
        ):
            cause = "values within rounding of a threshold may be the cause, or a bug of the compiler: please report it"
        else:
            cause = "this is a bug of the compiler, please report it"
        if any(layer.first is not None and math.isnan(layer.first[2]) for layer in self.layers):
            cause = (
                "ONNX Runtime has NaN there, which a bit cannot hold, on inputs of both signs; where the network is "
                "never given such inputs, nothing is wrong"
            )
        raise VerificationError(
            f"verification failed: {self.failure}; {cause} (--algorithm float or --no-verify go around it)"
        )

    def to_report(self, target: str = "native") -> VerificationReport:
        """Return the ``verification`` entry of the report; ``target`` is what the code that ran was built for."""
        return {
            "passed": self.passed,
            "seed": self.seed,
            "inputs": self.inputs,
            "integer_only": self.integer_only,
            "exact_sums": self.compared_with == "exact_sums",
            "sign_flips": self.sign_flips,
            "reference_sign_flips": self.reference_sign_flips,
            "layers": [layer.to_report() for layer in self.layers],
            "layers_not_compared": list(self.skipped),
            "outputs": [output.to_report() for output in self.outputs],
            "compared_with": self.compared_with,
            "own_model": None if self.own is None else self.own.to_report(),
            "sign_zeros": [SignZeroReport(tensor=name, share=share) for name, share in self.sign_zeros.items()],
            "decided_in_float64": None if self.ruling is None else self.ruling.decided,
            "target": target,
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
    checked: Collection[str] = (),
    float_layers: int = 0,
    exact_sums: bool = False,
    without: Collection[Kind] = (),
    progress: Callable[[float], None] = lambda _: None,
) -> VerificationResult:
    """Compare ``compiled`` with ONNX Runtime; the result says whether they agree, nothing is raised for that.

    ``feeds`` replaces the seeded inputs of :func:`.sample_inputs`. ``original`` is the model as the user gave it (same
    inputs and outputs as ``imported.onnx_model``): end to end it is the reference, so that the front end is verified
    too. Where ONNX Runtime cannot load it (custom operators that the front end expressed in ONNX), ``imported`` stands
    in; and where it computes in half precision and that shows: roundings that the compiled network leaves out move
    values across thresholds, as far from them as 2^-11.
    ``zero_as_plus_one`` names the tensors whose ``Sign`` was compiled with Sign(0) = +1. ``checked``
    names those for which that holds on inputs that leave no zero in them; the layers alone, and the activations that
    the artifact shows, are of that form on every input. ``float_layers`` is the
    number of layers that are neither binary nor binary-weight. ``exact_sums`` takes the imported network with the
    sums of its binary layers exact (:mod:`bnn_compiler.verification.exact_sums`) for the reference. ``without`` are
    kinds of unusual inputs that are left out.

    Raises:
        ModelError: ONNX Runtime cannot run the network.
    """
    count = number_of_inputs(imported.inputs, without) if feeds is None else len(feeds)

    def samples() -> Iterable[Sample]:
        if feeds is not None:
            return (Sample("ordinary", feed) for feed in feeds)
        return sample_inputs(imported.inputs, seed, without)

    whole = take_zero_as_plus_one(imported.onnx_model, zero_as_plus_one)
    model = take_zero_as_plus_one(whole, checked)
    if exact_sums:
        whole, model = (with_exact_sums(each, [layer.name for layer in layers]) for each in (whole, model))
    padded = pads_of(model, zero_as_plus_one)
    inner = InnerTensors(compiled, model, layers, [*zero_as_plus_one, *padded.values()])
    plus = [name for name in dict.fromkeys(zero_as_plus_one) if name in inner.observed]
    own = OwnModel(original, imported.onnx_model)
    integers = float_layers == 0 and bool(layers) and all(layer.exact for layer in layers)
    beside_own = EndToEnd(integers)
    checks: tuple[LayerCheck, ...] = ()
    reference_flips = 0
    flips: list[tuple[FlipCheck, ...]] = []
    kinds: list[Kind] = []
    zeros = False
    for index, sample in enumerate(samples()):
        # One at a time: inputs can be large.
        values = inner.reference_values(sample.feed)
        reference_flips += inner.reference_flips(sample.feed, values)
        flips += inner.flips(sample.feed, values)
        zeros = zeros or may_be_common(sample, [values[padded.get(name, name)] for name in plus])
        if index == 0:
            # One input per layer: it already is thousands of independent dot products.
            checks = inner.check_layers(values)
        beside_own.add(compiled.run(sample.feed), own.reference.run(sample.feed), values, sample.kind)
        kinds.append(sample.kind)
        progress((index + 1) / count)
    found = VerificationResult(
        seed, count, beside_own.integer_only, checks, beside_own.outputs(), reference_flips, tuple(flips),
        skipped=inner.skipped, compared_with=own.name, own=compare_by_kind(own, beside_own, kinds),
        sign_zeros=count_sign_zeros(imported.onnx_model, plus, samples()) if zeros else {},
    )  # fmt: skip
    other = _other_reference(whole, original, zero_as_plus_one, exact_sums=exact_sums)
    if other is None or (found.passed and not exact_sums):
        return found
    name, reference = other
    judged = EndToEnd(integers)
    for sample in samples():
        values = inner.reference_values(sample.feed)
        judged.add(compiled.run(sample.feed), reference(sample.feed), values, sample.kind)
    return replace(found, integer_only=judged.integer_only, outputs=judged.outputs(), compared_with=name)


def _other_reference(
    model: ModelProto, original: ModelProto | None, zero_as_plus_one: Collection[str], *, exact_sums: bool
) -> tuple[ComparedWith, Callable[[Feeds], dict[str, Array]]] | None:
    """What may decide instead of the user's own model; None where there is no reason for another reference."""
    if exact_sums:
        # Optimised, the scales would become parts of the weights again.
        return "exact_sums", Reference(model, optimise=False).run
    if original is not None and uses_half_precision(original):
        return "single_precision", Reference(model).run
    if not zero_as_plus_one:
        return None
    if original is not None:
        signs = {node.input[0] for node in original.graph.node if node.op_type == "Sign"}
        # A Sign that the front end found elsewhere (in a function, behind another name) cannot be adjusted here.
        if signs.issuperset(zero_as_plus_one):
            with contextlib.suppress(ModelError):
                return "sign_zero_plus", Reference(take_zero_as_plus_one(original, zero_as_plus_one)).run
    return "sign_zero_plus", Reference(model).run
