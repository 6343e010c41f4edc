"""A sigmoid or tanh that is only compared with its middle is not computed: its argument is compared instead.

Both functions rise, so that σ(x) > 1/2 holds from some number t on: the first float at which the correctly rounded σ is
above 1/2, a little above 2^-23. Likewise for >=, and for < and <= below it. Then σ(x) > 1/2 is x >= t for every x, NaN
included, which passes neither. t is found by bisection over the floats, σ being evaluated in double precision.

ONNX prescribes no last bit of σ, but next to its middle it is 1/2 + x/4: implementations can only differ where |x| is
some 1e-7. Elsewhere an ulp of σ is more of x, and comparisons with other numbers are left alone.

The gates of networks that compute some pixels more precisely (``sigmoid(5·(x − t)) > 0.5``) are such comparisons, left
by their straight-through estimators.

Conditions: (1) one operand is a float32 sigmoid or tanh; (2) the other is its middle, a constant number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, ConstantEvaluator, dtype_of, op_name
from bnn_compiler.recognition.monotone_thresholds import float_at, order_of

_RISING: Mapping[str, Callable[[Array], Array]] = {
    "relax.sigmoid": lambda x: np.asarray(1 / (1 + np.exp(-x))),
    "relax.tanh": np.tanh,
}
_MIDDLE = {"relax.sigmoid": 0.5, "relax.tanh": 0.0}
#: Comparison -> (whether equality counts as above, operator on x).
_COMPARISONS = {
    "relax.greater": (False, relax.op.greater_equal),
    "relax.greater_equal": (True, relax.op.greater_equal),
    "relax.less": (True, relax.op.less),
    "relax.less_equal": (False, relax.op.less),
}
_SWAPPED = {
    "relax.greater": "relax.less",
    "relax.greater_equal": "relax.less_equal",
    "relax.less": "relax.greater",
    "relax.less_equal": "relax.greater_equal",
}


def first_above_middle(name: str, *, or_equal: bool) -> np.float32:
    """The first float at which the function is above its middle (or equal to it)."""
    bound = np.float32(_MIDDLE[name])

    def above(order: int) -> bool:
        with np.errstate(all="ignore"):
            x = np.asarray(float_at(np.asarray(order, np.int64)), np.float64)
            value = np.float32(_RISING[name](x))
        return bool(value >= bound) if or_equal else bool(value > bound)

    low, high = (int(order_of(np.float32(end))) for end in (-np.inf, np.inf))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return np.float32(float_at(np.asarray(high, np.int64)))


@relax.expr_functor.mutator
class _Rewriter(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(module)
        self._bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self._constants = ConstantEvaluator(self._bindings)

    def visit_call_(self, call: Call) -> relax.Expr:
        """Rewrite a comparison that meets the conditions."""
        name = op_name(call)
        if name in _COMPARISONS:
            for function, constant, comparison in (
                (call.args[0], call.args[1], name),
                (call.args[1], call.args[0], _SWAPPED[name]),
            ):
                rewritten = self._compared(function, constant, comparison)
                if rewritten is not None:
                    return rewritten
        return super().visit_call_(call)

    def _compared(self, function: relax.Expr, constant: relax.Expr, comparison: str) -> relax.Expr | None:
        value = self._constants.value(constant)
        made = self._bindings.get(function) if isinstance(function, Var) else function
        if made is None or op_name(made) not in _RISING or dtype_of(made) != "float32":  # 1
            return None
        if value is None or value.size != 1 or value.ndim > len(made.ty.shape) or value != _MIDDLE[op_name(made)]:  # 2
            return None
        or_equal, operator = _COMPARISONS[comparison]
        threshold = first_above_middle(op_name(made), or_equal=or_equal)
        return operator(self.visit_expr(made.args[0]), relax.const(threshold))


@tvm.transform.module_pass(opt_level=0, name="CompareBeforeSigmoid")
class CompareBeforeSigmoid:
    """See the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function of ``module``."""
        updated = tvm.IRModule(module.functions, attrs=module.attrs)
        for variable, function in module.functions.items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                updated[variable] = _Rewriter(updated, function).visit_expr(function)
        return relax.transform.DeadCodeElimination()(updated)
