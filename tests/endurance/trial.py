"""What a trial is given and what it gives."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

#: Seconds after which a process that should have ended counts as hung.
HANGING = 120.0


@dataclass
class Result:
    """A line of the table: how often something was tried, what went wrong, and what else was measured."""

    name: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)
    figure: str = ""

    def expect(self, holds: bool, failure: str) -> None:
        """Count ``failure`` unless ``holds``."""
        if not holds:
            self.failures.append(failure)


class Turns:
    """Counts from 0 until ``seconds`` are over, but to ``least`` at least."""

    def __init__(self, seconds: float, least: int) -> None:
        self._deadline = time.monotonic() + seconds
        self._least = least
        self._next = 0

    @classmethod
    def lasting(cls, seconds: float, least: int = 1) -> Turns:
        """From now on."""
        return cls(seconds, least)

    def __iter__(self) -> Turns:
        """Itself."""
        return self

    def __next__(self) -> int:
        """The next number."""
        if self._next >= self._least and time.monotonic() >= self._deadline:
            raise StopIteration
        self._next += 1
        return self._next - 1


@dataclass(frozen=True)
class Budget:
    """``seconds`` for a trial, a seed of its moments, and a folder that does not exist yet."""

    seconds: float
    seed: int
    folder: Path

    def turns(self, least: int = 1) -> Turns:
        """Numbers from 0 until the time is over."""
        return Turns.lasting(self.seconds, least)

    def random(self) -> random.Random:
        """The trial's source of moments and choices."""
        return random.Random(self.seed)


def start(words: Sequence[str], scratch: Path, work: Path, **environment: str) -> subprocess.Popen[str]:
    """Python with arguments in the folder ``work``, in a session of its own, temporary files under ``scratch``."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), **environment},
    )


def finish(process: subprocess.Popen[str], result: Result, seconds: float = 0.0) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; one that hangs after ``seconds`` is killed and counted."""
    try:
        out, err = process.communicate(timeout=seconds + HANGING)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        result.failures.append("no end")
    return process.returncode, out, err


def left_in(*folders: Path) -> list[str]:
    """Names of what the compiler should have removed."""
    return sorted(path.name for folder in folders for path in folder.iterdir() if "bnnc" in path.name)
