"""The command line as a process: signals, crashes, what is loaded and what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import ROOT

# The work of a command that hangs, crashes or prints, in place of the real one.
SUPERVISED = "from bnn_compiler.cli.supervisor import supervise\ndef work() -> int:\n{body}\nsupervise(work)\n"


def start(code: str, scratch: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip


def supervised(body: str, scratch: Path) -> subprocess.Popen[str]:
    return start(SUPERVISED.format(body="\n".join(f"    {line}" for line in body.splitlines())), scratch)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("return 0", 0, ""),
        ("return 3", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 1, "bnnc: the compiler was killed"),
        ("import os; os._exit(1)", 1, "bnnc: the compiler ended inside native code; is there room in TMPDIR"),
        (
            "import os\nfrom bnn_compiler.cli.streams import own_streams\nwith own_streams(False):\n"
            "    os.write(2, b'LLVM ERROR: no room\\n')\n    os._exit(1)",
            1,
            "bnnc: the compiler ended inside native code: LLVM ERROR: no room; is there room in TMPDIR",
        ),
        ("import os; os.abort()", 1, "bnnc: the compiler crashed (SIGABRT)"),
        ("import ctypes; ctypes.string_at(0)", 1, "bnnc: the compiler crashed (SIGSEGV)"),
    ],
)
def test_the_work_s_end_is_the_command_s(tmp_path: Path, body: str, status: int, text: str) -> None:
    # Temporary files go with the work, however it ends.
    code, out, err = finish(supervised("import tempfile; tempfile.mkstemp()\n" + body, tmp_path))
    assert (code, out) == (status, "") and err.startswith(text) and err.count("\n") == bool(text)
    assert list(tmp_path.iterdir()) == []


def wait_for(folder: Path) -> None:
    """Until the work says that it runs, by a file."""
    deadline = time.monotonic() + 30
    while not (folder / "started").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("to_group", [False, True])
def test_ctrl_c(tmp_path: Path, to_group: bool) -> None:
    """From a terminal it reaches parent and child, from ``kill`` the parent alone: one exception either way."""
    body = f"""
import pathlib, sys, time
try:
    pathlib.Path({str(tmp_path / "started")!r}).touch()
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.3)
    print("cleaned up", file=sys.stderr)
    return 130"""
    process = supervised(body, tmp_path)
    wait_for(tmp_path)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
    assert finish(process) == (130, "", "cleaned up\n")


def test_ctrl_c_ends_work_that_does_not_listen(tmp_path: Path) -> None:
    body = f"""
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path({str(tmp_path / "started")!r}).touch()
time.sleep(60)
return 0"""
    process = supervised(body, tmp_path)
    wait_for(tmp_path)
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, "", "bnnc: interrupted\n")


def test_work_ends_with_its_parent(tmp_path: Path) -> None:
    body = f"""
import os, pathlib, time
started = pathlib.Path({str(tmp_path)!r}) / "pid"
started.write_text(str(os.getpid()))
started.rename(started.with_name("started"))
time.sleep(60)
return 0"""
    process = supervised(body, tmp_path)
    wait_for(tmp_path)
    worker = int((tmp_path / "started").read_text())
    process.kill()
    finish(process)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}/stat").exists() and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_compile_leaves_no_artifact(tmp_path: Path, digits: Path) -> None:
    """Wherever the signal finds it: the artifact is there, whole, after exit status 0 and only then."""
    work = tmp_path / "work"
    work.mkdir()
    code = f"from bnn_compiler.cli import main; main(['compile', {str(digits)!r}, '-q', '-o', {str(work / 'x.so')!r}])"
    outcomes = []
    for delay in (0.3, 0.6, 0.9, 1.2):
        process = start(code, tmp_path)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        outcomes.append(finish(process))
        if outcomes[-1][0] != 0:
            assert [path.name for path in work.iterdir()] == []
        (work / "x.so").unlink(missing_ok=True)
    assert (1, "", "bnnc: terminated\n") in outcomes


def test_native_output_stays_off_both_streams(tmp_path: Path) -> None:
    code = """
import os, sys, warnings
from bnn_compiler.cli.streams import own_streams
with own_streams(verbose=False) as streams:
    os.write(1, b"native stdout"); os.write(2, b"native stderr"); print("python"); warnings.warn("python")
    streams.out.write("result"); streams.err.write("line")
os.write(1, b"!"); os.write(2, b"!")
"""
    assert finish(start(code, tmp_path)) == (0, "result!", "line!")


def test_verbose_shows_native_output_on_stderr(tmp_path: Path) -> None:
    code = """
import os
from bnn_compiler.cli.streams import own_streams
with own_streams(verbose=True) as streams:
    os.write(1, b"native")
    streams.out.write("result")
"""
    assert finish(start(code, tmp_path)) == (0, "result", "native")


def test_help_loads_no_heavy_module(tmp_path: Path) -> None:
    code = """
import sys
from bnn_compiler.cli.main import run
assert run(["--help"]) == 0
heavy = {"tvm", "onnx", "onnxruntime", "numpy"} & sys.modules.keys()
assert not heavy, heavy
"""
    status, out, err = finish(start(code, tmp_path))
    assert status == 0, err
    assert out.startswith("Usage: bnnc")


def test_a_reader_that_leaves_is_no_error(tmp_path: Path, digits: Path) -> None:
    command = f"from bnn_compiler.cli import main; main(['inspect', {str(digits)!r}])"
    process = start(command, tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process:
        assert process.stderr.read() == ""
