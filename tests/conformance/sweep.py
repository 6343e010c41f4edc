"""Run many random graphs: ``python -m tests.conformance.sweep --graphs 1000 --seed 1 --processes 2``.

Graph i of seed S is the same in every run. A finding is shrunk and written to a folder; ``--replay FILE.onnx`` looks at
one again.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.isolation import IsolatedWorker, Outcome

from .check import Result, check_case
from .findings import operators, read_finding, write_finding
from .generate import Case
from .shrink import shrink
from .values import FEEDS

TIME_LIMIT = 300.0
"""Seconds for a graph whose compilation takes a few on a machine that does nothing else."""
MEMORY_LIMIT = 6 << 30
SHRINK_SECONDS = 60.0
ALIKE = 3
"""Findings of one cause that are shrunk; the others are counted."""

TARGETS = ("native", "native", "llvm -mcpu=x86-64", "llvm -mcpu=x86-64-v3")


@dataclass
class Workers:
    """The processes of one thread."""

    check: IsolatedWorker
    prepare: IsolatedWorker

    def result(self, payload: bytes) -> Result:
        """Check one case, and tell a crash of the compiler from one of ONNX Runtime."""
        outcome = self.check.run(payload)
        if outcome.survived:
            return Result.from_text(outcome.text)
        if not self.prepare.run(payload).survived:
            return Result("skipped", "ONNX Runtime", outcome.fate)
        kind = "hang" if "no answer" in outcome.fate else "crash"
        return Result("finding", kind, outcome.fate, outcome.fate)

    def case(self, payload: bytes) -> Case | None:
        """The case of a seed."""
        outcome: Outcome = self.prepare.run(payload)
        return Case.from_bytes(bytes.fromhex(outcome.text)) if outcome.survived else None


@dataclass
class Tally:
    """What came of all graphs."""

    status: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, result: Result) -> bool:
        """Count one; whether to shrink it."""
        self.status[result.status] += 1
        self.seconds += result.seconds
        if result.status == "refused":
            self.refused[result.kind] += 1
        if result.status != "finding":
            return False
        self.findings[result.kind] += 1
        self.causes[result.kind + result.cause] += 1
        return not result.cause or self.causes[result.kind + result.cause] <= ALIKE

    def table(self) -> Table:
        """The closing table."""
        graphs = sum(self.status.values())
        table = Table("", "graphs", "per thousand")

        def row(text: str, count: int) -> None:
            table.add_row(text, str(count), f"{1000 * count / max(graphs, 1):.1f}")

        row("all", graphs)
        row("clean", self.status["clean"])
        row("clean but for what rounding decides", self.status["rounding"])
        row("skipped: ONNX Runtime does not run it", self.status["skipped"])
        row("refused", self.status["refused"])
        for operator, count in self.refused.most_common():
            row(f"  {operator}", count)
        row("findings", self.status["finding"])
        for kind, count in self.findings.most_common():
            row(f"  {kind}", count)
        table.caption = f"{self.seconds / max(graphs, 1):.2f} s of the processor per graph"
        return table


def sweep(args: argparse.Namespace, console: Console) -> Tally:
    """Run all graphs."""
    tally, lock, idle = Tally(), Lock(), Queue[Workers]()
    seed = args.seed
    deadline = time.monotonic() + 60 * args.time_limit if args.time_limit else float("inf")
    with contextlib.ExitStack() as stack:
        for _ in range(args.processes):
            idle.put(stack.enter_context(_workers()))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = stack.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        task = progress.add_task("graphs", total=args.graphs)

        def run(index: int) -> None:
            if time.monotonic() > deadline:
                return
            workers = idle.get()
            try:
                name = f"{seed}:{index}"
                case = {"seed": name, "largest": args.largest, "targets": TARGETS, "kinds": args.inputs.split(",")}
                payload = json.dumps(case).encode()
                result = workers.result(payload)
                with lock:
                    wanted = tally.add(result)
                if result.status == "finding":
                    line = f"{name} {result.kind}: {result.detail}"
                    if wanted and args.findings is not None:
                        line = _write(args, workers, name, payload, result)
                    progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            finally:
                idle.put(workers)
            with lock:
                found = f"graphs, {tally.status['finding']} findings"
                progress.update(task, advance=1, description=found)
                done = sum(tally.status.values())
            if not console.is_terminal and done % 25 == 0:
                console.print(f"{done} of {args.graphs} {found}", highlight=False)

        with ThreadPoolExecutor(args.processes) as threads:
            for future in as_completed([threads.submit(run, args.first + i) for i in range(args.graphs)]):
                future.result()
    return tally


def _write(args: argparse.Namespace, workers: Workers, name: str, payload: bytes, result: Result) -> str:
    """Shrink a finding and write it; the line about it."""
    case = workers.case(payload)
    if case is None:
        return f"{name} {result.kind}: {result.detail}"

    def still(candidate: Case) -> bool:
        other = workers.result(candidate.to_bytes())
        return (other.status, other.kind, other.cause) == (result.status, result.kind, result.cause)

    small = shrink(case, still, seconds=args.shrink_seconds)
    last = workers.result(small.to_bytes())
    if last.status != "finding":  # it depends on what ran before
        last = result
    path = write_finding(args.findings, name, small, last)
    options = " ".join(f"{key}={value}" for key, value in vars(small.options).items())
    return f"{name} | {last.kind} | {operators(small)} | {options} | {last.detail} | {path}"


@contextlib.contextmanager
def _workers() -> Iterator[Workers]:
    def worker(function: str) -> IsolatedWorker:
        return IsolatedWorker(f"tests.conformance.{function}", time_limit=TIME_LIMIT, memory_limit=MEMORY_LIMIT)

    with worker("check:check_bytes") as check, worker("prepare:prepare_bytes") as prepare:
        yield Workers(check, prepare)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 if there are findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=300)
    parser.add_argument("--seed", default="0", help="any text; --seed-by-date takes today's date")
    parser.add_argument("--seed-by-date", action="store_true")
    parser.add_argument("--first", type=int, default=0, help="index of the first graph")
    parser.add_argument("--largest", type=int, default=30, help="nodes of a graph, about")
    parser.add_argument("--inputs", default=",".join(FEEDS), help="kinds of inputs (default: all)")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--time-limit", type=float, default=0, help="minutes")
    parser.add_argument("--findings", type=Path, help="folder for shrunk models")
    parser.add_argument("--shrink-seconds", type=float, default=SHRINK_SECONDS, help="per finding")
    parser.add_argument("--replay", type=Path, nargs="*", default=[], help="models of a findings folder")
    args = parser.parse_args(arguments)
    console = Console()
    if args.replay:
        results = [check_case(read_finding(path)) for path in args.replay]
        for path, result in zip(args.replay, results, strict=True):
            console.print(f"{path.name} {result}", markup=False, highlight=False, soft_wrap=True)
        return int(any(result.status == "finding" for result in results))
    if args.seed_by_date:
        args.seed = datetime.date.today().isoformat()
    tally = sweep(args, console)
    console.print(tally.table())
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
