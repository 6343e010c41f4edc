"""Compile one case and say what came of it; runs in a process that may crash."""

from __future__ import annotations

import json
import os
import re
import time
import traceback
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from bnn_compiler import BnncError, compile_model
from bnn_compiler.errors import VerificationError
from bnn_compiler.frontend.custom_operators import CUSTOM_LOWERINGS

from .generate import Case, Options
from .judge import Judge, Verdict
from .one_node import Array, RejectedNodeError
from .plus import sets_of_plus, with_plus
from .prepare import case_of, runs

FEW = ("nan", "infinite", "huge", "denormal")
"""Inputs on which the compiler promises less; what goes wrong on these alone is a kind of its own."""

_STOCK = frozenset(schema.name for schema in onnx.defs.get_all_schemas())
_OPERATORS = _STOCK | {op for domain in CUSTOM_LOWERINGS.values() for op in domain}
_OBSCURE = re.compile(r"Traceback|InternalError|Check failed|TVMError|0x[0-9a-f]{6}|\n")


@dataclass(frozen=True)
class Result:
    """``status`` is clean, rounding, refused, skipped or finding. ``kind`` says more: the operator that was refused, or
    what kind of finding; ``detail`` is a line for people, ``cause`` what stays the same while a finding is shrunk.
    ``seconds`` are those of the processor."""

    status: str
    kind: str = ""
    detail: str = ""
    cause: str = ""
    seconds: float = 0.0

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_text(text: str) -> Result:
        """The opposite."""
        return Result(**json.loads(text))


def check_bytes(payload: bytes) -> str:
    """For ``IsolatedWorker``: a pickled case, or a dictionary with the arguments of ``random_case``, to a result."""
    start = time.process_time()
    result = check_case(case_of(payload))
    return replace(result, seconds=time.process_time() - start).to_text()


def check_case(case: Case) -> Result:
    """Compile, run and judge."""
    reference = onnx.load_from_string(case.reference)
    # ONNX Runtime has no operators of other domains: their definitions in standard ones stand for them.
    try:
        judge = Judge(reference)
        feeds = {kind: feed for kind, feed in case.feeds.items() if runs(judge, feed)}
    except RejectedNodeError as error:
        return Result("skipped", "ONNX Runtime", _line(error))
    if not feeds:
        return Result("skipped", "ONNX Runtime", "no input runs")
    try:
        compiled = _compile(case, feeds)
    except VerificationError as error:
        return _judge_refusal(case, judge, feeds, error)
    except BnncError as error:
        return _judge_message(error)
    except Exception as error:
        return _internal("compile", error)
    return _judge_network(compiled, case.options, judge, reference, feeds)


def _compile(case: Case, feeds: dict[str, dict[str, Array]], *, verify: bool = True) -> Any:
    options = case.options
    extra: dict[str, Any] = {} if options.sign_zero is None else {"sign_zero": options.sign_zero}
    feed = next(iter(feeds.values()))
    graph = onnx.load_from_string(case.model).graph
    open_inputs = {
        entry.name: feed[entry.name].shape
        for entry in graph.input
        if any(dim.dim_param for dim in entry.type.tensor_type.shape.dim)
    }
    return compile_model(
        case.model,
        target=options.target,
        algorithm=options.algorithm,
        input_shapes=open_inputs or None,
        verify=verify,
        **extra,
    )


