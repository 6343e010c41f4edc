"""Schedules for the float PrimFuncs that fusion left."""

from __future__ import annotations

import tvm
from tvm import tirx

from bnn_compiler.schedules.float_elementwise import schedule_elementwise
from bnn_compiler.schedules.float_math import expand_math
from bnn_compiler.schedules.float_nan import keep_nan
from bnn_compiler.schedules.float_rounding import keep_roundings
from bnn_compiler.schedules.float_vector import float_vector
from bnn_compiler.schedules.isa import detect_isa

#: PrimFuncs with this attribute are finished kernels.
KERNEL_ATTR = "bnnc.kernel"


@tvm.transform.module_pass(opt_level=0, name="ScheduleFloatKernels")
class ScheduleFloatKernels:
    """Schedule every PrimFunc that is not a finished kernel. Run after ``relax.transform.FuseTIR``.

    1. PrimFuncs with attribute ``bnnc.kernel`` are left alone, as are those that are scheduled already
       (``tirx.is_scheduled``) or that have no sblocks.
    2. Elementwise producers and consumers are inlined, consumers of a float kernel into its store.
    3. No product and sum are contracted (``keep_roundings``), but for what a reduction adds up.
    4. exp, sigmoid and tanh become arithmetic.
    5. Loops over what remains are merged as far as memory layout allows, and vectorised.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        """Schedule for the vectors of ``target``."""
        self.lanes = float_vector(detect_isa(target)).lanes

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return ``module`` with its unfinished PrimFuncs scheduled."""
        updated = module.clone()
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and _wants_schedule(function):
                scheduled = schedule_elementwise(function, self.lanes)
                expanded = scheduled.with_body(expand_math(keep_roundings(keep_nan(scheduled.body))))
                updated.update_func(variable, expanded.with_attr("tirx.is_scheduled", True))
        return updated


def _wants_schedule(function: tirx.PrimFunc) -> bool:
    attrs = function.attrs
    if KERNEL_ATTR in attrs or attrs.get("tirx.is_scheduled"):
        return False
    # A body that is one single block (a call of TVM's run-time sort) has no root to schedule under.
    return isinstance(function.body, tvm.s_tir.SBlockRealize) and function.body.block.name_hint == "root"
