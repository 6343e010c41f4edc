"""Kernels for ARM under qemu-user: no TVM runtime, just the kernels and a C main linked statically.

Needs ziglang (it brings a C library for every target) and qemu-user.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import tvm_ffi

from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.target import CompileTarget, parse_target
from tests.schedules.kernel_harness import Array

#: LLVM target text, emulator, zig's name of the target.
MACHINES = {
    "aarch64": ("llvm -mcpu=cortex-a72", "qemu-aarch64", "aarch64-linux-musl"),
    "armv7": ("llvm -mtriple=armv7l-linux-gnueabihf -mcpu=cortex-a7", "qemu-arm", "arm-linux-musleabihf"),
}
_DTYPES = {
    "uint64": "{kDLUInt, 64, 1}",
    "uint16": "{kDLUInt, 16, 1}",
    "int32": "{kDLInt, 32, 1}",
    "float32": "{kDLFloat, 32, 1}",
}

_MAIN = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

/* What a kernel needs of TVM's runtime; its loader fills in the two pointers. */
extern void* (*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void*);
static void* allocate(int type, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
static int release(int type, int id, void* data) { free(data); return 0; }
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) fputs(parts[i] ? parts[i] : "", stderr);
}
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) { fprintf(stderr, "%s: %s", kind, message); }

typedef int (*Kernel)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);
static DLTensor tensor(DLDataType dtype, int ndim, int64_t* shape, int is_input, size_t* bytes) {
  DLTensor result = {NULL, {kDLCPU, 0}, ndim, dtype, shape, NULL, 0};
  *bytes = dtype.bits / 8;
  for (int i = 0; i < ndim; ++i) *bytes *= shape[i];
  result.data = allocate(0, 0, *bytes, 0, 0);
  memset(result.data, 0xCD, *bytes);
  if (is_input && fread(result.data, 1, *bytes, stdin) != *bytes) exit(3);
  return result;
}
static void call(Kernel kernel, int count, DLTensor* tensors, size_t output_bytes) {
  TVMFFIAny arguments[16], result;
  memset(arguments, 0, sizeof arguments);
  memset(&result, 0, sizeof result);
  for (int i = 0; i < count; ++i) {
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  if (kernel(NULL, arguments, count, &result)) exit(4);
  fwrite(tensors[count - 1].data, 1, output_bytes, stdout);
}
"""


@dataclass(frozen=True)
class Machine:
    """What kernels are compiled for, and what links and runs them."""

    target: CompileTarget
    isa: Isa
    emulator: str
    zig_target: str


@dataclass(frozen=True)
class Case:
    """A kernel, its inputs and what it must give."""

    function: Any
    inputs: list[Array]
    expected: Array


def emulated_machine(name: str) -> Machine:
    """One of ``MACHINES``; skips the test where it cannot be emulated."""
    target_text, emulator, zig_target = MACHINES[name]
    if shutil.which(emulator) is None:
        pytest.skip(f"no {emulator}: apt-get install qemu-user")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang to link with: pip install ziglang")
    target = parse_target(target_text)
    return Machine(target, detect_isa(target.tvm_target), emulator, zig_target)


def check_on(machine: Machine, cases: Mapping[str, Case], folder: Path) -> None:
    """Build the cases into one program in ``folder``, run it, and compare every result bit for bit."""
    output = _run(machine, cases, folder)
    for name, case in cases.items():
        data, output = output[: case.expected.nbytes], output[case.expected.nbytes :]
        found = np.frombuffer(data, case.expected.dtype).reshape(case.expected.shape)
        np.testing.assert_array_equal(found, case.expected, err_msg=name)
    assert output == b""


def _run(machine: Machine, cases: Mapping[str, Case], folder: Path) -> bytes:
    named = {name: case.function.with_attr("global_symbol", name) for name, case in cases.items()}

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        source = folder / "main.c"
        source.write_text(_c_source(cases), encoding="utf-8")
        headers = tvm_ffi.libinfo.find_include_path()
        dlpack = tvm_ffi.libinfo.find_dlpack_include_path()
        command = [sys.executable, "-m", "ziglang", "cc", "-target", machine.zig_target, "-static", "-O1", "-w"]
        objects = [path for path in objects if path.endswith(".o")]
        command += [f"-I{headers}", f"-I{dlpack}", str(source), *objects, "-lm", "-o", output]
        subprocess.run(command, check=True, capture_output=True, text=True)

    program = folder / "program.so"
    tvm.compile(tvm.IRModule(named), target=machine.target.tvm_target).export_library(str(program), fcompile=link)
    stdin = b"".join(array.tobytes() for case in cases.values() for array in case.inputs)
    result = subprocess.run([machine.emulator, str(program)], input=stdin, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


def _c_source(cases: Mapping[str, Case]) -> str:
    """A main that runs the cases in order: inputs from stdin, outputs to stdout."""
    lines = [_MAIN]
    lines += [f"extern int __tvm_ffi_{name}(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);" for name in cases]
    lines += ["int main(void) {", "  __TVMBackendAllocWorkspace = allocate;", "  __TVMBackendFreeWorkspace = release;"]
    for name, case in cases.items():
        arrays = [*case.inputs, case.expected]
        lines.append(f"  {{ DLTensor t[{len(arrays)}]; size_t bytes;")
        for index, array in enumerate(arrays):
            shape = ", ".join(map(str, array.shape))
            lines.append(f"    int64_t s{index}[] = {{{shape}}};")
            is_input = int(index < len(case.inputs))
            dtype = f"(DLDataType){_DTYPES[array.dtype.name]}"
            lines.append(f"    t[{index}] = tensor({dtype}, {array.ndim}, s{index}, {is_input}, &bytes);")
        lines.append(f"    call(__tvm_ffi_{name}, {len(arrays)}, t, bytes); }}")
    return "\n".join([*lines, "  return 0;", "}"])
