"""The stages in order: front end, passes, code generation, verification."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import tvm

from bnn_compiler.build import FormsNotJoinedError, build_library
from bnn_compiler.cache_folder import cache_folder
from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.errors import ModelError, OpenShapeError, TargetError, UsageError
from bnn_compiler.frontend import ImportedModel, import_onnx
from bnn_compiler.frontend.model_file import load_model
from bnn_compiler.interrupts import interrupts_kept
from bnn_compiler.kernels.bitsliced_layer import TreePlanning
from bnn_compiler.kernels.kernel_choice import ChoiceOptions
from bnn_compiler.kernels.kernel_measurement import Measurement
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.limits import DEFAULT_LIMITS, Limits
from bnn_compiler.module_attributes import LAYERS_ATTRIBUTE, SIGNS_ATTRIBUTE, read_attribute
from bnn_compiler.options import CompileOptions
from bnn_compiler.passes.join_exact_form import has_checked_signs, join_exact_form
from bnn_compiler.pipeline import phases, run_phases
from bnn_compiler.profiling.kernel_table import kernel_table
from bnn_compiler.recognition.sign_zeros import Checked
from bnn_compiler.report import LayerReport, NoteReport, Report, SignReport, VerificationReport, make_report
from bnn_compiler.scratch_folder import scratch_folder
from bnn_compiler.target import CompileTarget, parse_target
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.attempts import verify_network
from bnn_compiler.verification.verify import VerificationResult

Progress = Callable[[str, float], None]
ModelSource = str | os.PathLike[str] | bytes | onnx.ModelProto

INSPECTED_SIZES = (224, 32, 28, 8)
"""Of images: ImageNet's, CIFAR's, MNIST's, and a small one."""

#: Where lowering begins and ends in the fraction of the phases done.
_LOWERING = (0.4, 0.6)
_CHOICES = {"algorithm": ("auto", "popcount", "bitsliced", "float"), "sign_zero": ("auto", "plus", "exact")}


@dataclass(frozen=True)
class LoweredModel:
    """A network after all passes: ready for code generation, and what is known of its layers."""

    module: tvm.IRModule
    layers: tuple[BinaryLayer, ...]
    report: Report


