"""Constants that repeat along an axis are broadcast: a bias of [1, C, H, W], the same on all pixels, is [1, C, 1, 1].

Exporters expand constants to the shape of what they are added to. Folded back they take less of the library and of the
caches, and recognition sees thresholds and biases per channel.

Conditions: (1) the operator is element-wise with two operands; (2) one operand is a constant, the other has the shape
of the result, so that the constant's own axes are not needed for it; (3) along an axis, all slices are the same bits.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bnn_compiler.constants import BINARY, Array, op_name, static_shape


def without_repetition(array: Array) -> Array:
    """``array`` with the axes along which it repeats cut to 1 (3)."""
    bits = np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))
    for axis, extent in enumerate(array.shape):
        first = bits.take([0], axis) if extent else bits
        if extent > 1 and np.array_equal(bits, np.broadcast_to(first, bits.shape)):
            bits = first
    return np.ascontiguousarray(bits).view(array.dtype)


@relax.expr_functor.mutator
class _Folder(relax.PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: Call) -> relax.Expr:
        """Fold the constant operand of an element-wise call."""
        if op_name(call) in BINARY and len(call.args) == 2:  # 1
            arguments = list(call.args)
            for index, other in ((0, 1), (1, 0)):
                folded = _folded(arguments[index])
                if folded is not None and static_shape(arguments[other]) == static_shape(call):  # 2
                    arguments[index] = folded
            call = relax.Call(call.op, arguments, call.attrs, call.ty_args)
        return super().visit_call_(call)


def _folded(expr: relax.Expr) -> relax.Expr | None:
    if not isinstance(expr, tvm.ir.GenericConst):
        return None
    array = np.asarray(expr.value.numpy())
    if array.size < 2 or array.dtype.kind not in "fiub":
        return None
    found = without_repetition(array)
    return None if found.shape == array.shape else relax.const(found, str(found.dtype))


@tvm.transform.module_pass(opt_level=0, name="FoldBroadcastConstants")
class FoldBroadcastConstants:
    """See the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function of ``module``."""
        updated = tvm.IRModule(module.functions, attrs=module.attrs)
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                updated[variable] = _Folder(updated).visit_expr(function)
        return updated
