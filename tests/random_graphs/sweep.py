"""Many random chains, once: ``python -m tests.random_graphs.sweep --graphs 5000``.

Each model of ``--chains`` chains is compiled and compared in a process apart (``tests/isolation.py``), so that a crash
or a hang is a finding like any other. A finding is one line: the seed, and what disagrees. The exit status is 1 if
there was any.
"""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from bnn_compiler.errors import BnncError
from bnn_compiler.verification.reference import Reference
from tests.isolation import IsolatedWorker

from .chains import random_model
from .comparison import disagreements


def compare(payload: bytes) -> str:
    """In the worker: what is wrong with the model of a seed, or its number of outputs."""
    seed, chains = (int(part) for part in payload.split())
    random = Random(seed)
    model = random_model(random, chains)
    algorithm = random.choice(["auto", "auto", "popcount", "bitsliced", "float"])
    sign_zero = random.choice(["plus", "plus", "plus", "exact"])
    try:
        Reference(model.model).run(model.feeds(0))
    except BnncError as error:
        return f"skipped: {error}"
    try:
        found = disagreements(model, algorithm=algorithm, sign_zero=sign_zero)
    except Exception as error:  # whatever is raised is a finding
        return f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return "; ".join(found)


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=5000)
    parser.add_argument("--chains", type=int, default=10, help="graphs per model")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first model")
    options = parser.parse_args()
    start, graphs, skipped, findings = time.monotonic(), 0, 0, 0
    with IsolatedWorker("tests.random_graphs.sweep:compare", time_limit=300, memory_limit=8 << 30) as worker:
        for index in range(-(-options.graphs // options.chains)):
            seed = options.seed + index
            outcome = worker.run(f"{seed} {options.chains}".encode())
            answer = outcome.text if outcome.survived else outcome.fate
            if answer.startswith("skipped"):
                skipped += options.chains
            else:
                graphs += options.chains
            if index % 20 == 19:
                print(f"{graphs} graphs", file=sys.stderr, flush=True)
            if answer:
                findings += not answer.startswith("skipped")
                print(f"seed {seed}: {answer}", flush=True)
    print(f"{graphs} graphs in {time.monotonic() - start:.0f} s, {skipped} skipped, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
