"""All of ONNX's backend test suite: ``python -m tests.backend_suite.sweep``; ``--write`` refreshes the documentation.

Each case is judged in a process that may crash. A finding is one line; ``--status FILE`` writes all that is not right,
by operator. The exit status is 1 where a case is wrong or an internal error.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from onnx import ModelProto

from .cases import Case, load_cases, operator_of
from .judge import Verdict, judge_isolated, make_worker
from .table import render_status, render_table, write_table


def judge_all(cases: list[Case], processes: int) -> dict[str, Verdict]:
    """The verdicts by name."""
    shares = [cases[index::processes] for index in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        return {name: verdict for part in pool.map(_judge_share, shares) for name, verdict in part.items()}


def _judge_share(cases: list[Case]) -> dict[str, Verdict]:
    verdicts = {}
    with make_worker() as worker:
        for index, case in enumerate(cases):
            verdict = verdicts[case.name] = judge_isolated(worker, case)
            if verdict.outcome in ("wrong", "internal"):
                operator = operator_of(ModelProto.FromString(case.model))
                print(f"{case.name} ({operator}): {verdict.outcome}: {verdict.detail[:300]}", flush=True)
            if index % 100 == 99:
                print(f"{index + 1} of {len(cases)}", file=sys.stderr, flush=True)
    return verdicts


def main() -> int:
    """Run the suite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", help="names of cases, with * (default: all)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into docs/front-end.md")
    parser.add_argument("--status", type=Path, help="write what is not right to this file")
    options = parser.parse_args()
    chosen = [
        case
        for case in load_cases()
        if not options.patterns or any(fnmatch.fnmatch(case.name, pattern) for pattern in options.patterns)
    ]
    verdicts = judge_all([case for case in chosen if not case.scope], options.processes)
    print(render_table(chosen, verdicts))
    if options.status is not None:
        options.status.write_text(render_status(chosen, verdicts))
    if options.write:
        write_table(chosen, verdicts)
    return 1 if any(verdict.outcome in ("wrong", "internal") for verdict in verdicts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
