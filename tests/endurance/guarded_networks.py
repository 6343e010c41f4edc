"""Whole networks whose inputs and outputs border on pages without access: nothing is touched beyond their ends.

``python -m tests.endurance.guarded_networks LIBRARY`` runs one library so, in a process that a stray access kills.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import bnn_compiler
from bnn_compiler.verification.reference import sample_feeds
from tests.conftest import ROOT, model_folders
from tests.guard_pages import Side, guarded

from .trial import Budget, Result, finish, start

SIDES: tuple[Side, Side] = ("before", "after")


def guarded_networks(budget: Budget) -> Result:
    """Networks of the tests, the smallest first, until the time is over; one at least."""
    result = Result("networks between guard pages")
    budget.folder.mkdir(parents=True)
    found = [path for folder in model_folders() for path in folder.glob("*.onnx")]
    models = [ROOT / "examples" / "digits.onnx", *sorted(found, key=lambda path: path.stat().st_size)]
    for _, model in zip(budget.turns(), models, strict=False):
        library = budget.folder / f"{model.stem}.so"
        bnn_compiler.compile_model(model, verify=False).export(library)
        words = ["-m", "tests.endurance.guarded_networks", str(library)]
        status, _, err = finish(start(words, budget.folder, budget.folder), result)
        result.tried += 1
        result.expect(status == 0, f"{model.stem}: ended with {status}: {err[-300:]}")
    result.figure = f"inputs and outputs, both ends; {len(models)} networks are here"
    return result


def main() -> None:
    """Run the library on guarded arrays, and compare with ordinary ones."""
    model = bnn_compiler.load(Path(sys.argv[1]))
    feeds = sample_feeds(model.inputs, 0, 0)
    expected = model.run(feeds)
    for side in SIDES:
        out = {spec.name: guarded(np.zeros(spec.shape, spec.dtype), side) for spec in model.outputs}
        model.run({name: guarded(value, side) for name, value in feeds.items()}, out)
        for name, value in expected.items():
            np.testing.assert_array_equal(out[name], value)


if __name__ == "__main__":
    main()
