"""Compiles kernels for one CPU, several per build, and runs them on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi
from numpy.typing import NDArray

from bnn_compiler.code_generation import code_generation
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.target import CompileTarget, parse_target

Array = NDArray[Any]

#: One CPU per way of counting bits.
X86_CPUS = ["znver4", "skylake-avx512", "haswell", "x86-64"]


@cache
def cpu_target(cpu: str) -> CompileTarget:
    return parse_target(f"llvm -mcpu={cpu}")


def runnable_isa(cpu: str) -> Isa:
    """The Isa of ``cpu``; skips the test where this machine cannot run its code."""
    target = cpu_target(cpu)
    if not target.is_host:
        pytest.skip(f"this machine cannot run code for {cpu}")
    return detect_isa(target.tvm_target)


class CompiledKernels:
    """Kernels of one build, called by name."""

    def __init__(self, cpu: str, functions: Mapping[str, Any]) -> None:
        named = {name: function.with_attr("global_symbol", name) for name, function in functions.items()}
        with code_generation():
            self._executable = tvm.compile(tvm.IRModule(named), target=cpu_target(cpu).tvm_target)

    def run(self, name: str, inputs: list[Array], shape: tuple[int, ...], dtype: str) -> Array:
        """Call a kernel; its output starts as junk, so that an element left out shows."""
        junk = np.full(shape, -12345, np.int64).astype(dtype)
        output = tvm.runtime.tensor(junk)
        self._executable[name](*(tvm.runtime.tensor(array) for array in inputs), output)
        return np.asarray(output.numpy())

    def run_all(self, name: str, inputs: list[Array], like: list[Array]) -> list[Array]:
        """Call a kernel of several results, of the shapes and types of ``like``."""
        outputs = [tvm.runtime.tensor(np.full(array.shape, -12345, np.int64).astype(array.dtype)) for array in like]
        self._executable[name](*(tvm.runtime.tensor(array) for array in inputs), *outputs)
        return [np.asarray(output.numpy()) for output in outputs]

    def run_in_place(self, name: str, inputs: list[Array], output: Array) -> None:
        """Call a kernel on the arrays themselves, at whatever alignment they have."""
        views = [tvm_ffi.from_dlpack(array, require_alignment=1) for array in [*inputs, output]]
        self._executable[name](*views)

    def assembly(self) -> str:
        """The assembly of the build."""
        return str(self._executable.mod.inspect_source("asm"))


def misaligned(array: Array) -> Array:
    """A copy whose data start at one element past a 64-byte boundary."""
    itemsize = array.dtype.itemsize
    raw = np.zeros(array.nbytes + 64 + itemsize, np.uint8)
    start = -raw.ctypes.data % 64 + itemsize
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == itemsize
    return copy
