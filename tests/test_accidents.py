"""A compiler in a container, on a terminal, on files of strangers: one line, and nothing left behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from bnn_compiler import artifact
from bnn_compiler import cache_folder as cache_module
from bnn_compiler.artifact import read_manifest, seal
from bnn_compiler.errors import ArtifactError, BnncError, CacheWarning, ModelError
from bnn_compiler.interrupts import interrupts_kept
from bnn_compiler.passes import decide_sign_zeros
from bnn_compiler.plain_text import plain
from bnn_compiler.scratch_folder import scratch_folder, sweep

from .command_line import Bnnc, assert_refused
from .conftest import ROOT

# Files that are none


@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "."])
def test_what_cannot_be_read_to_its_end(bnnc: Bnnc, library: Path, image: Path, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ("run", name, "--input", image),
        ("run", library, "--input", name),
        ("inspect", name),
        ("compile", name),
    ):
        assert_refused(bnnc(*words), 1)
    for read in (bnn_compiler.load, read_manifest):
        with pytest.raises(ArtifactError, match="no regular file" if name != "." else "directory"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b", "n" * 6000])
def test_paths_that_the_system_refuses(name: str) -> None:
    calls: tuple[Callable[[str], object], ...] = (
        bnn_compiler.load, read_manifest, bnn_compiler.compile_model, bnn_compiler.inspect_model,
    )  # fmt: skip
    for call in calls:
        with pytest.raises((ArtifactError, ModelError)) as refusal:
            call(name)
        assert len(str(refusal.value)) < 1000


def test_damaged_headers_under_a_right_digest(library: Path) -> None:
    """What is sealed again after a change is refused by what it says, or read: there is no third way."""
    content = library.read_bytes()
    sections = struct.unpack_from("<Q", content, 0x28)[0]
    generator = np.random.default_rng(0)
    places = [*range(4, 64), *generator.integers(sections, len(content), 150).tolist()]
    refused = 0
    magic = content.index(artifact._MAGIC)
    for place in places:
        if magic <= place < magic + 16:
            continue
        damaged = bytearray(content)
        damaged[place] ^= int(generator.integers(1, 256))
        try:
            read_manifest_of(seal(bytes(damaged)))
        except ArtifactError:
            refused += 1
    assert refused > 10, refused


def read_manifest_of(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        read_manifest(file.name)


# Names that a terminal obeys

HOSTILE = "a\x1b[31mred\x1b[0m\rb\x9b2J\u202egnp.exe\u2028\x07[bold]c[/bold]"


def hostile_model() -> onnx.ModelProto:
    """Two layers, one binary, with such names everywhere."""
    generator = np.random.default_rng(0)
    signs = generator.choice(np.asarray([-1, 1], np.float32), (8, 8, 3, 3))
    nodes = [
        helper.make_node("Sign", ["x" + HOSTILE], ["s"], name=HOSTILE),
        helper.make_node("Conv", ["s", "w" + HOSTILE], ["c" + HOSTILE], name="conv" + HOSTILE),
        helper.make_node("Conv", ["c" + HOSTILE, "v"], ["y" + HOSTILE], name="float" + HOSTILE),
    ]
    values = [
        helper.make_tensor_value_info(name + HOSTILE, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 8, 8, 8]), ("y", [1, 8, 4, 4]))
    ]
    weights = [numpy_helper.from_array(signs, "w" + HOSTILE), numpy_helper.from_array(signs * signs[0], "v")]
    graph = helper.make_graph(nodes, HOSTILE, values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def test_names_reach_no_terminal_as_they_are(bnnc: Bnnc, tmp_path: Path) -> None:
    onnx.save(hostile_model(), tmp_path / "m.onnx")
    data = {"x" + HOSTILE: np.zeros((1, 8, 8, 8), np.float32)}
    with (tmp_path / "x.npz").open("wb") as file:
        np.savez(file, **data)  # type: ignore[arg-type]
    for words in (
        ("inspect", "m.onnx"),
        ("inspect", "m.onnx", "--json"),
        ("compile", "m.onnx", "--report", "r.json"),
        ("inspect", "m.so"),
        ("tree", "m.onnx", "--plot", "t.svg"),
        ("bench", "m.onnx", "--rounds", "3", "--html", "m.html"),
        ("run", "m.so", "--input", "x.npz"),
        ("run", "m.so", "--input", "none" + HOSTILE),
        ("tree", "m.onnx", "--layer", HOSTILE),
        ("compile", HOSTILE),
        ("compile", "m.onnx", "--target", HOSTILE),
        ("compile", "m.onnx", "--input-shape", f"{HOSTILE}=1"),
    ):
        outcome = bnnc(*words)
        assert UNPRINTABLE.findall(outcome.out + outcome.err) == [], words
    for name in ("r.json", "t.svg", "m.html"):
        assert UNPRINTABLE.findall((tmp_path / name).read_text()) == [], name


def test_what_plain_text_is() -> None:
    assert plain("größer → 名前 🙂 [b]") == "größer → 名前 🙂 [b]"
    assert plain("a\x1b[2Jb\nc\u202ed\udc80") == r"a\x1b[2Jb\nc\u202ed\udc80"
    cut = plain("n" * 10**6)
    assert len(cut) < 1100 and "(999,001 characters)" in cut


# Caches


def test_a_cache_that_cannot_be_written(
    bnnc: Bnnc, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BNNC_CACHE", str(tmp_path / "file" / "cache"))
    cache_module._is_writable.cache_clear()
    outcome = bnnc("compile", digits, "--no-verify")
    assert outcome.status == 0 and "wrote digits.so" in outcome.out
    assert outcome.err == (
        f"bnnc: note: nothing is kept between runs: {tmp_path}/file/cache cannot be made (Not a directory); "
        "name a folder that can be written in BNNC_CACHE\n"
    )
    cache_module._is_writable.cache_clear()
    with pytest.warns(CacheWarning, match="nothing is kept"):
        bnn_compiler.compile_model(digits, verify=False)


@pytest.mark.parametrize("home", [None, "/proc/none"])
def test_no_home(tmp_path: Path, digits: Path, home: str | None) -> None:
    """A user without a name and a home, or with one that cannot be written; the tree solver is compiled, too."""
    code = f"""
