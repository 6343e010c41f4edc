"""What becomes of one case: compiled and run, beside ONNX Runtime on the same file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from bnn_compiler import compile_model
from bnn_compiler.errors import BnncError, VerificationError
from bnn_compiler.verification.reference import Reference
from tests.isolation import IsolatedWorker

from .cases import Case

TIME_LIMIT = 300.0
MEMORY_LIMIT = 8 << 30

_Arrays = Sequence[np.ndarray[Any, Any]]

_LEAKED = re.compile(r"\b(KeyError|TypeError|AttributeError|IndexError|AssertionError|InternalError|TVMError): ")
"""A refusal that passes on what went wrong inside says nothing to a user."""

_ABOUT_THE_MODEL = ("the ONNX operator set", "the model has no inputs", "none of the model's outputs")
"""Refusals that are of no single operator."""

_BUG = "this is a bug of the compiler"


@dataclass(frozen=True)
class Verdict:
    """``outcome`` is ``right``, ``refused``, ``wrong`` or ``internal``, and ``detail`` the message behind it.

    ``frozen`` says that the file as it is was refused, and that the outcome is that of the same graph with all inputs
    but the data as constants: most cases of the suite pass shapes, axes and bounds as inputs, where networks have
    constants. ``reference`` is what ONNX Runtime gives: ``right``, ``differs`` (from the stored results; then either
    are right of ours), or ``cannot run``.
    """

    outcome: str
    detail: str = ""
    reference: str = "right"
    frozen: bool = False


def judge_isolated(worker: IsolatedWorker, case: Case) -> Verdict:
    """Judge a case in a process that may crash."""
    answer = worker.run(case.to_payload())
    return Verdict(**json.loads(answer.text)) if answer.survived else Verdict("internal", answer.fate, "unknown")


def make_worker() -> IsolatedWorker:
    """A worker for :func:`judge_isolated`."""
    return IsolatedWorker("tests.backend_suite.judge:answer", time_limit=TIME_LIMIT, memory_limit=MEMORY_LIMIT)


def answer(payload: bytes) -> str:
    """In the worker."""
    return json.dumps(asdict(judge(Case.from_payload(payload))))


def judge(case: Case) -> Verdict:
    """Compile and run a case."""
    model, feeds, expected = ModelProto.FromString(case.model), case.feeds(), case.expected()
    theirs = _reference(model, feeds)
    differs = theirs is not None and _difference(theirs, expected, case)
    reference = "cannot run" if theirs is None else "differs" if differs else "right"
    # Where ONNX Runtime gives other results than the stored ones, either are right.
    wanted = [expected] if theirs is None else [expected, theirs]
    outcome, detail = _outcome(model, feeds, wanted, case)
    if outcome != "refused":
        return Verdict(outcome, detail, reference)
    kept = _data_input(feeds)
    frozen = freeze_inputs(model, feeds, kept)
    if kept is None or frozen is None:
        return Verdict(outcome, detail, reference)
    again, cause = _outcome(frozen, [feeds[kept]], wanted, case)
    if again == "refused":
        return Verdict(outcome, detail, reference)
    return Verdict(again, cause or detail, reference, frozen=True)


def freeze_inputs(model: ModelProto, feeds: _Arrays, kept: int | None) -> ModelProto | None:
    """The model with all inputs but one as constants; ``None`` where it has no others."""
    if kept is None or len(feeds) < 2:
        return None
    frozen = ModelProto()
    frozen.CopyFrom(model)
    frozen.ir_version = max(model.ir_version, 4)  # before it, constants were inputs, too
    names = [info.name for info in model.graph.input]
    del frozen.graph.input[:]
    frozen.graph.input.append(model.graph.input[kept])
    for index, array in enumerate(feeds):
        if index != kept:
            frozen.graph.initializer.append(numpy_helper.from_array(array, names[index]))
    return frozen


def _data_input(feeds: _Arrays) -> int | None:
    """The input that is data: the largest float of more than one element, or else the largest."""
    order = sorted(
        range(len(feeds)), key=lambda i: (feeds[i].dtype.kind == "f" and feeds[i].size > 1, feeds[i].size, -i)
    )
    return order[-1] if order else None


def _outcome(model: ModelProto, feeds: _Arrays, wanted: Sequence[_Arrays], case: Case) -> tuple[str, str]:
    names = [info.name for info in model.graph.input]
    border = (*model.graph.input, *model.graph.output, *model.graph.initializer)
    tensors = {entry.name for entry in border}
    try:
        compiled = compile_model(model)
        results = compiled.run(dict(zip(names, feeds, strict=True)))
    except VerificationError as error:
        return "wrong", str(error)
    except BnncError as error:
        text = str(error)
        named = any(node.op_type in text for node in model.graph.node) or any(repr(name) in text for name in tensors)
        named = named or any(whole in text for whole in _ABOUT_THE_MODEL)
        if _LEAKED.search(text) or _BUG in text:
            return "internal", text
        return ("refused", text) if named else ("internal", f"names no operator: {text}")
    except Exception as error:  # whatever is raised is a finding
        return "internal", f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    arrays = [results[info.name] for info in model.graph.output]
    differences = [_difference(arrays, each, case) for each in wanted]
    return ("wrong", differences[0]) if all(differences) else ("right", "")


def _reference(model: ModelProto, feeds: _Arrays) -> _Arrays | None:
    """ONNX Runtime's results, where it has any."""
    try:
        results = Reference(model).run({info.name: feed for info, feed in zip(model.graph.input, feeds, strict=True)})
    except BnncError:
        return None
    return [results[info.name] for info in model.graph.output]


def _difference(results: _Arrays, expected: _Arrays, case: Case) -> str:
    """The first difference beyond the suite's own tolerances, or nothing."""
    for index, (actual, wanted) in enumerate(zip(results, expected, strict=True)):
        if actual.shape != wanted.shape or actual.dtype != wanted.dtype:
            return f"output {index} is {actual.dtype}{list(actual.shape)}, not {wanted.dtype}{list(wanted.shape)}"
        if wanted.dtype.kind not in "fc":
            bad = actual != wanted
        else:
            left, right = actual.astype(np.float64), wanted.astype(np.float64)
            rtol, atol = _tolerances(right, wanted.dtype, case)
            bad = ~np.isclose(left, right, rtol=rtol, atol=atol, equal_nan=True)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            return (
                f"output {index}: {int(bad.sum())} of {bad.size} differ; at {list(at)} {actual[at]}, not {wanted[at]}"
            )
    return ""


def _tolerances(wanted: np.ndarray[Any, Any], dtype: np.dtype[Any], case: Case) -> tuple[float, float]:
    """The suite's own, and what it forgets.

    Sums that cancel are as exact as their largest terms, of which the largest result stands for the size: 2^-20 of it
    are 16 roundings of float32. Results in float16 may differ by two of its roundings of 2^-10, because stored ones
    may be rounded in between.
    """
    finite = np.abs(wanted[np.isfinite(wanted)])
    rounding = 2.0**-20 if dtype == np.float32 else 0.0
    rtol = max(case.rtol, 2.0**-9) if dtype == np.float16 else case.rtol
    return rtol, max(case.atol, rounding * float(finite.max(initial=0.0)))
