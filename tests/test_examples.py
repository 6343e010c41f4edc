"""Every script in examples/ runs; a new one must be listed here."""

from __future__ import annotations

import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnn_compiler import inspect_model
from bnn_compiler.errors import UsageError

SCRIPTS = {
    "run_digits.py": (),
    "tvm_user.py": (),
    "tvm_torch_user.py": ("torch",),
    "train_digits.py": ("torch", "sklearn"),
    "train_cifar10.py": ("torch", "onnxscript"),
}


def run_process(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The repository's root need not be the current directory, nor the package be installed there.
    paths = [str(script.parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=environment,
        check=False,
    )


def run_script(script: Path, *arguments: str) -> str:
    finished = run_process(script, *arguments)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def need(script: str) -> None:
    for module in SCRIPTS[script]:
        pytest.importorskip(module, reason=f"examples/{script} needs {module}")


def test_every_script_is_tested(examples: Path) -> None:
    assert {path.name for path in examples.glob("*.py")} == SCRIPTS.keys()


def test_run_digits(examples: Path) -> None:
    lines = run_script(examples / "run_digits.py").splitlines()
    assert len(lines) == 3 and all("358/360 right" in line for line in lines)


@pytest.mark.parametrize("script", ["tvm_user.py", "tvm_torch_user.py"])
def test_tvm_users(examples: Path, script: str) -> None:
    need(script)
    output = run_script(examples / script)
    assert " binary " in output and "popcount_conv2d_3x3_bipolar" in output


def test_train_digits(examples: Path, tmp_path: Path) -> None:
    """Two epochs: the script works and writes the network that is committed, up to the weights' values."""
    need("train_digits.py")
    output = run_script(examples / "train_digits.py", "--epochs", "2", "--shorten", "0.15", "--out", str(tmp_path))
    before = float(re.findall(r"trees cost ([.\d]+) of the weights", output)[0])
    after = [float(ratio) for ratio in re.findall(r"costs ([.\d]+) of its weights", output)]
    assert len(after) == 2 and min(after) <= 0.15 < before
    fresh, committed = onnx.load(tmp_path / "digits.onnx"), onnx.load(examples / "digits.onnx")
    assert [node.op_type for node in fresh.graph.node] == [node.op_type for node in committed.graph.node]
    with np.load(tmp_path / "digits_test.npz") as test, np.load(examples / "digits_test.npz") as known:
        assert all(np.array_equal(test[name], known[name]) for name in ("image", "label"))


def write_cifar10(folder: Path, *, binary: bool, images: int = 8) -> None:
    """A tiny CIFAR-10 of random pixels, in the form it is distributed in."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (images, 3072), np.uint8)
        labels = random.integers(0, 10, images)
        if binary:
            records = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            batch = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"made up", b"filenames": []}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


@pytest.mark.slow
def test_train_cifar10(examples: Path, tmp_path: Path) -> None:
    need("train_cifar10.py")
    write_cifar10(tmp_path / "data", binary=True)
    output = run_script(
        examples / "train_cifar10.py",
        *("--data", str(tmp_path / "data"), "--network", "resnet-20", "--epochs", "1", "--batch", "20"),
        *("--tree-ratio", "0.15", "--out", str(tmp_path / "net.onnx")),
    )
    assert "test error" in output
    assert float(re.findall(r"features.19.block.1: tree cost ([.\d]+)", output)[0]) < 0.25
    layers = inspect_model(tmp_path / "net.onnx")["layers"]
    assert [layer["status"] for layer in layers] == ["float", *["binary"] * 18, "float"]


def test_both_forms_of_cifar10_are_read_alike(examples: Path, tmp_path: Path) -> None:
    need("train_cifar10.py")
    read_split = runpy.run_path(str(examples / "train_cifar10.py"))["read_split"]
    for form in ("binary", "python"):
        write_cifar10(tmp_path / form, binary=form == "binary")
    names = ["data_batch_2", "test_batch"]
    (images, labels), (same_images, same_labels) = (read_split(tmp_path / form, names) for form in ("binary", "python"))
    assert images.shape == (16, 3, 32, 32) and np.array_equal(images, same_images)
    assert np.array_equal(labels, same_labels)


def test_train_cifar10_refuses_what_is_no_cifar10(examples: Path, tmp_path: Path) -> None:
    need("train_cifar10.py")
    script = examples / "train_cifar10.py"

    finished = run_process(script, "--data", str(tmp_path), "--epochs", "1")
    (line,) = finished.stderr.splitlines()
    assert finished.returncode == 2 and "neither data_batch_1.bin nor data_batch_1" in line
    read_batch = runpy.run_path(str(script))["read_batch"]
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Path("anything else")))
    with pytest.raises(UsageError, match="this is no file of CIFAR-10"):
        read_batch(tmp_path, "data_batch_1")
    (tmp_path / "data_batch_1").write_bytes(b"no pickle")
    with pytest.raises(UsageError, match="not a file of CIFAR-10"):
        read_batch(tmp_path, "data_batch_1")
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 3074)
    with pytest.raises(UsageError, match="has 3074 bytes: not a whole number of 3073"):
        read_batch(tmp_path, "data_batch_1")


def test_train_cifar10_states_the_papers_errors(examples: Path) -> None:
    need("train_cifar10.py")
    output = run_script(examples / "train_cifar10.py", "--help")
    assert "10.17 %" in output and "9.88 %" in output


def test_the_committed_network_is_small_and_names_no_machine(examples: Path) -> None:
    data = (examples / "digits.onnx").read_bytes()
    assert len(data) < 300_000
    model = onnx.load_from_string(data)
    assert not model.doc_string and not any(node.doc_string or node.metadata_props for node in model.graph.node)
