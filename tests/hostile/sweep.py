"""Hostile files, each in a process of its own: ``python -m tests.hostile.sweep [--size N] [--only TEXT] [COMMAND …]``.

Every file is compiled, or refused in one line with exit status 1 or 2, within the limits of time and memory below.
Findings are anything else. The exit status is 1 if there was any.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .bombs import BOMBS
from .paths import PATHS
from .scaled import SCALED, Graph

ROOT = Path(__file__).resolve().parent.parent.parent
TIME_LIMIT = 60.0
MEMORY_LIMIT = 2 << 30
"""Bytes beyond what the libraries take (``LIBRARIES``) and ``FILE_COPIES`` times the file."""
LIBRARIES = 500 << 20
FILE_COPIES = 8
ADDRESS_SPACE = 12 << 30
LONGEST_LINE = 1500
_UNEXPECTED = ("internal error", "crashed", "killed", "Traceback")

Case = Callable[[Path], Path]
"""Makes what is needed in a folder; the path to hand to the compiler."""


@dataclass(frozen=True)
class End:
    """How a command ended; ``finding`` says what is wrong with that, if anything."""

    status: int
    seconds: float
    peak: int
    line: str
    finding: str


def run(command: str, path: Path, folder: Path, *options: str, time_limit: float = TIME_LIMIT) -> End:
    """Run ``bnnc COMMAND PATH`` with ``folder`` as the place for results."""
    words = [sys.executable, "-m", "bnn_compiler.cli", command, str(path).replace("\0", "�"), "-q", *options]
    words += ["-o", str(folder / "model.so")] if command == "compile" else []
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        resource.prlimit(process.pid, resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
        status, usage = _wait(process.pid, start + time_limit)
        process.returncode = status
        errors.seek(0)
        lines = errors.read(1 << 20).decode(errors="replace").splitlines()
    seconds = time.monotonic() - start
    peak = usage.ru_maxrss << 10
    size = path.stat().st_size if "\0" not in str(path) and len(path.name) < 256 and path.is_file() else 0
    finding = _finding(status, lines, peak, FILE_COPIES * size)
    return End(status, seconds, peak, lines[0] if lines else "", finding)


def _wait(process: int, deadline: float) -> tuple[int, resource.struct_rusage]:
    """Exit status and use of resources; the process group is killed at the deadline."""
    late = False
    while True:
        found, status, usage = os.wait4(process, os.WNOHANG)
        if found:
            return -signal.SIGALRM if late else os.waitstatus_to_exitcode(status), usage
        if time.monotonic() > deadline:
            late = True
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.02)


def _finding(status: int, lines: Sequence[str], peak: int, own: int) -> str:
    if status == -signal.SIGALRM:
        return "no answer in time"
    if status not in (0, 1, 2):
        return f"exit status {status}"
    if status and len(lines) != 1:
        return f"{len(lines)} lines of error"
    if any(word in line for line in lines for word in _UNEXPECTED):
        return "not refused, but failed"
    if any(len(line) > LONGEST_LINE for line in lines):
        return "a long line"
    if peak > LIBRARIES + MEMORY_LIMIT + own:
        return "much memory"
    return ""


def _write(make: Callable[[], bytes], folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(make())
    return path


def _scaled(build: Graph, size: int, folder: Path) -> Path:
    return _write(lambda: bytes(build(size).SerializeToString()), folder)


def cases(sizes: Sequence[int]) -> Mapping[str, Case]:
    """All cases by name."""
    found: dict[str, Case] = {
        f"{name} {size}": partial(_scaled, build, size) for name, build in SCALED.items() for size in sizes
    }
    found |= {name: partial(_write, make) for name, make in BOMBS.items()}
    found.update(PATHS)
    return found


def run_cases(
    found: Mapping[str, Case], commands: Sequence[str], *options: str, time_limit: float = TIME_LIMIT
) -> Iterator[tuple[str, str, End]]:
    """Each case under each command, one after the other."""
    for name, make in found.items():
        with tempfile.TemporaryDirectory(prefix="bnnc-hostile-") as directory:
            path = make(Path(directory))
            for command in commands:
                yield name, command, run(command, path, Path(directory), *options, time_limit=time_limit)


def main() -> int:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commands", nargs="*", default=["inspect", "compile"], metavar="COMMAND")
    parser.add_argument("--size", type=int, action="append", help="of scaled graphs  [default: 1000, 10000, 100000]")
    parser.add_argument("--only", action="append", default=[], help="cases whose name holds this text")
    parser.add_argument("--limits", help="handed on")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT)
    options = parser.parse_args()
    chosen = {
        name: case
        for name, case in cases(options.size or [1_000, 10_000, 100_000]).items()
        if not options.only or any(text in name for text in options.only)
    }
    more = [] if options.limits is None else ["--limits", options.limits]
    failed = 0
    for name, command, end in run_cases(chosen, options.commands, *more, time_limit=options.time_limit):
        failed += bool(end.finding)
        print(
            f"{name:36} {command:8} {end.status:3} {end.seconds:7.1f} s {end.peak / 2**20:7.0f} MiB  "
            f"{'! ' + end.finding + '  ' if end.finding else ''}{end.line[:160]}",
            flush=True,
        )
    print(f"{failed} findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
