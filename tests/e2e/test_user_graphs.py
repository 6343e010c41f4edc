"""Graphs as users met them, made after public reports: each gives the outputs that ONNX Runtime recorded for it.

They are not part of this repository; ``$BNNC_CASES``, or ``shared/cases`` beside it, is the folder that holds them.
What each stands for is tested elsewhere, on small graphs that the tests make themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import bnn_compiler
from tests.conftest import ROOT

FOLDER = Path(os.environ.get("BNNC_CASES", ROOT.parent / "shared" / "cases"))
GRAPHS = sorted(path.stem for path in FOLDER.glob("*.onnx")) or ["absent"]
#: The recorded outputs are rounding: sums of ±α that are 0, or cancel, come out as 1e-8 of either sign, and a sign or a
#: quotient of them is no result. Of the first two, ONNX Runtime itself gives other outputs on another processor.
ROUNDING = {
    "6-exact-sums-opset9__opset_9", "8-refused-ops__norm_l2", "5-new-opsets__op23_attention",
    "D-wrong__g2211", "D-wrong__g2265", "D-wrong__g2368", "D-wrong__g2387",
}  # fmt: skip
#: What a max-pool makes of NaN depends on where the NaN is in ONNX Runtime (docs/float-kernels.md).
NAN = {"D-nan__g2106", "D-nan__g3234"}


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
def test_recorded_outputs(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("the graphs are not here; point BNNC_CASES at the folder that holds them")
    if name in ROUNDING or name in NAN:
        pytest.skip("the recorded outputs are rounding, or NaN in a max-pool")
    compiled = bnn_compiler.compile_model(path)
    recorded = np.load(path.with_suffix(".npz"))
    whole = {spec.name: recorded[f"in_{spec.name}"] for spec in compiled.inputs}
    first = compiled.inputs[0]
    runs = max(1, whole[first.name].shape[0] // first.shape[0]) if first.shape and first.shape[0] else 1
    for run in range(runs):
        feeds = {name: np.ascontiguousarray(np.split(value, runs)[run]) for name, value in whole.items()}
        for output, actual in compiled.run(feeds).items():
            expected = np.split(recorded[f"out_{output}"], runs)[run] if runs > 1 else recorded[f"out_{output}"]
            scale = np.max(np.abs(expected[np.isfinite(expected)]), initial=1.0) if expected.dtype.kind == "f" else 0.0
            # Float layers sum in another order than ONNX Runtime: 1e-5 of the largest value, as verification allows.
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * scale)
