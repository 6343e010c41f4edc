"""The ARM kernels under qemu-user, bit for bit: no TVM runtime, just the kernels and a C main linked statically.

Needs ziglang (it brings a C library for every target) and qemu-user; skips with a reason without them.
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

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.schedules.pack import pack_conv_activations, pack_dense_activations
from bnn_compiler.schedules.pack_rule import PackRule
from bnn_compiler.schedules.popcount_conv import popcount_conv2d, popcount_conv2d_constants
from bnn_compiler.schedules.popcount_dense import popcount_dense, popcount_dense_constants
from bnn_compiler.schedules.reference import (
    binarise,
    conv2d_reference,
    dense_reference,
    epilogue_reference,
    pack_conv_reference,
    pack_dense_reference,
    values_of,
)
from bnn_compiler.target import CompileTarget, parse_target
from tests.schedules.code_cases import (
    CODES,
    code_activations,
    code_parameters,
    code_rule,
    conv_case,
    dense_case,
    pack_options,
)
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
class Case:
    """A kernel, its inputs and what it must give."""

    function: Any
    inputs: list[Array]
    expected: Array


def _conv_case(
    geometry: ConvGeometry, isa: Isa, rng: np.random.Generator, *, alphabet: Any, zero_padded: bool
) -> list[Case]:
    predicate: Any = "gt"
    rule = PackRule(predicate, alphabet=alphabet)
    x = rng.choice([-1.0, 0.0, 1.0], (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
    x = x.astype(np.float32)
    signs = rng.random((geometry.out_channels, geometry.group_in_channels, *geometry.kernel)) < 0.5
    scale, bias = rng.standard_normal((2, geometry.out_channels)).astype(np.float32)
    bits = pack_conv_reference(geometry, x, rule, (), pad_code=0, fused=True)
    values = values_of(binarise(x, rule, (), fused=True), alphabet)
    z = conv2d_reference(geometry, values, signs, 0 if zero_padded or alphabet != "bipolar" else -1)
    y = epilogue_reference(z, scale.reshape(-1, 1, 1), bias.reshape(-1, 1, 1), fused=isa.fused_multiply_add)
    constants = popcount_conv2d_constants(geometry, signs, alphabet=alphabet, zero_padded=zero_padded)
    pack = pack_conv_activations(geometry, isa=isa, predicate=predicate, alphabet=alphabet)
    conv = popcount_conv2d(geometry, alphabet=alphabet, zero_padded=zero_padded, has_scale=True, has_bias=True, isa=isa)
    return [Case(pack, [x], bits), Case(conv, [bits, *constants, scale, bias], y)]


def _dense_case(rows: int, in_features: int, out_features: int, isa: Isa, rng: np.random.Generator) -> list[Case]:
    rule = PackRule("ge", "channel")
    x = rng.standard_normal((rows, in_features)).astype(np.float32)
    threshold = rng.standard_normal(in_features).astype(np.float32)
    signs = rng.random((out_features, in_features)) < 0.5
    bits = pack_dense_reference(x, rule, (threshold,), fused=True)
    z = dense_reference(values_of(binarise(x, rule, (threshold,), fused=True), "bipolar"), signs)
    pack = pack_dense_activations(rows, in_features, isa=isa, threshold="channel")
    dense = popcount_dense(
        rows, in_features, out_features, alphabet="bipolar", has_scale=False, has_bias=False, out_dtype="int32", isa=isa
    )
    constants = popcount_dense_constants(signs, alphabet="bipolar")
    return [Case(pack, [x, threshold], bits), Case(dense, [bits, *constants], z)]


def _code_cases(geometry: ConvGeometry, isa: Isa) -> list[Case]:
    """Codes of two to four bits: packed with thresholds per channel, a convolution and a matrix product of each."""
    rng = np.random.default_rng(1)
    cases = []
    for seed, name in enumerate(["-3,-1,1,3", "uneven", "1..16"]):
        rule = code_rule(CODES[name], per_channel=True, affine=True)
        x = code_activations(rng, (geometry.batch, geometry.in_channels, geometry.height, geometry.width))
        x[np.abs(x) < np.finfo(np.float32).tiny] = 0  # NEON of ARMv7 takes subnormal numbers for 0
        parameters = code_parameters(rng, rule, geometry.in_channels)
        pack = pack_conv_activations(geometry, isa=isa, pad_code=2, **pack_options(rule))
        bits = pack_conv_reference(geometry, x, rule, tuple(parameters), pad_code=2, fused=True)
        cases.append(Case(pack, [x, *parameters], bits))
        cases.append(Case(*conv_case(CODES[name], geometry, isa, seed)))
        cases.append(Case(*dense_case(CODES[name], (3, 1025, 17), isa, seed)))
    return cases


def _overflow_case(depth: int, isa: Isa) -> list[Case]:
    """Every weight disagrees with every activation."""
    signs = np.zeros((9, depth), np.bool_)
    bits = pack_dense_reference(np.ones((1, depth), np.float32), PackRule(), (), fused=True)
    dense = popcount_dense(1, depth, 9, alphabet="bipolar", has_scale=False, has_bias=False, out_dtype="int32", isa=isa)
    inputs = [bits, *popcount_dense_constants(signs, alphabet="bipolar")]
    return [Case(dense, inputs, np.full((1, 9), -depth, np.int32))]


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


def run_on(target: CompileTarget, emulator: str, zig_target: str, cases: Mapping[str, Case], folder: Path) -> bytes:
    named = {name: case.function.with_attr("global_symbol", name) for name, case in cases.items()}

    def link(output: str, objects: Sequence[str], **_: Any) -> None:
        source = folder / "main.c"
        source.write_text(_c_source(cases), encoding="utf-8")
        headers = tvm_ffi.libinfo.find_include_path()
        dlpack = tvm_ffi.libinfo.find_dlpack_include_path()
        command = [sys.executable, "-m", "ziglang", "cc", "-target", zig_target, "-static", "-O1", "-w"]
        objects = [path for path in objects if path.endswith(".o")]
        command += [f"-I{headers}", f"-I{dlpack}", str(source), *objects, "-lm", "-o", output]
        subprocess.run(command, check=True, capture_output=True, text=True)

    program = folder / "program.so"
    tvm.compile(tvm.IRModule(named), target=target.tvm_target).export_library(str(program), fcompile=link)
    stdin = b"".join(array.tobytes() for case in cases.values() for array in case.inputs)
    result = subprocess.run([emulator, str(program)], input=stdin, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_arm_kernels(machine: str, tmp_path: Path) -> None:
    target_text, emulator, zig_target = MACHINES[machine]
    if shutil.which(emulator) is None:
        pytest.skip(f"no {emulator}: apt-get install qemu-user")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang to link with: pip install ziglang")
    target = parse_target(target_text)
    isa = detect_isa(target.tvm_target)
    rng = np.random.default_rng(0)
    everything = ConvGeometry(2, 66, 11, 13, 14, (3, 2), (2, 1), (1, 0, 2, 1), (1, 2), groups=2)
    listed = [
        *_conv_case(
            ConvGeometry(1, 64, 7, 7, 9, (3, 3), pads=(1, 1, 1, 1)), isa, rng, alphabet="bipolar", zero_padded=True
        ),
        *_conv_case(everything, isa, rng, alphabet="bipolar", zero_padded=False),
        *_conv_case(everything, isa, rng, alphabet="unsigned", zero_padded=True),
        *_conv_case(everything, isa, rng, alphabet="ternary", zero_padded=True),
        *_code_cases(everything, isa),
        *_conv_case(ConvGeometry(1, 5, 1, 1, 3, (1, 1)), isa, rng, alphabet="bipolar", zero_padded=True),
        *_dense_case(1, 1025, 43, isa, rng),
        *_dense_case(6, 300, 17, isa, rng),
        *_overflow_case(76_800, isa),
        # Past the 4,095 words that NEON's 16-bit counters take.
        *_overflow_case(4_200 * 64, isa),
    ]
    cases = {f"k{index}": case for index, case in enumerate(listed)}
    output = run_on(target, emulator, zig_target, cases, tmp_path)
    for name, case in cases.items():
        data, output = output[: case.expected.nbytes], output[case.expected.nbytes :]
        found = np.frombuffer(data, case.expected.dtype).reshape(case.expected.shape)
        np.testing.assert_array_equal(found, case.expected, err_msg=name)
    assert output == b""
