"""Verification as a compilation runs it: by the user's own model, and where that cannot decide, by others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.shape_inference import infer_shapes

from bnn_compiler.errors import ModelError
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.verification.inner_tensors import Runnable
from bnn_compiler.verification.referee import Referee, Ruling
from bnn_compiler.verification.reference import Reference, expose, take_zero_as_plus_one
from bnn_compiler.verification.sample_inputs import Kind, Sample, sample_inputs
from bnn_compiler.verification.sign_zeros import SeesZeros
from bnn_compiler.verification.verify import Network, VerificationResult, verify_model

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def verify_network(
    compiled: Runnable,
    imported: Network,
    layers: Sequence[BinaryLayer],
    *,
    original: ModelProto | None,
    zero_as_plus_one: Collection[str],
    checked: Collection[str] = (),
    float_layers: int,
    progress: Callable[[float], None] = lambda _: None,
) -> VerificationResult:
    """Verify ``compiled``; the parameters are those of :func:`.verify_model`.

    1. Unusual inputs (zeros, integers) on which NaN or infinity arises inside the network do not count where it fails:
       zeros make 0 / 0 of many a normalisation, and a bit cannot hold NaN.
    2. What fails is tried with exact sums where layers have scales.
    3. If that fails, too, an evaluation in float64 decides, unless a layer alone is wrong
       (:mod:`bnn_compiler.verification.referee`).

    Raises:
        ModelError: ONNX Runtime cannot run the network.
    """

    without: list[Kind] = []

    def attempt(*, exact_sums: bool = False) -> VerificationResult:
        return verify_model(
            compiled, imported, layers, original=original, zero_as_plus_one=zero_as_plus_one, checked=checked,
            float_layers=float_layers, exact_sums=exact_sums, without=without, progress=progress,
        )  # fmt: skip

    result = attempt()
    if not result.passed:
        without += _kinds_without_numbers(imported)
        result = attempt() if without else result
    if not result.passed and not all(layer.exact for layer in layers):
        exact = attempt(exact_sums=True)
        result = exact if exact.passed else result
    if not result.passed and all(layer.passed for layer in result.layers):
        samples = sample_inputs(imported.inputs, 0, without)
        with contextlib.suppress(ModelError):  # float64 could not be had: the result says so
            result = replace(
                result, ruling=_ruling(compiled, imported.onnx_model, layers, samples, zero_as_plus_one, checked)
            )
    return result


def _ruling(
    compiled: Runnable,
    model: ModelProto,
    layers: Sequence[BinaryLayer],
    samples: Iterable[Sample],
    zero_as_plus_one: Collection[str],
    checked: Collection[str],
) -> Ruling:
    """Of all inputs: what was decided, and the first that is wrong."""
    measured = Referee(compiled, take_zero_as_plus_one(model, [*zero_as_plus_one, *checked]), layers)
    # The form of the network that keeps zeros does not show its bits.
    exact = Referee(compiled, take_zero_as_plus_one(model, zero_as_plus_one), []) if checked else measured
    sees_zeros = SeesZeros(model, checked)
    decided = 0
    for sample in samples:
        ruling = (exact if sees_zeros(sample.feed) else measured).judge(sample.feed)
        decided += ruling.decided
        if ruling.wrong is not None:
            return Ruling(decided, ruling.wrong)
    return Ruling(decided)


def _kinds_without_numbers(network: Network, seed: int = 0) -> list[Kind]:
    """The kinds of unusual inputs on which some tensor of the network holds NaN or infinity in ONNX Runtime."""
    samples = [sample for sample in sample_inputs(network.inputs, seed) if not sample.ordinary]
    if not samples:
        return []
    model = infer_shapes(network.onnx_model)
    floats = [info.name for info in model.graph.value_info if info.type.tensor_type.elem_type in _FLOATS]
    reference = Reference(expose(model, floats), optimise=False)
    found = []
    for sample in samples:
        values = (value for value in reference.run(sample.feed).values() if value.dtype.kind == "f")
        if not all(np.isfinite(value).all() for value in values):
            found.append(sample.kind)
    return found
