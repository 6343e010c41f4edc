"""Compute constants once per load of a library instead of in every run.

    f(x)  { t = call_tir(expand, (stored constants)); … t … }

becomes

    f(x, derived_2)  { … derived_2 … }                       attribute bnnc.derived = [2]
    derive_constants() -> (…, …, call_tir(expand, (stored constants)), …)

Whoever loads the library calls ``derive_constants`` once and hands its results to the other functions as their last
arguments, behind the buffers for their results (``ReturnThroughParameters``). TVM's ``LiftTransformParams`` does the
same for parameters; here the constants stay in the module, and functions share what is derived.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Call, Constant, GlobalVar

#: On a kernel: its calls on constants are made once, at load.
DERIVES_ATTR = "bnnc.derives_constant"
#: On a Relax function: which results of ``derive_constants`` are its last parameters, in their order.
DERIVED_ATTR = "bnnc.derived"
FUNCTION = "derive_constants"
#: Names of such parameters: this and the number of the result.
DERIVED_PREFIX = "derived_"


@tvm.transform.module_pass(opt_level=0, name="LiftDerivedConstants")
class LiftDerivedConstants:
    """Move calls that derive constants out of every Relax function into ``derive_constants``.

    1. Moved are ``call_tir``s of kernels with the attribute ``bnnc.derives_constant`` whose arguments all are
       constants, bound to a variable. Others stay where they are, and run each time.
    2. Equal calls, of one function or of several, are made once.
    3. A module without such calls is left alone, so the pass may run again. Calls that appear beside a
       ``derive_constants`` of an earlier run are refused: its results are numbered already.

    Raises:
        ValueError: condition 3 does not hold.
    """

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        calls: dict[tvm_ffi.StructuralKey, int] = {}
        found: list[Call] = []
        functions: dict[GlobalVar, relax.Function] = {}
        for variable, function in sorted(module.functions.items(), key=lambda item: str(item[0].name_hint)):
            if isinstance(function, relax.Function) and variable.name_hint != FUNCTION:
                rewritten = _lift(module, function, calls, found)
                if rewritten is not None:
                    functions[variable] = rewritten
        if not found:
            return module
        if any(variable.name_hint == FUNCTION for variable in module.functions):
            raise ValueError(f"the module has a function {FUNCTION} already: lift all derived constants at once")
        builder = relax.BlockBuilder(module)
        for variable, function in functions.items():
            builder.update_func(variable, function)
        _add_derivation(builder, found)
        result = builder.get()
        return result.with_attrs(module.attrs) if module.attrs else result


def derived_of(function: relax.Function) -> tuple[int, ...]:
    """Which results of ``derive_constants`` a function takes as its last parameters."""
    attributes = function.attrs
    return tuple(int(index) for index in attributes[DERIVED_ATTR]) if DERIVED_ATTR in attributes else ()


def _lift(
    module: tvm.IRModule, function: relax.Function, calls: dict[tvm_ffi.StructuralKey, int], found: list[Call]
) -> relax.Function | None:
    """The function with derived constants as parameters, None if it has none; new calls are added to ``found``."""
    replaced: dict[relax.Var, int] = {}
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding) and _derives(module, binding.value):
                key = tvm_ffi.StructuralKey(binding.value)
                if key not in calls:
                    calls[key] = len(found)
                    found.append(binding.value)
                replaced[binding.var] = calls[key]
    if not replaced:
        return None
    indices = sorted(set(replaced.values()))
    parameters = {index: relax.Var(f"{DERIVED_PREFIX}{index}", found[index].ty) for index in indices}
    body = _Replacement({variable: parameters[index] for variable, index in replaced.items()}).visit_expr(function.body)
    lifted = relax.Function(
        [*function.params, *parameters.values()], body, function.ret_ty, function.is_pure, function.attrs
    )
    return lifted.with_attr(DERIVED_ATTR, indices)


def _derives(module: tvm.IRModule, value: relax.Expr) -> bool:
    """Rule 1."""
    if not isinstance(value, Call) or value.op != tvm.ir.Op.get("relax.call_tir"):
        return False
    kernel = module[value.args[0]]
    return DERIVES_ATTR in kernel.attrs and all(isinstance(field, Constant) for field in value.args[1].fields)


@relax.expr_functor.mutator
class _Replacement(relax.PyExprMutator):  # type: ignore[misc]
    """Drops the bindings of variables and uses parameters in their place."""

    def __init__(self, parameters: dict[relax.Var, relax.Var]) -> None:
        super().__init__()
        self.parameters = parameters

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Drop a lifted binding."""
        if binding.var not in self.parameters:
            super().visit_var_binding_(binding)

    def visit_var_(self, variable: relax.Var) -> relax.Expr:
        """Return the parameter for a lifted variable."""
        return self.parameters[variable] if variable in self.parameters else super().visit_var_(variable)

    def visit_dataflow_var_(self, variable: relax.Var) -> relax.Expr:
        """Return the parameter for a lifted variable."""
        return self.parameters[variable] if variable in self.parameters else super().visit_dataflow_var_(variable)


def _add_derivation(builder: relax.BlockBuilder, calls: Sequence[Call]) -> None:
    with builder.function(FUNCTION, []):
        with builder.dataflow():
            results = [builder.emit_output(call) for call in calls]
        builder.emit_func_output(results)
