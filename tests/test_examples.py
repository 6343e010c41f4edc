"""Every script in examples/ runs; a new one must be listed here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

SCRIPTS = {
    "run_digits.py": (),
    "tvm_user.py": (),
    "tvm_torch_user.py": ("torch",),
    "train_digits.py": ("torch", "sklearn"),
}


def run_script(script: Path, *arguments: str) -> str:
    # The repository's root need not be the current directory, nor the package be installed there.
    paths = [str(script.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    finished = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def need(script: str) -> None:
    for module in SCRIPTS[script]:
        pytest.importorskip(module, reason=f"examples/{script} needs {module}")


def test_every_script_is_tested(examples: Path) -> None:
    assert {path.name for path in examples.glob("*.py")} == SCRIPTS.keys()


def test_run_digits(examples: Path) -> None:
    lines = run_script(examples / "run_digits.py").splitlines()
    assert len(lines) == 3 and all("357/360 right" in line for line in lines)


@pytest.mark.parametrize("script", ["tvm_user.py", "tvm_torch_user.py"])
def test_tvm_users(examples: Path, script: str) -> None:
    need(script)
    output = run_script(examples / script)
    assert " binary " in output and "popcount_conv2d_3x3_bipolar" in output


def test_train_digits(examples: Path, tmp_path: Path) -> None:
    """Two epochs: the script works and writes the network that is committed, up to the weights' values."""
    need("train_digits.py")
    run_script(examples / "train_digits.py", "--epochs", "2", "--out", str(tmp_path))
    fresh, committed = onnx.load(tmp_path / "digits.onnx"), onnx.load(examples / "digits.onnx")
    assert [node.op_type for node in fresh.graph.node] == [node.op_type for node in committed.graph.node]
    with np.load(tmp_path / "digits_test.npz") as test, np.load(examples / "digits_test.npz") as known:
        assert all(np.array_equal(test[name], known[name]) for name in ("image", "label"))


def test_the_committed_network_is_small_and_names_no_machine(examples: Path) -> None:
    data = (examples / "digits.onnx").read_bytes()
    assert len(data) < 300_000
    model = onnx.load_from_string(data)
    assert not model.doc_string and not any(node.doc_string or node.metadata_props for node in model.graph.node)
