"""Where tests find models.

``digits`` is the network of examples/. The evaluation models are not part of this repository: ``network(name)`` and
``small_model(name)`` look in ``$BNNC_MODELS``, in ``../shared/models`` beside the repository, and in
``~/.cache/bnnc-models``, and skip the test where a model is absent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnn_compiler.cli.main import run

from .command_line import Bnnc, Outcome

ROOT = Path(__file__).resolve().parent.parent

ModelFinder = Callable[[str], Path]


def model_folders() -> list[Path]:
    """Where evaluation models are on this machine."""
    named = os.environ.get("BNNC_MODELS")
    candidates = [Path(named)] if named else []
    candidates += [ROOT.parent / "shared" / "models", Path.home() / ".cache" / "bnnc-models"]
    return [folder for folder in candidates if folder.is_dir()]


def find_model(name: str, *, small: bool) -> Path | None:
    """The path of ``name``.onnx, or None."""
    for folder in model_folders():
        path = (folder / "small" if small else folder) / f"{name}.onnx"
        if path.is_file():
            return path
    return None


def _found(name: str, *, small: bool) -> Path:
    path = find_model(name, small=small)
    if path is None:
        pytest.skip(f"evaluation model {name!r} is not here; point BNNC_MODELS at a folder that holds it")
    return path


#: ``--slow=part`` runs every so-manieth slow test, always the same ones.
SLOW_STEP = 48


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--slow``."""
    parser.addoption(
        "--slow",
        choices=["none", "part", "all"],
        default="none",
        help="tests marked slow (sweeps, kernels under emulation): none, a fixed part as in CI, or all",
    )
    parser.addoption(
        "--conformance-graphs", type=int, default=0, help="random graphs for tests/test_conformance.py (default: none)"
    )
    parser.addoption("--conformance-seed-by-date", action="store_true", help="new ones every day, not always the same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests that ``--slow`` does not ask for."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    wanted = {"none": [], "part": slow[::SLOW_STEP], "all": slow}[config.getoption("--slow")]
    left_out = set(slow) - set(wanted)
    if left_out:
        config.hook.pytest_deselected(items=sorted(left_out, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def network() -> ModelFinder:
    """Path of a whole evaluation network by name; its inputs and outputs are beside it as .npz."""
    return lambda name: _found(name, small=False)


@pytest.fixture(scope="session")
def small_model() -> ModelFinder:
    """Path of a small evaluation graph by name."""
    return lambda name: _found(name, small=True)


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder of examples."""
    return ROOT / "examples"


@pytest.fixture(scope="session")
def digits(examples: Path) -> Path:
    """The example network, as ONNX."""
    return examples / "digits.onnx"


@pytest.fixture
def bnnc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Bnnc:
    """Call ``bnnc`` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> Outcome:
        capfd.readouterr()
        status = run([str(word) for word in words])
        captured = capfd.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The digits network, compiled."""
    path = tmp_path_factory.mktemp("library") / "digits.so"
    assert run(["compile", str(digits), "-o", str(path), "-q"]) == 0
    return path


@pytest.fixture
def image(examples: Path, tmp_path: Path) -> Path:
    """One image, as the input file of ``bnnc run``."""
    path = tmp_path / "image.npz"
    with np.load(examples / "digits_test.npz") as test:
        np.savez(path, image=test["image"][:1])
    return path
