"""Many damaged models, once: ``python -m tests.mutations.sweep --cases 20000 MODEL.onnx …``.

Every case ends in a model or in one line that says what is wrong with the file. Findings are anything else: another
exception, a crash of native code, no answer within the time limit, a warning, a compiled network that disagrees with
ONNX Runtime. They are printed with their seed; the exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.isolation import IsolatedWorker

from .damage import damaged

TIME_LIMIT = 60.0
"""Seconds per case, compiling and verifying included, on a busy machine."""
MEMORY_LIMIT = 6 << 30
COMPILED_SHARE = 4
"""Every so-manieth case is compiled and verified if it is accepted; the others end with the report."""


def run_cases(originals: Sequence[bytes], seeds: Sequence[int]) -> tuple[Counter[str], list[str]]:
    """How often each end was reached, and the findings."""
    ends: Counter[str] = Counter()
    findings: list[str] = []
    with IsolatedWorker("tests.mutations.judge:judge", time_limit=TIME_LIMIT, memory_limit=MEMORY_LIMIT) as worker:
        for seed in seeds:
            kind, data = damaged(seed, list(originals))
            outcome = worker.run((b"i" if seed % COMPILED_SHARE else b"c") + data)
            if outcome.survived and not outcome.text.startswith("!"):
                ends[outcome.text] += 1
            else:
                ends["findings"] += 1
                findings.append(f"seed {seed} ({kind}): {outcome.text or outcome.fate}")
    return ends, findings


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    options = parser.parse_args()
    originals = [path.read_bytes() for path in sorted(options.models) if path.stat().st_size]
    start, total, found = time.monotonic(), Counter[str](), 0
    step = 500
    for first in range(options.seed, options.seed + options.cases, step):
        ends, findings = run_cases(originals, range(first, min(first + step, options.seed + options.cases)))
        total += ends
        found += len(findings)
        for line in findings:
            print(line, flush=True)
        print(f"{total.total()} cases", file=sys.stderr, flush=True)
    print(f"{total.total()} cases in {time.monotonic() - start:.0f} s: {dict(total)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
