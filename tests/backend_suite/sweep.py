"""All of ONNX's backend test suite: ``python -m tests.backend_suite.sweep``; ``--write`` refreshes the documentation.

Each case is judged in a process that may crash. A finding is one line; ``--status FILE`` writes all that is not right,
by operator. With ``--log FILE`` verdicts are noted as they come, and those noted before are taken from it: a sweep that
was cut off goes on. The exit status is 1 where a case is wrong or an internal error.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from onnx import ModelProto

from .cases import Case, load_cases, operator_of
from .judge import Verdict, judge_isolated, make_worker
from .table import render_status, render_table, write_table


def judge_all(cases: list[Case], processes: int, log: Path | None) -> dict[str, Verdict]:
    """The verdicts by name."""
    known = read_log(log) if log is not None and log.exists() else {}
    left = [case for case in cases if case.name not in known]
    shares = [left[index::processes] for index in range(processes)]
    lock = threading.Lock()

    def judge_share(share: list[Case]) -> dict[str, Verdict]:
        verdicts = {}
        with make_worker() as worker:
            for index, case in enumerate(share):
                verdict = verdicts[case.name] = judge_isolated(worker, case)
                with lock:
                    note(case, verdict, log)
                if index % 100 == 99:
                    print(f"{index + 1} of {len(share)}", file=sys.stderr, flush=True)
        return verdicts

    with ThreadPoolExecutor(processes) as pool:
        found = {name: verdict for part in pool.map(judge_share, shares) for name, verdict in part.items()}
    return {case.name: known[case.name] if case.name in known else found[case.name] for case in cases}


def note(case: Case, verdict: Verdict, log: Path | None) -> None:
    """Print a finding, and write the verdict to the log."""
    if verdict.outcome in ("wrong", "internal"):
        operator = operator_of(ModelProto.FromString(case.model))
        print(f"{case.name} ({operator}): {verdict.outcome}: {verdict.detail[:300]}", flush=True)
    if log is not None:
        with log.open("a") as file:
            file.write(json.dumps({"name": case.name, **asdict(verdict)}) + "\n")


def read_log(log: Path) -> dict[str, Verdict]:
    """The verdicts of a log by name; the last one counts."""
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return {entry.pop("name"): Verdict(**entry) for entry in entries}


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names of cases, with * (default: all)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into docs/front-end.md")
    parser.add_argument("--log", type=Path, help="note verdicts here, and take those that it holds")
    parser.add_argument("--status", type=Path, help="write what is not right to this file")
    options = parser.parse_args()
    chosen = [
        case
        for case in load_cases()
        if not options.patterns or any(fnmatch.fnmatch(case.name, pattern) for pattern in options.patterns)
    ]
    verdicts = judge_all([case for case in chosen if not case.scope], options.processes, options.log)
    print(render_table(chosen, verdicts))
    if options.status is not None:
        options.status.write_text(render_status(chosen, verdicts))
    if options.write:
        write_table(chosen, verdicts)
    return 1 if any(verdict.outcome in ("wrong", "internal") for verdict in verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
