"""Runs cases in a process of their own, so that a crash of native code, a hang or a flood of memory is an outcome.

The process lives on from case to case, and is replaced after an outcome that it did not survive. It reads a length and
a payload from its standard input, and answers with a length and a text on what was its standard output; what libraries
print goes to standard error, which is dropped.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
_LENGTH = struct.Struct("<Q")
_START_LIMIT = 120.0
"""Seconds until the libraries are imported, on a busy machine."""


@dataclass(frozen=True)
class Outcome:
    """``text`` is the function's answer; where the process did not give one, ``fate`` says why."""

    text: str
    fate: str = ""

    @property
    def survived(self) -> bool:
        """Whether the process answered."""
        return not self.fate


class IsolatedWorker:
    """A process that applies ``function`` (``"module:name"``, bytes to text) to payloads.

    ``time_limit`` is in seconds per case, ``memory_limit`` in bytes of address space beyond what the libraries take.
    """

    def __init__(self, function: str, *, time_limit: float, memory_limit: int) -> None:
        self._function = function
        self._time_limit = time_limit
        self._memory_limit = memory_limit
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> IsolatedWorker:
        """Nothing is started before the first case."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._end()

    def run(self, payload: bytes) -> Outcome:
        """Apply the function to one payload."""
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(_LENGTH.pack(len(payload)) + payload)
            process.stdin.flush()
            return Outcome(self._receive(process, self._time_limit).decode())
        except TimeoutError:
            self._end()
            return Outcome("", f"no answer within {self._time_limit:g} s")
        except (EOFError, BrokenPipeError):
            status = process.wait(timeout=10)
            self._end()
            name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return Outcome("", f"the process ended: {name}")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.isolation", self._function, str(self._memory_limit)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._process = process
        assert self._receive(process, _START_LIMIT) == b"ready"
        return process

    def _receive(self, process: subprocess.Popen[bytes], limit: float) -> bytes:
        deadline = time.monotonic() + limit
        (length,) = _LENGTH.unpack(_read(process, _LENGTH.size, deadline))
        return _read(process, length, deadline)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with contextlib.suppress(BrokenPipeError):  # a payload that was not sent in full
                    stream.close()


def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    assert process.stdout is not None
    received = b""
    while len(received) < size:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), size - len(received))
        if not part:
            raise EOFError
        received += part
    return received


def _serve(function: Callable[[bytes], str], memory_limit: int) -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Beyond what is mapped by now: libraries reserve far more address space than they use.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_limit, used + memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("error")

    def answer(text: bytes) -> None:
        answers.write(_LENGTH.pack(len(text)) + text)
        answers.flush()

    answer(b"ready")
    while header := requests.read(_LENGTH.size):
        answer(function(requests.read(_LENGTH.unpack(header)[0])).encode(errors="replace"))


if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    _serve(getattr(importlib.import_module(module), name), int(sys.argv[2]))
