from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="bnn_compiler.train needs PyTorch")
pytest.importorskip("sklearn", reason="cluttered digits are made of scikit-learn's digits")
pytest.importorskip("matplotlib", reason="the plot is drawn by matplotlib")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = runpy.run_path(str(BENCHMARKS / "tree_training.py"))
    sizes = {"TRAIN_IMAGES": 64, "TEST_IMAGES": 50, "IMAGES_PER_EPOCH": 64, "ROUNDS": 1}
    names["main"].__globals__.update(sizes)
    return names


def call(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["tree_training", *map(str, arguments)])
    script["main"]()


def test_the_experiment_from_training_to_the_plot(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch  # noqa: PLC0415

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    table, times = tmp_path / "training.csv", tmp_path / "latency.csv"
    methods = ("none", "signs-1", "shorten-0.18", "cut-0.18", "calibrate-0.18")
    common = ("run", "--folder", tmp_path, "--csv", table, "--epochs", 5, "--width", 8, "--seeds", 0)
    try:
        call(script, monkeypatch, *common, "--validation", "--methods", *methods[:2])
        call(script, monkeypatch, *common, "--validation", "--methods", *methods)
        rows = script["read_rows"](table)
        assert [row["method"] for row in rows] == list(methods)
        assert [int(row["epochs"]) for row in rows] == [5, 5, 1, 0, 0]
        assert (
            float(rows[1]["ratio"]) < float(rows[0]["ratio"]) and max(float(row["ratio"]) for row in rows[2:]) <= 0.18
        )
        call(script, monkeypatch, "latency", "--folder", tmp_path, "--csv", times)
        timed = script["read_rows"](times)
        assert {row["method"] for row in timed} == set(methods[:3])
        assert all(float(row["microseconds"]) > 0 for row in timed)
        assert sum(row["layer"] != "network" for row in timed) == 3 * 2 * 3
        capsys.readouterr()
        call(script, monkeypatch, "cost", "--folder", tmp_path, "--epochs", 5, "--width", 8)
        shares = re.findall(r"^(\S+): (\S+) % of the training of none$", capsys.readouterr().out, re.MULTILINE)
        begun = {name for name, method in script["METHODS"].items() if method.start is not None}
        assert begun == {name for name, _ in shares} and len(begun) > 3
        assert all(float(share) > 0 for _, share in shares)
        call(script, monkeypatch, "summary", table)
        assert "shorten-0.18" in capsys.readouterr().out
        call(script, monkeypatch, "plot", table, times, tmp_path / "plot.svg")
        assert (tmp_path / "plot.svg").read_text().rstrip().endswith("</svg>")
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.utils.deterministic.fill_uninitialized_memory = fills
