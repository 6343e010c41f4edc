"""Processes that are killed or interrupted at random moments: nothing half-written, nothing left, later runs fine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from bnn_compiler.artifact import read_manifest
from bnn_compiler.errors import BnncError
from bnn_compiler.train.checkpoint import load_checkpoint
from tests.conftest import ROOT

from .trial import Budget, Result, finish, left_in, start

DIGITS = str(ROOT / "examples" / "digits.onnx")
_BNNC = ["-m", "bnn_compiler.cli"]
#: A run is left to end after so many that were killed.
_ENDS = 25


@dataclass(frozen=True)
class Victim:
    """``words`` start a process that is killed, ``end_words`` one that comes to its end.

    ``outputs`` are its files, with what tells whether one is whole.
    """

    words: Sequence[str]
    end_words: Sequence[str]
    outputs: Mapping[str, Callable[[Path], object]]


def _json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


_COMPILE = [*_BNNC, "compile", DIGITS, "-q", "--report", "report.json", "-o", "x.so"]
_TREE = [*_BNNC, "tree", DIGITS, "-q", "--no-cache", "--layer", "dense/Gemm", "--json", "t.json", "--plot", "t.svg"]
_TRAIN = ["-m", "tests.endurance.training", "checkpoint.pt"]
COMPILE = Victim(_COMPILE, _COMPILE, {"x.so": read_manifest, "report.json": _json})
TREE = Victim(_TREE, _TREE, {"t.json": _json, "t.svg": ElementTree.parse})
TRAIN = Victim([*_TRAIN, "1000000"], [*_TRAIN, "1"], {"checkpoint.pt": load_checkpoint})


def killed_compilations(budget: Budget) -> Result:
    """SIGKILL to the command, to its child, or to both."""
    return _killed(Result("compilations killed"), COMPILE, budget)


def killed_trees(budget: Budget) -> Result:
    """Likewise."""
    return _killed(Result("tree searches killed"), TREE, budget)


def killed_trainings(budget: Budget) -> Result:
    """Training that writes a checkpoint after every epoch, and goes on from it."""
    result = Result("trainings killed")
    if importlib.util.find_spec("torch") is None:
        result.figure = "PyTorch is not installed"
        return result
    return _killed(result, TRAIN, budget)


def interrupted_compilations(budget: Budget) -> Result:
    """Ctrl-C, once or twice: one line, exit status 130, nothing left."""
    result, moments = Result("compilations interrupted"), budget.random()
    work, scratch = _folders(budget)
    longest = 0.0
    life = _run_to_its_end(COMPILE, work, scratch, result)
    for _ in budget.turns():
        process = start(COMPILE.words, scratch, work)
        # Before half a second Python itself is being loaded, and its own words come.
        time.sleep(max(0.5, _moment(moments, life)))
        for _ in range(moments.choice((1, 1, 2))):
            _signal(process.pid, moments.choice((False, True)), signal.SIGINT)
        asked = time.monotonic()
        status, _, err = finish(process, result)
        longest = max(longest, time.monotonic() - asked)
        result.tried += 1
        result.expect((status, err.count("\n")) in {(0, 0), (130, 1)}, f"status {status}: {err[-300:]}")
        result.expect(not left_in(work, scratch), f"left: {left_in(work, scratch)}")
        _check_outputs(COMPILE, work, result, whole_run=status == 0)
    result.figure = f"longest way out {longest:.1f} s"
    return result


def _killed(result: Result, victim: Victim, budget: Budget) -> Result:
    moments = budget.random()
    work, scratch = _folders(budget)
    written = 0
    life = _run_to_its_end(victim, work, scratch, result)
    for turn in budget.turns():
        process = start(victim.words, scratch, work)
        time.sleep(_moment(moments, life))
        _signal(process.pid, moments.choice((False, True)), signal.SIGKILL)
        finish(process, result)
        result.tried += 1
        written += _check_outputs(victim, work, result)
        if turn % _ENDS == _ENDS - 1:
            life = _run_to_its_end(victim, work, scratch, result)
    _run_to_its_end(victim, work, scratch, result)
    if not result.failures:
        result.figure = f"{written} files were there, all of them whole"
    return result


def _folders(budget: Budget) -> tuple[Path, Path]:
    work, scratch = budget.folder / "work", budget.folder / "tmp"
    work.mkdir(parents=True)
    scratch.mkdir()
    return work, scratch


def _moment(moments: random.Random, life: float) -> float:
    """Seconds after which to kill: any, but every other time in the last part, where files are written."""
    return life * (moments.uniform(0.9, 1.05) if moments.random() < 0.5 else moments.uniform(0.05, 1.0))


def _run_to_its_end(victim: Victim, work: Path, scratch: Path, result: Result) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    status, _, err = finish(start(victim.end_words, scratch, work), result)
    result.expect(status == 0, f"the run after it ended with {status}: {err[-300:]}")
    _check_outputs(victim, work, result, whole_run=True)
    result.expect(not left_in(work, scratch), f"left: {left_in(work, scratch)}")
    return time.monotonic() - began


def _check_outputs(victim: Victim, work: Path, result: Result, *, whole_run: bool = False) -> int:
    """Look at the files that are there, and remove them (but for a checkpoint, from which training goes on)."""
    present = [name for name in victim.outputs if (work / name).exists()]
    result.expect(not whole_run or len(present) == len(victim.outputs), "a run to its end wrote too little")
    for name in present:
        try:
            victim.outputs[name](work / name)
        except (BnncError, ValueError, ElementTree.ParseError) as error:
            result.failures.append(f"{name} is not whole: {error}")
        if victim is not TRAIN:
            (work / name).unlink()
    return len(present)


def _signal(pid: int, to_group: bool, number: int) -> None:
    """To a command, or to the child that does its work as well."""
    with contextlib.suppress(ProcessLookupError):
        (os.killpg if to_group else os.kill)(pid, number)
