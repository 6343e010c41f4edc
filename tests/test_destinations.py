"""No output takes the place of an input, of another output, or of something that is no file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnn_compiler.atomic_file import atomic_write, check_writable
from bnn_compiler.errors import ArtifactError

from .command_line import Bnnc, assert_refused


@pytest.fixture
def model(tmp_path: Path, digits: Path) -> Path:
    """The digits network, in the folder where the command runs."""
    return Path(shutil.copy(digits, tmp_path / "m.onnx"))


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("compile", "m.onnx", "-o", "m.onnx"), "-o m.onnx"),
        (("compile", "m.onnx", "--report", "m.onnx"), "--report m.onnx"),
        (("compile", "m.onnx", "-o", "./m.onnx"), "-o m.onnx"),
        (("compile", "link.onnx", "-o", "m.onnx"), "-o m.onnx"),
        (("compile", "m.onnx", "-o", "hard.onnx"), "-o hard.onnx"),
        (("compile", "m.onnx", "-o", "same/m.onnx"), "-o same/m.onnx"),
        (("inspect", "m.onnx", "--html", "m.onnx"), "--html m.onnx"),
        (("bench", "m.onnx", "--json", "m.onnx"), "--json m.onnx"),
        (("tree", "m.onnx", "--plot", "m.onnx"), "--plot m.onnx"),
        (("compile", "m.onnx", "-o", "x.so", "--report", "x.so"), "--report x.so"),
        (("compile", "m.onnx", "-o", "x.so", "--report", "same/x.so"), "--report same/x.so"),
        (("bench", "m.onnx", "--json", "x", "--html", "x"), "--html x"),
        (("run", "x.so", "--input", "x.npz", "--output", "x.npz"), "--output x.npz"),
        (("run", "x.so", "--input", "x.npz", "--output", "x.so"), "--output x.so"),
    ],
)
def test_an_output_that_is_an_input(
    bnnc: Bnnc, model: Path, tmp_path: Path, words: tuple[str, ...], option: str
) -> None:
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    (tmp_path / "same").symlink_to(".")
    os.link(model, tmp_path / "hard.onnx")
    before = model.read_bytes()
    assert_refused(bnnc(*words), 2, option, "name")
    assert model.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "link.onnx", "hard.onnx", "same"}


def test_weights_beside_the_model_are_inputs(bnnc: Bnnc, model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.save_model(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = (tmp_path / "weights.bin").read_bytes()
    assert_refused(bnnc("compile", "m.onnx", "--report", "weights.bin"), 2, "weights.bin", "which would be lost")
    assert (tmp_path / "weights.bin").read_bytes() == before


def test_a_library_may_be_compiled_again(bnnc: Bnnc, model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.so").write_bytes(b"an older one")
    assert bnnc("compile", "m.onnx", "--no-verify", "-q").status == 0
    assert (tmp_path / "m.so").stat().st_size > 1000


def test_what_is_no_file_is_not_replaced(bnnc: Bnnc, model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for option in ("-o", "--report"):
        assert_refused(bnnc("compile", "m.onnx", option, "pipe"), 1, "pipe: cannot be written: it is no regular file")
    assert (tmp_path / "pipe").is_fifo()


def test_long_names(tmp_path: Path) -> None:
    """As long as the file system takes; longer ones, and those with a NUL, in one line."""
    longest = tmp_path / ("n" * 250)
    with atomic_write(longest) as file:
        file.write(b"x")
    assert longest.read_bytes() == b"x"
    for name in ("n" * 6000, "a\0b"):
        with pytest.raises(ArtifactError, match="cannot be written") as refusal:
            check_writable(tmp_path / name)
        assert len(str(refusal.value)) < 1000
        with pytest.raises(ArtifactError, match="cannot be written"), atomic_write(tmp_path / name):
            pass
    assert list(tmp_path.iterdir()) == [longest]


def test_a_dead_process_s_temporary_file_goes_with_the_next_write(tmp_path: Path) -> None:
    dead, foreign = tmp_path / ".x.so.abcd.bnnc-tmp", tmp_path / ".y.so.abcd.bnnc-tmp"
    dead.touch()
    foreign.touch()
    with atomic_write(tmp_path / "x.so") as file:
        file.write(b"one")
        with atomic_write(tmp_path / "x.so") as other:  # of a living one
            other.write(b"two")
        file.write(b" more")
    assert (tmp_path / "x.so").read_bytes() == b"one more"
    assert {path.name for path in tmp_path.iterdir()} == {"x.so", foreign.name}


def test_outputs_of_a_run(bnnc: Bnnc, library: Path, image: Path, tmp_path: Path) -> None:
    assert bnnc("run", library, "--input", image, "--output", "y.npz", "-q").status == 0
    with np.load(tmp_path / "y.npz") as outputs:
        assert outputs.files == ["score"]
