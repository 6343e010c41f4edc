"""Runs a Relax module with TVM's own default pipeline: the oracle of the passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

Array = npt.NDArray[Any]


def run_by_default(module: tvm.IRModule, *inputs: Array, function: str = "main") -> Array:
    """The single output of ``function``, compiled for this machine without any pass of this project."""
    executable = relax.build(module, target=tvm.target.Target({"kind": "llvm"}))
    machine = relax.VirtualMachine(executable, tvm.cpu())
    return np.asarray(machine[function](*(tvm.runtime.tensor(array) for array in inputs)).numpy())
