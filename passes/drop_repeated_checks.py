"""No checks of arguments in the virtual machine where something else makes them.

TVM's virtual machine checks dtype and shape of every parameter on entry, which takes 0.17 µs per parameter and call:
the 16 derived constants of a ResNet-18 would double what a call costs beyond its kernels.
"""

from __future__ import annotations

from collections.abc import Set

import tvm
from tvm import relax
from tvm.ir import Call

from .lift_derived_constants import derived_of
from .run_in_one_call import CHECKED_ATTR

_CHECKS = ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")


@tvm.transform.module_pass(opt_level=0, name="DropRepeatedChecks")
class DropRepeatedChecks:
    """Remove checks that ``relax.transform.VMShapeLower`` makes. They have no result, and static shapes bind nothing.

    1. Derived constants, the last parameters, those that ``LiftDerivedConstants`` added: the library's own
       ``derive_constants`` made them, and kernels check what they are handed in any case.
    2. All parameters of a function with the attribute ``CHECKED_ATTR``: the one PrimFunc that it calls checks them.
       The register for shapes, which nothing else reads, goes with them.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        for variable, function in module.functions.items():
            if not isinstance(function, relax.Function):
                continue
            if function.attrs and CHECKED_ATTR in function.attrs:
                result.update_func(variable, _without_checks(function, set(function.params), registers=True))
            elif derived_of(function):
                derived = set(function.params[-len(derived_of(function)) :])
                result.update_func(variable, _without_checks(function, derived, registers=False))
        return result


def _without_checks(function: relax.Function, checked: Set[relax.Var], *, registers: bool) -> relax.Function:
    def dropped(value: relax.Expr) -> bool:
        if registers and isinstance(value, Call) and value.op == tvm.ir.Op.get("relax.null_value"):
            return True
        if not isinstance(value, Call) or not isinstance(value.op, relax.ExternFunc):
            return False
        return str(value.op.global_symbol) in _CHECKS and value.args[0] in checked

    blocks = [
        relax.BindingBlock([binding for binding in block.bindings if not dropped(binding.value)])
        for block in function.body.blocks
    ]
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
