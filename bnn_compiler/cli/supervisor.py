"""The work runs in a child process, so that whatever happens to it ends in one line on stderr.

Compilers and generated kernels are native code: a bug there aborts the process, and the kernel kills one that takes
more memory than there is. The parent imports nothing heavy, waits, turns a child's death by signal into a message and
an exit status, and removes the child's temporary files. It hands signals on; a child that is deep in native code does
not see Ctrl-C, and is killed after ``GRACE_SECONDS``. A child that native code ends without a word (LLVM does, on a
full disk) has not reported its status through a pipe; what native code printed is in memory that both see.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from bnn_compiler.errors import ScratchError
from bnn_compiler.plain_text import plain
from bnn_compiler.scratch_folder import make_scratch_folder, sweep

INTERRUPTED = 130
GRACE_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Child:
    """Signal handlers of the parent; ``pid`` is set once the child runs."""

    def __init__(self) -> None:
        self.pid = 0
        self.interrupted = False

    def hand_on(self, number: int, _: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self._kill(number)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def end(self, _number: int, _: FrameType | None) -> None:
        self._kill(signal.SIGKILL)

    def _kill(self, number: int) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def supervise(work: Callable[[], int]) -> NoReturn:
    """Run ``work`` in a child and exit with what it returns."""
    try:
        sweep()
        scratch, lock = make_scratch_folder()
    except ScratchError as error:
        sys.stderr.write(f"bnnc: {error}\n")
        sys.exit(error.exit_status)
    sys.stdout.flush()
    sys.stderr.flush()
    child = _Child()
    native, (reports, reporting) = native_output(), os.pipe()
    # Installed before the fork: no signal finds the parent without them.
    for number in _HANDED_ON:
        signal.signal(number, child.hand_on)
    signal.signal(signal.SIGALRM, child.end)
    try:
        child.pid = os.fork()
        if child.pid == 0:
            os.close(reports)
            _run_child(work, str(scratch), reporting)
        os.close(reporting)
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)
    if not os.read(reports, 1):
        why = "interrupted" if child.interrupted else _describe_death(-status, _last_line(native))
        sys.stderr.write(f"bnnc: {why}\n")
        status = INTERRUPTED if child.interrupted else 1
    sys.exit(status)


@functools.cache
def native_output() -> int:
    """A file in memory, shared with children, for what native code prints."""
    return os.memfd_create("bnnc-native-output")


def _last_line(descriptor: int) -> str:
    """The last of what was printed, empty where nothing was."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 4096, max(0, size - 4096)).decode(errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return plain(lines[-1], 300) if lines else ""


def _run_child(work: Callable[[], int], scratch: str, reporting: int) -> NoReturn:
    status = 1
    try:
        for number in _HANDED_ON:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, _interrupt_once)
        with contextlib.suppress(OSError, AttributeError):
            # Linux: nothing keeps computing when the parent is killed outright.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        tempfile.tempdir = scratch
        os.environ["TMPDIR"] = scratch
        status = work()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(reporting, b"x")
    finally:
        # Not sys.exit: the parent's exit handlers are not this process's.
        os._exit(status)


def _interrupt_once(number: int, _: FrameType | None) -> None:
    """A terminal sends Ctrl-C to parent and child and the parent hands it on: the second must not disturb clean-up."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _describe_death(number: int, last_line: str) -> str:
    """By a signal, or by 0 where it ended itself; ``last_line`` is what native code printed last."""
    said = f": {last_line}" if last_line else ""
    if number <= 0:
        return f"the compiler ended inside native code{said}; is there room in TMPDIR ({tempfile.gettempdir()})?"
    if number == signal.SIGKILL:
        return "the compiler was killed, perhaps for want of memory; close other programs or take a smaller input shape"
    if number in (signal.SIGTERM, signal.SIGHUP):
        return "terminated"
    name = signal.Signals(number).name
    return f"the compiler crashed ({name}{said}); this is a bug, please report it with the model and the output of -v"
