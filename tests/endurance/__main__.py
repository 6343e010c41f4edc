"""Run all trials, and print the table of docs/reliability.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from .guarded_networks import guarded_networks
from .kills import interrupted_compilations, killed_compilations, killed_trainings, killed_trees
from .load_and_run import (
    forks_and_spawns,
    four_processes,
    many_calling_threads,
    many_loads,
    many_runs,
    sixteen_threads,
)
from .trial import Budget, Result

Trial = Callable[[Budget], Result]

#: Their shares of the time.
TRIALS: Mapping[Trial, float] = {
    killed_compilations: 0.28,
    killed_trees: 0.12,
    killed_trainings: 0.12,
    interrupted_compilations: 0.12,
    four_processes: 0.06,
    sixteen_threads: 0.04,
    forks_and_spawns: 0.04,
    many_runs: 0.06,
    many_loads: 0.06,
    many_calling_threads: 0.04,
    guarded_networks: 0.06,
}


def main() -> None:
    """Print a line per trial as it ends, then the table; exit status 1 where anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all trials together, about (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of moments and choices")
    parser.add_argument("--only", default="", metavar="TEXT", help="trials whose names hold this")
    options = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    trials = {trial: share for trial, share in TRIALS.items() if options.only in trial.__name__}
    results = []
    with tempfile.TemporaryDirectory(prefix="endurance-") as folder:
        for trial, share in trials.items():
            seconds = 60 * options.minutes * share / sum(trials.values())
            start = time.monotonic()
            result = trial(Budget(seconds, options.seed, Path(folder) / trial.__name__))
            results.append(result)
            console.print(f"{result.name}: {result.tried:,} in {time.monotonic() - start:.0f} s")
            for failure in dict.fromkeys(result.failures):
                console.print(f"  {result.failures.count(failure)} times: {failure}", markup=False)
    print("| tried | times | failed | measured |\n|---|---|---|---|")
    for result in results:
        print(f"| {result.name} | {result.tried:,} | {len(result.failures)} | {result.figure} |")
    sys.exit(any(result.failures for result in results))


if __name__ == "__main__":
    main()
