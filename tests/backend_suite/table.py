"""The table of the suite in ``docs/front-end.md``, and the list of all cases that are not right."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from onnx import ModelProto

from tests.conftest import ROOT

from .cases import Case, operator_of
from .judge import Verdict

PAGE = ROOT / "docs" / "front-end.md"
BEGIN, END = "<!-- backend suite: begin -->", "<!-- backend suite: end -->"


def render_table(cases: Sequence[Case], verdicts: Mapping[str, Verdict]) -> str:
    """Counts by outcome, with what ONNX Runtime makes of the same cases."""
    judged = [verdicts[case.name] for case in cases if case.name in verdicts]
    rows = [
        ("right", [v for v in judged if v.outcome == "right" and not v.frozen]),
        ("right where all inputs but the data are constants", [v for v in judged if v.outcome == "right" and v.frozen]),
        ("refused, the operator or the tensor named", [v for v in judged if v.outcome == "refused"]),
        ("wrong", [v for v in judged if v.outcome == "wrong"]),
        ("internal error", [v for v in judged if v.outcome == "internal"]),
    ]
    lines = [
        "| | cases | ONNX Runtime gives the stored results | other results | cannot run it |",
        "|---|---|---|---|---|",
    ]
    for title, found in [*rows, ("all in scope", judged)]:
        by_reference = Counter(verdict.reference for verdict in found)
        counts = [by_reference[key] for key in ("right", "differs", "cannot run")]
        lines.append(f"| {title} | {len(found)} | {' | '.join(map(str, counts))} |")
    left_out = Counter(case.scope for case in cases if case.scope)
    if left_out:
        listing = ", ".join(f"{count} {scope}" for scope, count in sorted(left_out.items()))
        lines += ["", f"Out of scope: {left_out.total()} cases ({listing})."]
    return "\n".join(lines)


def render_refused(cases: Sequence[Case], verdicts: Mapping[str, Verdict]) -> str:
    """The operators of refused cases that ONNX Runtime does run, with the number of cases."""
    counts = Counter(
        operator_of(ModelProto.FromString(case.model))
        for case in cases
        if case.name in verdicts
        and verdicts[case.name].outcome == "refused"
        and verdicts[case.name].reference == "right"
    )
    return ", ".join(f"`{operator}` {count}" for operator, count in sorted(counts.items()))


def write_table(cases: Sequence[Case], verdicts: Mapping[str, Verdict]) -> None:
    """Replace the table in the documentation."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    refused = f"Refused, though ONNX Runtime gives the stored results: {render_refused(cases, verdicts)}."
    block = f"{render_table(cases, verdicts)}\n\n{textwrap.fill(refused, 120)}"
    PAGE.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def render_status(cases: Sequence[Case], verdicts: Mapping[str, Verdict]) -> str:
    """What is not right, by outcome and operator."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for case in cases:
        verdict = verdicts.get(case.name)
        if verdict is None or verdict.outcome == "right":
            continue
        operator = operator_of(ModelProto.FromString(case.model))
        line = f"  {case.name} [ORT: {verdict.reference}]{' frozen' if verdict.frozen else ''} {verdict.detail[:260]}"
        groups[(verdict.outcome, operator)].append(line)
    order = ("wrong", "internal", "refused")
    keys = sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
    return "\n".join(
        line for key in keys for line in (f"{key[0]}: {key[1]} ({len(groups[key])})", *sorted(groups[key]))
    )
