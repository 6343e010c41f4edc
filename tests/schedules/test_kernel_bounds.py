"""Kernels of binary convolutions stay inside their arguments, whose ends (or starts) border on pages without access."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.schedules.kernel_harness import runnable_isa

#: A fault kills the process, so that the kernels run in one of their own.
_PROGRAM = """
import sys
from tests.schedules.guarded_kernels import run_guarded
run_guarded(sys.argv[1], sys.argv[2])
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("side", ["after", pytest.param("before", marks=pytest.mark.slow)])
@pytest.mark.parametrize("cpu", ["znver4", "haswell"])
def test_kernels_stay_inside_their_arguments(cpu: str, side: str) -> None:
    runnable_isa(cpu)
    result = _run(cpu, side)
    assert result.returncode == 0, result.stderr


def test_the_guard_pages_catch_an_access() -> None:
    runnable_isa("znver4")
    result = _run("znver4", "provoke")
    assert result.returncode < 0, "reading past an array went unnoticed"
