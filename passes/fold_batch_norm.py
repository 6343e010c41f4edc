"""Inference batch-norm becomes one multiply and one add per channel.

y = (x − μ)/√(σ² + ε)·γ + β is rewritten as x·s + t with s = γ/√(σ² + ε) and t = β − μ·s, computed in float32 as ONNX
Runtime does, so that a sign behind it sees the same rounding.

Conditions: (1) the four parameters are constants; (2) only the normalised output is used, not the running statistics;
(3) the module is for inference.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, TupleGetItem, Var

from bnn_compiler.constants import ConstantEvaluator, op_name


@relax.expr_functor.mutator
class _Folder(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(module)
        self._bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self._constants = ConstantEvaluator(self._bindings)
        self._count = 0

    def _scaled_name(self, item: TupleGetItem) -> str:
        source = item.tuple_value.name if isinstance(item.tuple_value, Var) else "batch_norm"
        self._count += 1
        return f"{source}_scaled_{self._count}"

    def visit_tuple_getitem_(self, item: TupleGetItem) -> relax.Expr:
        """Replace the first field of a batch_norm by its affine form."""
        call = self._bindings.get(item.tuple_value) if isinstance(item.tuple_value, Var) else item.tuple_value
        if item.index != 0 or not isinstance(call, Call) or op_name(call) != "relax.nn.batch_norm":
            return super().visit_tuple_getitem_(item)
        parameters = [self._constants.value(arg) for arg in call.args[1:5]]
        if bool(call.attrs.training) or any(parameter is None for parameter in parameters):
            return super().visit_tuple_getitem_(item)
        gamma, beta, mean, variance = parameters
        assert gamma is not None and beta is not None and mean is not None and variance is not None
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + variance.dtype.type(call.attrs.epsilon))
            shift = beta - mean * scale
        rank = len(call.args[0].ty.shape)
        shape = [1] * rank
        shape[int(call.attrs.axis)] = -1
        data = self.visit_expr(call.args[0])
        # Named here: the builder's own names may be those of other variables, which the front end's map speaks of.
        scaled = self.builder_.emit(
            relax.op.multiply(data, relax.const(scale.reshape(shape), str(scale.dtype))), self._scaled_name(item)
        )
        return relax.op.add(scaled, relax.const(shift.reshape(shape), str(shift.dtype)))


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Rewrite inference batch-norm with constant parameters as multiply-add; see the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function of ``module``."""
        updated = tvm.IRModule(module.functions, attrs=module.attrs)
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                updated[variable] = _Folder(updated, function).visit_expr(function)
        return relax.transform.DeadCodeElimination()(updated)