def _judge_network(
    compiled: Any, options: Options, judge: Judge, reference: onnx.ModelProto, feeds: dict[str, dict[str, Array]]
) -> Result:
    """Every input; findings on ordinary ones before findings on others."""
    report = compiled.report
    noted = {note["node"] for note in report["notes"] if note["code"] == "sign_zero_taken_as_plus_one"}
    if noted and options.sign_zero == "exact":
        return Result("finding", "zero taken as +1", f"notes {sorted(noted)} with sign_zero='exact'", "exact")
    # A bit cannot hold NaN (README.md).
    bits = frozenset(layer["name"] for layer in report["layers"] if layer["algorithm"] != "float")
    judges = [judge]
    judges += [Judge(with_plus(reference, names)) for names in sets_of_plus(reference, noted)]
    found: list[tuple[str, Verdict]] = []
    rounding = 0
    for kind, feed in feeds.items():
        try:
            actual = _run(compiled, feed, options.threads)
        except Exception as error:
            return _internal("run", error)
        # What is taken as +1 by default must be right for ONNX's zero wherever zeros do not come of underflow alone.
        of_kind = judges if kind in FEW or options.sign_zero == "plus" else [judge]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                verdict = _best_verdict(of_kind, actual, feed, bits)
        except RejectedNodeError:
            continue
        rounding += verdict.rounding
        if verdict.wrong:
            found.append((kind, verdict))
    if found:
        kinds = [kind for kind, _ in found]
        ordinary = [kind for kind in kinds if kind not in FEW]
        name = "wrong" if ordinary else f"wrong on {kinds[0]}"
        if ordinary and judge.meets_nan(feeds[ordinary[0]]):
            name = "wrong where NaN arises"
        if noted and options.sign_zero is None and name == "wrong":
            said = not (report["verification"] or {}).get("own_model", {}).get("agrees", True)
            name = "differs with Sign(0) = +1, and says so" if said else "wrong with Sign(0) = +1"
        detail = f"{', '.join(kinds)}: {'; '.join(found[0][1].wrong)}"
        return Result("finding", name, detail, "")
    return Result("rounding" if rounding else "clean")


def _best_verdict(
    judges: Sequence[Judge], actual: dict[str, Array], feed: dict[str, Array], bits: frozenset[str]
) -> Verdict:
    """That of the first judge who finds nothing wrong, or who finds least."""
    best: Verdict | None = None
    for judge in judges:
        verdict = judge.judge(actual, feed, bits)
        if best is None or len(verdict.wrong) < len(best.wrong):
            best = verdict
        if not best.wrong:
            break
    assert best is not None
    return best


def _run(compiled: Any, feed: dict[str, Array], threads: int) -> dict[str, Array]:
    """In one thread for each number of them: a thread keeps the pool of its first run, for as long as the process."""
    compiled.model.set_num_threads(threads)
    if threads == 1:
        return dict(compiled.run(feed))
    if threads not in _CALLERS:
        _CALLERS[threads] = ThreadPoolExecutor(1)
    return dict(_CALLERS[threads].submit(compiled.run, feed).result())


_CALLERS: dict[int, ThreadPoolExecutor] = {}
"""By number of threads: TVM never ends a pool, and its workers spin."""


def _judge_refusal(case: Case, judge: Judge, feeds: dict[str, dict[str, Array]], error: BnncError) -> Result:
    """Verification refused: is the network wrong, is it right, or does rounding decide?"""
    message = _line(error)
    cause = re.sub(r"'[^']*'|[-\d.e+]*\d", "*", message)[:60]
    try:
        result = _judge_network(
            _compile(case, feeds, verify=False), case.options, judge, onnx.load_from_string(case.reference), feeds
        )
    except Exception as inner:
        return _internal("compile without verification", inner)
    if result.status == "finding" and result.kind.startswith("wrong"):
        where = result.kind.removeprefix("wrong")
        return Result("finding", f"verification refuses a wrong network{where}", f"{message} | {result.detail}", cause)
    if "neither result is wrong" in message:
        return Result("refused", "rounding decides", message)
    kind = "verification refuses what rounding decides" if result.status == "rounding" else "verification refuses"
    return Result("finding", kind, message, cause)


def _judge_message(error: BnncError) -> Result:
    message = str(error)
    named = [word for word in re.findall(r"[A-Za-z0-9]+", message) if word in _OPERATORS]
    cause = re.sub(r"'[^']*'|\d+", "*", message)[:60]
    if _OBSCURE.search(message):
        return Result("finding", "obscure refusal", _line(error), cause)
    if not named and message.startswith(("model: input ", "input ")):
        return Result("refused", "an input", _line(error))
    if not named:
        return Result("finding", "refusal without an operator", _line(error), cause)
    return Result("refused", named[0], _line(error))


def _internal(stage: str, error: BaseException) -> Result:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "bnn_compiler" in frame.filename] or list(frames)
    text = _line(error)
    where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].name}" if ours else ""  # noqa: PTH119
    cause = f"{type(error).__name__} in {where}"
    return Result("finding", "internal error", f"{stage}: {cause}: {text}", cause)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
