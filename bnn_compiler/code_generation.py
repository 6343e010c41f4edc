"""The context in which kernels become machine code, in a library and where they are timed alone."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir.pipeline import default_s_tir_pipeline
from tvm.tirx.compilation_pipeline import register_tir_pipeline

LIBRARY_PIPELINE = "bnnc"
"""TVM's name for its usual lowering of PrimFuncs and ``PlainFunctionDevice``."""

C_CONVENTION = 2
"""``calling_conv`` of a PrimFunc that is called as in C, with its arguments as they are.

TVM's name for it is kDeviceKernelLaunch; it is the only such convention for functions that other object files may call.
"""


def code_generation() -> tvm.transform.PassContext:
    """The context in which kernels become machine code.

    TVM's elimination of common subexpressions takes half the time of unrolled kernels, and LLVM does it again.
    """
    return tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"])


@tvm.transform.module_pass(opt_level=0, name="PlainFunctionDevice")
class PlainFunctionDevice:
    """Say in every PrimFunc of ``C_CONVENTION`` that it runs on device 0: TVM asks for what it allocates.

    Of other functions TVM takes the device from their tensors; these have pointers only.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        zero = tirx.const(0, "int32")
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and int(function.attrs["calling_conv"]) == C_CONVENTION:
                body = tirx.AttrStmt(zero, "device_id", zero, function.body)
                result.update_func(variable, function.with_body(body))
        return result


def _library_pipeline() -> tuple[Any, Any, Any]:
    lower, finalize_host, finalize_device = default_s_tir_pipeline()
    return lower, lambda: tvm.transform.Sequential([PlainFunctionDevice(), finalize_host()]), finalize_device


register_tir_pipeline(LIBRARY_PIPELINE, _library_pipeline)
