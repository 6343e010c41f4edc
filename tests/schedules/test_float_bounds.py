"""Float kernels stay inside their arguments, whose ends (or starts) border on pages without access."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bnn_compiler.schedules.float_pool import PoolPlan
from tests.schedules import guarded_float_kernels
from tests.schedules.kernel_harness import runnable_isa

#: A fault kills the process, so that the kernels run in one of their own.
_PROGRAM = """
import sys
from tests.schedules.guarded_float_kernels import run_guarded
run_guarded(sys.argv[1], sys.argv[2])
"""


@pytest.mark.parametrize("side", ["after", "before"])
@pytest.mark.parametrize("cpu", ["skylake-avx512", "haswell"])
def test_kernels_stay_inside_their_arguments(cpu: str, side: str) -> None:
    runnable_isa(cpu)
    arguments = [sys.executable, "-c", _PROGRAM, cpu, side]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("lanes", [8, 16])
def test_these_pools_read_the_image(lanes: int) -> None:
    assert all(PoolPlan(geometry, "max", lanes, 2).reads_image for geometry in guarded_float_kernels.POOLS)
