"""No checks of derived constants in every call.

TVM's virtual machine checks dtype and shape of every parameter on entry. A derived constant costs 0.17 µs per call with
these checks and 0.03 µs without; the 16 of a ResNet-18 would double what a call costs beyond its kernels. The library's
own ``derive_constants`` made them, and kernels check what they are handed in any case.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import Call

from .lift_derived_constants import derived_of

_CHECKS = ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")


@tvm.transform.module_pass(opt_level=0, name="DropDerivedChecks")
class DropDerivedChecks:
    """Remove the checks of derived constants that ``relax.transform.VMShapeLower`` makes.

    1. Removed are calls of ``_CHECKS`` whose first argument is one of the last parameters, those that
       ``LiftDerivedConstants`` added. They have no result, and shapes are static, so they bind nothing.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function) and derived_of(function):
                result.update_func(variable, _without_checks(function))
        return result


def _without_checks(function: relax.Function) -> relax.Function:
    derived = set(function.params[-len(derived_of(function)) :])
    blocks = [
        relax.BindingBlock([binding for binding in block.bindings if not _checks(binding.value, derived)])
        for block in function.body.blocks
    ]
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _checks(value: relax.Expr, derived: set[relax.Var]) -> bool:
    """Rule 1."""
    if not isinstance(value, Call) or not isinstance(value.op, relax.ExternFunc):
        return False
    return str(value.op.global_symbol) in _CHECKS and value.args[0] in derived