@interrupts_kept()
def compile_model(
    model: ModelSource,
    *,
    target: str = "native",
    algorithm: str = "auto",
    sign_zero: str = "auto",
    max_depth: int = 8,
    measure: bool = False,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    verify: bool = True,
    dump_dir: str | os.PathLike[str] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> CompiledNetwork:
    """Compile an ONNX model (path, bytes or ModelProto) to native code and verify it.

    ``target`` is ``native`` or the text of a TVM LLVM target such as ``llvm -mcpu=cortex-a72``; ``algorithm`` one of
    ``auto``, ``popcount``, ``bitsliced``, ``float``; ``sign_zero`` one of ``auto``, ``plus``, ``exact`` (see
    ``CompileOptions``);
    ``max_depth`` bounds channel trees. ``measure`` chooses each layer's kernels by their times on this machine instead
    of predicted ones; times are remembered, but measured anew they can lead to another library. Code for another kind
    of machine is not run: what is verified is the same network, built for this one. ``input_shapes`` fixes inputs whose
    shapes the model leaves open. ``limits`` bounds the model's size. ``progress`` is called with a stage's name and the
    fraction done.

    Raises:
        BnncError: one of its children, with a one-line message that names the cause and the way out.
    """
    options = _options(target, algorithm, sign_zero, max_depth, input_shapes, verify, dump_dir, limits, measure=measure)
    report_progress = progress or (lambda _stage, _part: None)
    checked = parse_target(options.target)
    if measure and not checked.is_host:
        raise TargetError(f"target {target!r} cannot run on this machine, so its kernels cannot be measured here")
    report_progress("reading the model", 0.0)
    imported = import_onnx(model, input_shapes=options.input_shapes, limits=options.limits)
    if not options.verify:
        compiled, _ = _build(imported, checked, options, report_progress)
    elif checked.is_host:
        compiled, _, found = _build_verified(imported, checked, options, model, report_progress)
        compiled.record(found)
    else:
        # Code for another machine cannot run here; the same passes for this one make code that can.
        host = parse_target("native")
        quiet = replace(options, dump_dir=None)
        _, decided, found = _build_verified(imported, host, quiet, model, _part(report_progress, 0.0, 0.6))
        options = replace(options, exact_signs=decided.exact_signs)
        compiled, _ = _build(imported, checked, options, _part(report_progress, 0.6, 1.0))
        compiled.record(found)
    report_progress("done", 1.0)
    return compiled


def _part(progress: Progress, first: float, last: float) -> Progress:
    """Progress of a part of the work, as progress of all of it."""
    return lambda stage, part: progress(stage, first + (last - first) * part)


def _build_verified(
    imported: ImportedModel, target: CompileTarget, options: CompileOptions, model: ModelSource, progress: Progress
) -> tuple[CompiledNetwork, CompileOptions, VerificationReport]:
    """Build for ``target``, which is this machine, and verify; with the options that were right.

    Where verification sees zeros in front of a ``Sign`` that was taken as ±1, the decision was wrong: it keeps them in
    another build.
    """
    while True:
        compiled, lowered = _build(imported, target, options, progress)
        result = _verify(compiled, load_model(model, options.limits), imported, lowered, progress)
        found = result.sign_zeros.keys() - options.exact_signs
        if options.sign_zero != "auto" or not found:
            result.raise_for_failure()
            return compiled, options, result.to_report(target.text)
        options = replace(options, exact_signs=options.exact_signs | found)


def _build(
    imported: ImportedModel, target: CompileTarget, options: CompileOptions, progress: Progress
) -> tuple[CompiledNetwork, LoweredModel]:
    """Lower an imported model and generate its library.

    Where the network has a form for inputs with zeros, too, and nothing can choose between the two when it runs, or
    verification could not follow, that form is built alone: it is right for all inputs.
    """
    lowered = lower_model(imported, target, options, _part(progress, 0.1, 0.4))
    if not has_checked_signs(lowered.module):
        return _generate(imported, target, lowered, lowered.module, progress), lowered
    quiet = replace(options, dump_dir=None)
    exact = lower_model(imported, target, quiet, _part(progress, 0.25, 0.4), checked="keep")
    if all(entry["input"] is not None for entry in lowered.report["signs"] if entry["zero"] == "checked"):
        joined = join_exact_form(lowered.module, exact.module)
        with contextlib.suppress(FormsNotJoinedError):
            return _generate(imported, target, lowered, joined, progress), lowered
    return _generate(imported, target, exact, exact.module, progress), exact


def _generate(
    imported: ImportedModel, target: CompileTarget, lowered: LoweredModel, module: tvm.IRModule, progress: Progress
) -> CompiledNetwork:
    """Generate the library of ``module``, which is that of ``lowered`` or has another form of the network, too."""
    progress("generating code", 0.4)
    manifest = {
        "model": imported.name,
        "inputs": [_spec_entry(spec) for spec in imported.inputs],
        "outputs": [_spec_entry(spec) for spec in imported.outputs],
        "report": lowered.report,
        "kernels": kernel_table(lowered.module, imported.onnx_model, lowered.report["layers"]),
    }
    with scratch_folder() as directory:
        library = directory / "model.so"
        lowered.report["memory"] = build_library(module, target, manifest, library)
        return CompiledNetwork(library, lowered.report, runs_here=target.is_host)


def lower_model(
    imported: ImportedModel,
    target: CompileTarget,
    options: CompileOptions,
    progress: Progress | None = None,
    *,
    checked: Checked = "ask",
) -> LoweredModel:
    """Run all phases of the pipeline on an imported model."""
    layers: list[BinaryLayer] = []
    choice = _choice(options, target, progress)
    todo = phases(
        target.tvm_target, choice=choice, sign_zero=options.sign_zero, exact_signs=options.exact_signs,
        checked=checked, layers=layers,
    )  # fmt: skip
    with target.tvm_target:
        module = run_phases(imported.module, todo, dump_dir=options.dump_dir, progress=progress)
    return LoweredModel(module, tuple(layers), _report(imported, target, module, options))


@interrupts_kept()
def inspect_model(
    model: ModelSource,
    *,
    target: str = "native",
    algorithm: str = "auto",
    sign_zero: str = "auto",
    max_depth: int = 8,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Report:
    """The report of a model, layer by layer, without generating code.

    What is binary seldom depends on an image's size, so dimensions that the model and ``input_shapes`` leave open are
    taken as the first of ``INSPECTED_SIZES`` that fits the model, with a note in the report.
    """
    options = _options(target, algorithm, sign_zero, max_depth, input_shapes, False, None, limits)
    checked = parse_target(options.target)
    if progress is not None:
        progress("reading the model", 0.0)
    imported = _import_for_inspection(model, options.input_shapes, limits)
    choice = _choice(options, checked, progress)
    todo = phases(checked.tvm_target, choice=choice, sign_zero=options.sign_zero)
    with checked.tvm_target:
        # What comes after lowering changes nothing that the report says.
        lowering = next(index for index, phase in enumerate(todo) if phase.name == "lower")
        module = run_phases(imported.module, todo[: lowering + 1], progress=progress)
    return _report(imported, checked, module, options)


def _import_for_inspection(
    model: ModelSource, input_shapes: Mapping[str, tuple[int, ...]], limits: Limits
) -> ImportedModel:
    try:
        return import_onnx(model, input_shapes=input_shapes, limits=limits)
    except OpenShapeError as error:
        for size in INSPECTED_SIZES:
            with contextlib.suppress(ModelError, OpenShapeError):
                return import_onnx(model, input_shapes=input_shapes, open_dimension=size, limits=limits)
        raise error


def _choice(options: CompileOptions, target: CompileTarget, progress: Progress | None) -> ChoiceOptions:
    planning = TreePlanning(max_depth=options.max_depth, cache=cache_folder("trees"))
    measurement = Measurement(target.tvm_target, cache_folder("measurements")) if options.measure else None

    def layer_progress(index: int, layers: int) -> None:
        if progress is not None:
            what = "measuring" if options.measure else "choosing kernels of"
            first, last = _LOWERING
            progress(f"{what} layer {index + 1} of {layers}", first + (last - first) * index / layers)

    return ChoiceOptions(options.algorithm, planning, measurement, layer_progress)


def _options(
    target: str,
    algorithm: str,
    sign_zero: str,
    max_depth: int,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    verify: bool,
    dump_dir: str | os.PathLike[str] | None,
    limits: Limits,
    *,
    measure: bool = False,
) -> CompileOptions:
    for name, value in (("algorithm", algorithm), ("sign_zero", sign_zero)):
        if value not in _CHOICES[name]:
            raise UsageError(f"{name} {value!r} is none of {', '.join(_CHOICES[name])}")
    if max_depth < 1:
        raise UsageError(f"max_depth must be 1 or more, not {max_depth}")
    return CompileOptions(
        target=target,
        algorithm=algorithm,  # type: ignore[arg-type]
        sign_zero=sign_zero,  # type: ignore[arg-type]
        max_depth=max_depth,
        measure=measure,
        input_shapes=dict(input_shapes or {}),
        verify=verify,
        dump_dir=None if dump_dir is None else Path(dump_dir),
        limits=limits,
    )


def _report(imported: ImportedModel, target: CompileTarget, module: tvm.IRModule, options: CompileOptions) -> Report:
    entries: list[LayerReport] = read_attribute(module, LAYERS_ATTRIBUTE)
    notes: list[NoteReport] = [{"code": "model", "node": "", "detail": note} for note in imported.notes]
    signs: list[SignReport] = read_attribute(module, SIGNS_ATTRIBUTE) or []
    notes += [_sign_note(entry, options) for entry in signs if entry["zero"] != "never"]
    versions = {"bnnc": _version("bnn-compiler"), "tvm": tvm.__version__, "onnx": onnx.__version__}
    return make_report(imported.name, target.text, versions, entries, notes, signs=signs)


def _sign_note(entry: SignReport, options: CompileOptions) -> NoteReport:
    if entry["zero"] == "plus":
        cause = "is an accident of float arithmetic" if entry["source"] is None else f"comes from {entry['source']!r}"
        detail = f"Sign(0) is taken as +1: 0 {cause}"
        return {"code": "sign_zero_taken_as_plus_one", "node": entry["node"], "detail": detail}
    if entry["zero"] == "checked":
        where = f"{entry['input']!r} holds a 0"
        detail = f"Sign(0) stays 0: where {where}, a run takes another form of the network"
        return {"code": "sign_zero_checked", "node": entry["node"], "detail": detail}
    if entry["input"] in options.exact_signs:
        cause = f"verification found 0 to be common in {entry['input']!r}"
    elif entry["source"] is not None:
        cause = f"0 is common in {entry['source']!r}"
    else:
        cause = "as was asked for" if options.sign_zero == "exact" else "the input may hold it"
    return {"code": "sign_zero_kept", "node": entry["node"], "detail": f"Sign(0) stays 0: {cause}"}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _verify(
    compiled: CompiledNetwork,
    original: onnx.ModelProto,
    imported: ImportedModel,
    lowered: LoweredModel,
    progress: Progress,
) -> VerificationResult:
    """Compare ``compiled``, which runs here, with the model as it was given."""
    return verify_network(
        compiled,
        imported,
        lowered.layers,
        original=original,
        zero_as_plus_one=plus_tensors(lowered.report),
        checked=checked_tensors(lowered.report),
        float_layers=sum(entry["status"] == "float" for entry in lowered.report["layers"]),
        progress=lambda part: progress("verifying against ONNX Runtime", 0.6 + 0.4 * part),
    )


def plus_tensors(report: Report) -> list[str]:
    """The tensors whose ``Sign`` gives +1 at zero in the compiled network, where ONNX's gives 0."""
    taken = (entry["input"] for entry in report["signs"] if entry["zero"] == "plus")
    return [name for name in taken if name is not None]


def checked_tensors(report: Report) -> list[str]:
    """The tensors that a run looks for zeros in, whose ``Sign`` gives +1 at zero in the layers that it shows."""
    taken = (entry["input"] for entry in report["signs"] if entry["zero"] == "checked")
    return [name for name in taken if name is not None]


def _spec_entry(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}
