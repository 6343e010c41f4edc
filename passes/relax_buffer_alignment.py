"""Let kernels that touch a caller's memory accept any address.

TVM declares every buffer 64-byte aligned: generated code asserts it on entry and uses aligned vector moves. That holds
for what the runtime allocates (intermediates, constants) but not for NumPy arrays, which are 16- or 32-byte aligned or,
as slices, aligned only to their element.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import IRModule, relax, tirx


@tvm.transform.module_pass(opt_level=0, name="RelaxBufferAlignment")
class RelaxBufferAlignment:
    """Declare kernel parameters that may be a graph input or output aligned to their element only.

    Wants kernels called directly (after ``relax.transform.CallTIRRewrite`` and ``ReturnThroughParameters``).

    1. A Relax parameter may be the caller's memory.
    2. So may anything computed from such a value other than by a kernel: aliases, tuples and their items, reshapes and
       other views, results of Relax functions. (A kernel writes into its last arguments and returns nothing.)
    3. A kernel parameter is relaxed if at any call site such a value is passed for it; a lower alignment is never wrong
       for the other call sites.
    """

    def transform_module(self, module: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass to a copy of ``module``."""
        result = module.clone()
        for global_var, indices in exposed_parameters(module).items():
            result.update_func(global_var, _relax_parameters(module[global_var], indices))
        return result


def exposed_parameters(module: IRModule) -> dict[tvm.ir.GlobalVar, set[int]]:
    """Return the positions at which kernels meet a caller's memory at any call site; only kernels with some are there.

    Rules 1 to 3 of ``RelaxBufferAlignment``. What it says of a kernel's other parameters: they are constants of the
    library or memory that the runtime allocates.
    """
    exposed: dict[tvm.ir.GlobalVar, set[int]] = {}
    for _, function in module.functions_items():
        if isinstance(function, relax.Function):
            _collect_exposed_parameters(module, function, exposed)
    return exposed


def _collect_exposed_parameters(
    module: IRModule, function: relax.Function, exposed: dict[tvm.ir.GlobalVar, set[int]]
) -> None:
    """Add to ``exposed`` each kernel called by ``function`` with the positions at which it meets a caller's memory."""
    foreign: set[relax.Var] = set(function.params)

    def is_foreign(expression: relax.Expr) -> bool:
        if isinstance(expression, relax.Var):
            return expression in foreign
        if isinstance(expression, relax.Tuple):
            return any(is_foreign(field) for field in expression.fields)
        if isinstance(expression, relax.TupleGetItem):
            return is_foreign(expression.tuple_value)
        if isinstance(expression, relax.Call):
            return any(is_foreign(argument) for argument in expression.args)
        return False

    for block in function.body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and _is_kernel(module, call.op):
                positions = {position for position, argument in enumerate(call.args) if is_foreign(argument)}
                if positions:
                    exposed.setdefault(call.op, set()).update(positions)
            elif is_foreign(call):
                foreign.add(binding.var)


def _is_kernel(module: IRModule, callee: relax.Expr) -> bool:
    return isinstance(callee, tvm.ir.GlobalVar) and isinstance(module[callee], tirx.PrimFunc)


def _relax_parameters(kernel: tirx.PrimFunc, indices: set[int]) -> tirx.PrimFunc:
    renamed: dict[tirx.Var, tirx.Var] = {}
    for index in sorted(indices):
        buffer = kernel.params[index]
        if tirx.buffer.is_buffer_var(buffer):
            renamed[buffer] = tirx.decl_buffer(
                buffer.ty.shape,
                buffer.ty.dtype,
                buffer.name,
                strides=buffer.ty.strides,
                elem_offset=buffer.ty.elem_offset,
                scope=buffer.scope(),
                data_alignment=max(1, tvm.DataType(str(buffer.ty.dtype)).bits // 8),
                offset_factor=buffer.ty.offset_factor,
                layout=buffer.ty.layout,
            )
    body = tvm_ffi.structural_map(kernel.body, (tvm.ir.Var, lambda var: renamed.get(var, var)))
    params = [renamed.get(param, param) for param in kernel.params]
    return tirx.PrimFunc(params, body, kernel.ret_type, kernel.attrs, kernel.span)
