"""Binary products in double precision are computed in single precision, where that gives the same numbers.

    y = product(x, w)   becomes   y = float64(product(float32(x), float32(w)))

Kernels take float32. Conditions, under which both sides are the exact integer sum times a power of two:

1. a ``conv1d``, ``conv2d`` or ``matmul`` of float64 tensors with a constant weight;
2. the weight is binary, and every |w| is a power of two between 2^-50 and 2^50;
3. the activation takes finitely many values, each 0 or ± such a power, and one magnitude alone;
4. fewer than 2^24 terms are summed.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call

from bnn_compiler.constants import Array, dtype_of, op_name
from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.recognition.value_sets import ValueSetAnalysis

from .rewrite_products import Names, move_name, rewrite_products

_PRODUCTS = ("relax.nn.conv1d", "relax.nn.conv2d", "relax.matmul")


@tvm.transform.module_pass(opt_level=0, name="NarrowDoubleProducts")
class NarrowDoubleProducts:
    """Rewrite binary products of float64; see the module's docstring. Run before ``PartitionBinaryOps``."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to ``main``, and give the names of a rewritten product to what takes its place."""
        return rewrite_products(module, _is_double_product, _Narrower)


@relax.expr_functor.mutator
class _Narrower(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, analysis: ValueSetAnalysis, names: Names) -> None:
        super().__init__(module)
        self._analysis = analysis
        self._names = names

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Rewrite one product, or copy the binding."""
        call, name = binding.value, str(binding.var.name)
        if not _is_double_product(call) or not self._is_exact(call):
            super().visit_var_binding_(binding)
            return
        operands = [self._narrowed(operand) for operand in call.args]
        narrow = Call(call.op, operands, call.attrs, call.ty_args)
        if op_name(call) == "relax.matmul":
            narrow = relax.op.matmul(*operands)
        product = self.builder_.emit(narrow, f"{name}_float32")
        move_name(self._names, name, product)
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(relax.op.astype(product, "float64"), binding.var.name))

    def _narrowed(self, operand: relax.Expr) -> relax.Expr:
        constant = self._analysis.constants.value(operand)
        if constant is not None:
            return relax.const(constant.astype(np.float32), "float32")
        # Named here: the builder's own names may be those of other variables, which the map of names speaks of.
        return self.builder_.emit(relax.op.astype(self.visit_expr(operand), "float32"), f"{operand.name}_float32")

    def _is_exact(self, call: Call) -> bool:
        """Conditions 1 to 4."""
        constants = [self._analysis.constants.value(operand) for operand in call.args[:2]]
        left = constants[0] is not None and op_name(call) == "relax.matmul"
        weights, data = (constants[0], call.args[1]) if left else (constants[1], call.args[0])
        if weights is None or weights.ndim < 2:
            return False
        rows = weights if left or op_name(call) != "relax.matmul" else np.moveaxis(weights, -1, 0)
        known = self._analysis.of(data)
        if known is None or not isinstance(analyse_weights(rows), BinaryWeights):
            return False
        magnitudes = {abs(value) for value in known.values} - {0.0}
        terms = math.prod(rows.shape[1:])
        return (
            len(magnitudes) == 1
            and _are_powers_of_two(np.array([*magnitudes]))
            and (_are_powers_of_two(weights) and terms < 2**24)
        )


def _is_double_product(call: relax.Expr) -> bool:
    return op_name(call) in _PRODUCTS and all(dtype_of(operand) == "float64" for operand in (call, *call.args[:2]))


def _are_powers_of_two(values: Array) -> bool:
    mantissas, exponents = np.frexp(np.abs(values))
    return bool((mantissas == 0.5).all() and (np.abs(exponents) <= 50).all())
