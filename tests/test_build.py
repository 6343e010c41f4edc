"""Building a library: deterministic bytes, whole files or none, and words when there is no linker."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bnn_compiler import build, linker
from bnn_compiler.artifact import SECTION_NAME, read_manifest
from bnn_compiler.atomic_file import atomic_write, check_writable
from bnn_compiler.build import build_library
from bnn_compiler.errors import ArtifactError, ToolchainError
from bnn_compiler.linker import Linker, find_linker
from bnn_compiler.target import parse_target
from tests.small_relax_modules import many_results

ROOT = Path(__file__).resolve().parent.parent
BUILD_SCRIPT = """
import sys
from pathlib import Path
from bnn_compiler.build import build_library
from bnn_compiler.target import parse_target
from tests.small_relax_modules import many_results
build_library(many_results(), parse_target(sys.argv[2]), {"layers": []}, Path(sys.argv[1]))
"""


def build_elsewhere(output: Path, target: str, seed: str) -> bytes:
    """Build in a new process with its own hash seed, working and temporary directory; return the library."""
    temporary = output.parent / f"tmp-{seed}-of-some-length"
    temporary.mkdir()
    # ONNX Runtime's telemetry leaves its own file there (`.ses`) when it is imported.
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1"}
    environment |= {"PYTHONHASHSEED": seed, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", BUILD_SCRIPT, str(output), target], cwd=temporary, env=environment, check=True
    )
    assert list(temporary.iterdir()) == []
    return output.read_bytes()


def has_linker(target: str) -> bool:
    try:
        find_linker(parse_target(target))
    except ToolchainError:
        return False
    return True


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=cortex-a72", "llvm -mcpu=cortex-a9"])
def test_same_bytes(tmp_path: Path, target: str) -> None:
    if not has_linker(target):
        pytest.skip(f"no linker for {target}")
    first = build_elsewhere(tmp_path / "first.so", target, "1")
    (tmp_path / "another directory").mkdir()
    second = build_elsewhere(tmp_path / "another directory" / "second name.so", target, "2")
    assert first == second
    assert str(tmp_path).encode() not in first
    assert b"/tmp/" not in first


def test_section_is_in_the_file_but_not_in_memory(tmp_path: Path) -> None:
    output = tmp_path / "model.so"
    build_library(many_results(), parse_target("native"), {}, output)
    with output.open("rb") as stream:
        elf = ELFFile(stream)
        section = elf.get_section_by_name(SECTION_NAME)
        assert section is not None
        assert section["sh_flags"] == 0
        assert elf.get_section_by_name(".note.gnu.build-id") is None
        assert not any(name.name.startswith(".debug") for name in elf.iter_sections())
        stack = next(segment for segment in elf.iter_segments() if segment["p_type"] == "PT_GNU_STACK")
        assert stack["p_flags"] & 1 == 0  # not executable
    assert os.access(output, os.X_OK)


def test_manifest_must_describe_main(tmp_path: Path) -> None:
    wrong = {"inputs": [{"name": "x", "shape": [1, 7], "dtype": "float32"}]}
    with pytest.raises(AssertionError, match="are not those of main"):
        build_library(many_results(), parse_target("native"), wrong, tmp_path / "model.so")
    renamed = {"inputs": [{"name": "data:0", "shape": [1, 1024], "dtype": "float32"}]}
    build_library(many_results(), parse_target("native"), renamed, tmp_path / "model.so")
    assert read_manifest(tmp_path / "model.so")["inputs"][0]["name"] == "data:0"


@pytest.mark.parametrize("failure", [ToolchainError("boom"), KeyboardInterrupt(), MemoryError()])
def test_failed_link_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    def fail(_linker: Linker, _inputs: Sequence[Path], output: Path) -> None:
        output.write_bytes(b"half a lib")
        raise failure

    output = tmp_path / "out" / "model.so"
    output.parent.mkdir()
    output.write_bytes(b"the previous one")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(build, "link_shared", fail)
    with pytest.raises(type(failure)):
        build_library(many_results(), parse_target("native"), {}, output)
    assert output.read_bytes() == b"the previous one"
    assert [path.name for path in output.parent.iterdir()] == ["model.so"]
    assert list(scratch.iterdir()) == []


def test_linker_errors_are_one_line(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.o"
    garbage.write_bytes(b"not an object file")
    with pytest.raises(ToolchainError, match=r"^linking with .* failed: ") as caught:
        linker.link_shared(find_linker(parse_target("native")), [garbage], tmp_path / "model.so")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "package"),
    [
        ("llvm -mcpu=cortex-a72", "gcc-aarch64-linux-gnu"),
        ("llvm -mcpu=cortex-a9", "gcc-arm-linux-gnueabihf"),
        ("llvm -mtriple=armv7a-linux-gnueabi -mcpu=cortex-a9", "gcc-arm-linux-gnueabi"),
        ("native", "gcc"),
    ],
)
def test_no_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, package: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ToolchainError, match=rf"install `{package}`.*pip install ziglang"):
        build_library(many_results(), parse_target(target), {}, tmp_path / "model.so")
    assert list(tmp_path.iterdir()) == []


def test_linkers_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tool(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!{shutil.which('sh')}\n{script}\n")
        path.chmod(0o755)

    tool("cc", "exit 1")  # installed but broken
    tool("gcc", "echo 'fake gcc 1.0'")
    tool("aarch64-linux-gnu-gcc", "echo 'fake cross gcc 2.0'")
    monkeypatch.setenv("PATH", str(tmp_path))
    cross = find_linker(parse_target("llvm -mcpu=cortex-a72"))
    assert cross.version in ("fake cross gcc 2.0", "fake gcc 1.0")
    if parse_target("native").architecture != "aarch64":
        assert cross.version == "fake cross gcc 2.0"
        assert find_linker(parse_target("native")).version == "fake gcc 1.0"


def test_unwritable_outputs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output, words in (
        (tmp_path / "absent" / "model.so", "No such file"),
        (tmp_path / "file" / "model.so", "Not a directory"),
        (tmp_path, "is a directory"),
        (Path("/proc/model.so"), "cannot be written"),
    ):
        with pytest.raises(ArtifactError, match=words) as caught:
            build_library(many_results(), parse_target("native"), {}, output)
        assert "\n" not in str(caught.value)
        with pytest.raises(ArtifactError, match=words):
            check_writable(output)


@pytest.mark.parametrize("step", ["fsync", "fchmod"])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    output = tmp_path / "model.so"
    output.write_bytes(b"the previous one")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        build_library(many_results(), parse_target("native"), {}, output)
    assert output.read_bytes() == b"the previous one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.so"]


def test_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    output = tmp_path / "file"
    output.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(output) as stream:
        stream.write(b"ne")
        raise KeyboardInterrupt
    assert output.read_bytes() == b"old"
    with atomic_write(output) as stream:
        stream.write(b"new")
    assert output.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_killed_build_leaves_no_partial_file(tmp_path: Path) -> None:
    """Killed at a few moments of its life, a build has written either nothing or all of it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for index, delay in enumerate((0.5, 1.0, 1.5, 2.0)):
        output = tmp_path / f"{index}.so"
        process = subprocess.Popen([sys.executable, "-c", BUILD_SCRIPT, str(output), "native"], env=environment)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            read_manifest(output)
    assert all(path.suffix in (".so", ".bnnc-tmp") for path in tmp_path.iterdir())
