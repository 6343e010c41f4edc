"""The context in which kernels become machine code, in a library and where they are timed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

C_CONVENTION = 2
"""``calling_conv`` of a PrimFunc that is called as in C, with its arguments as they are.

TVM's name for it is kDeviceKernelLaunch; it is the only such convention for functions that other object files may call.
"""


#: What LLVM does again. The elimination of common subexpressions takes half the time of unrolled kernels.
_LEFT_TO_LLVM = ("tirx.CommonSubexprElim", "s_tir.HoistIfThenElse")
#: What is for the threads and memories of GPUs: these passes change nothing in a CPU's kernels, and walk all of each.
_FOR_GPUS = (
    "s_tir.InferFragment",
    "s_tir.InjectPermutedLayout",
    "s_tir.InjectSoftwarePipeline",
    "s_tir.InjectVirtualThread",
    "s_tir.LiftThreadBinding",
    "s_tir.LowerAutoCopy",
    "s_tir.LowerCrossThreadReduction",
    "s_tir.LowerThreadAllreduce",
    "s_tir.LowerVtcmAlloc",
    "s_tir.ManifestSharedMemoryLocalStage",
    "s_tir.MergeSharedMemoryAllocations",
    "s_tir.ThreadSync",
    "s_tir.TransformMmaBufferLayout",
    "s_tir.UnifyThreadBinding",
    "s_tir.VerifyVTCMLimit",
)


def code_generation() -> tvm.transform.PassContext:
    """The context in which kernels become machine code, without passes of TVM that change no code here.

    With and without them libraries are the same bytes; together they take a fifth of the time before LLVM.
    """
    return tvm.transform.PassContext(disabled_pass=[*_LEFT_TO_LLVM, *_FOR_GPUS])


@tvm.transform.module_pass(opt_level=0, name="FinishPlainFunctions")
class FinishPlainFunctions:
    """Give every PrimFunc of ``C_CONVENTION`` a device and a result.

    1. What it allocates is on device 0. TVM takes other functions' device from their tensors; these have pointers.
    2. It returns 0. Behind what it allocates: TVM frees at the end of the statements among which it allocates, so a
       return among them would leave everything allocated.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        zero = tirx.const(0, "int32")
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and int(function.attrs["calling_conv"]) == C_CONVENTION:
                work = tirx.AttrStmt(zero, "device_id", zero, function.body)
                result.update_func(variable, function.with_body(tirx.SeqStmt([work, tirx.stmt.Return(zero)])))
        return result


def register_pipeline(name: str, passes: Sequence[tvm.transform.Pass]) -> str:
    """Give TVM's usual lowering of PrimFuncs, then ``passes`` and ``FinishPlainFunctions``, a name; return the name."""

    def pipeline() -> tuple[Any, Any, Any]:
        lower, finalize_host, finalize_device = default_s_tir_pipeline()
        finish = tvm.transform.Sequential([*passes, FinishPlainFunctions(), finalize_host()])
        return lower, lambda: finish, finalize_device

    register_tir_pipeline(name, pipeline)
    return name


LIBRARY_PIPELINE = register_pipeline("bnnc", [])
"""TVM's name for the pipeline of kernels."""