import os, pwd
def nobody(_): raise KeyError("no such user")
pwd.getpwuid = nobody
import bnn_compiler, numpy
bnn_compiler.compile_model({str(digits)!r}, verify=False)
print(bnn_compiler.solve_channel_tree(numpy.eye(3, dtype="uint8"), synthetic=False).channels)"""
    kept = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"PYTHONPATH": str(ROOT)}
    environment |= {"HOME": home} if home else {}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert done.stderr.count("nothing is kept between runs") == 1
    assert list(tmp_path.iterdir()) == []


def test_numba_is_loaded_for_trees_alone(digits: Path) -> None:
    code = f"""
import sys
from bnn_compiler.cli.main import run
assert run(["inspect", {str(digits)!r}, "--algorithm", "popcount", "-q"]) == 0
assert run(["compile", {str(digits)!r}, "--algorithm", "popcount", "-q", "-o", "/dev/null"]) == 1
assert not {{"numba", "ortools"}} & set(sys.modules), "loaded" """
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


# Ctrl-C

pytestmark = pytest.mark.usefixtures("_listens_to_interrupts")


@pytest.fixture
def _listens_to_interrupts() -> Iterator[None]:
    """A shell lets what it starts in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_inside_a_pass(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TVM makes a RuntimeError without a message of it."""

    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(decide_sign_zeros, "onnx_names", interrupted)
    before = signal.getsignal(signal.SIGINT)
    for call in (bnn_compiler.compile_model, bnn_compiler.inspect_model):
        with pytest.raises(KeyboardInterrupt):
            call(digits)
        assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_inside_a_pass_of_a_command(
    bnnc: Bnnc, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decide_sign_zeros, "onnx_names", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    for command in ("compile", "inspect", "bench", "tree"):
        assert_refused(bnnc(command, digits), 130, "interrupted")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_was_swallowed() -> None:
    for lost in (RuntimeError(""), None):
        with pytest.raises(KeyboardInterrupt), interrupts_kept():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                if lost is not None:
                    raise lost from None
    with pytest.raises(ZeroDivisionError), interrupts_kept():
        1 / 0  # noqa: B018 - no interrupt, no change


# What is left behind


def test_folders_of_the_dead_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living, foreign = (tmp_path / f"bnnc-scratch-{name}" for name in ("dead", "living", "foreign"))
    for folder in (dead, living, foreign):
        folder.mkdir()
        (folder / "data").touch()
    (dead / ".bnnc-scratch").touch()
    (living / ".bnnc-scratch").touch()
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    with scratch_folder() as own:
        sweep()
        assert {path.name for path in tmp_path.iterdir()} == {living.name, foreign.name, own.name}
    os.close(lock)
    sweep()
    assert [path.name for path in tmp_path.iterdir()] == [foreign.name]


def test_a_killed_command_s_folder_goes_with_the_next(tmp_path: Path) -> None:
    code = "import os, signal, time\nfrom bnn_compiler.cli.supervisor import supervise\n"
    killed = code + "supervise(lambda: os.kill(os.getppid(), signal.SIGKILL) or time.sleep(60))"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", killed], env=environment, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    for _ in range(50):  # the child follows its parent in a moment
        subprocess.run([sys.executable, "-c", code + "supervise(lambda: 0)"], env=environment, check=False)
        if not list(tmp_path.iterdir()):
            return
    pytest.fail("the folder is still there")


def test_no_temporary_folder(tmp_path: Path, digits: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    code = """
import tempfile
tempfile._candidate_tempdir_list = lambda: ["/proc/none"]
from bnn_compiler.cli import main
main(["--version"])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("bnnc: no temporary folder can be made") and "TMPDIR" in done.stderr


def test_a_full_temporary_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is made there, then read from there."""

    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "touch", full)
    with pytest.raises(BnncError, match="No space left on device"):
        bnn_compiler.compile_model(digits, verify=False)


@pytest.mark.parametrize("algorithm", ["auto", "bitsliced"])
def test_compile_model_is_quiet(digits: Path, capfd: pytest.CaptureFixture[str], algorithm: str) -> None:
    """Neither TVM, LLVM, the linker nor ONNX Runtime has anything to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = bnn_compiler.compile_model(digits, algorithm=algorithm)
        compiled.run({"image": np.zeros((1, 1, 8, 8), np.float32)})
    assert capfd.readouterr() == ("", "")
