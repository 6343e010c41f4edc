"""Sorts and scans, which ``relax.transform.LegalizeOps`` leaves, become TVM's own definitions of them."""

from __future__ import annotations

import tvm
from tvm import relax

from bnn_compiler.constants import op_name

_SORTS = frozenset({"relax.argsort", "relax.cumprod", "relax.cumsum", "relax.sort", "relax.topk"})


@tvm.transform.module_pass(opt_level=0, name="LowerSorts")
class LowerSorts:
    """``relax.backend.DispatchSortScan`` for modules that hold such an operator.

    All others stay untouched: TVM's pass renames functions of a module that it need not rewrite.
    """

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return ``module`` with its sorts and scans lowered."""
        functions = [function for _, function in module.functions_items() if isinstance(function, relax.Function)]
        bindings = [
            binding
            for function in functions
            if isinstance(function.body, relax.SeqExpr)
            for block in function.body.blocks
            for binding in block.bindings
        ]
        if not any(op_name(getattr(binding, "value", None)) in _SORTS for binding in bindings):
            return module
        return relax.backend.DispatchSortScan()(module)
