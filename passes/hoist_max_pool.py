"""Max-pools move in front of monotone element-wise work, to the convolution that they can be fused with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import tvm
from tvm import relax

from bnn_compiler.constants import ConstantEvaluator, op_name, static_shape
from bnn_compiler.schedules.geometry import windows_hold_pixels
from bnn_compiler.window_geometry import window_geometry

_ADDITIONS = ("relax.add", "relax.subtract")


@tvm.transform.module_pass(opt_level=0, name="HoistMaxPool")
class HoistMaxPool:
    """Rewrite ``max_pool2d(f(conv2d(x)))`` as ``f(max_pool2d(conv2d(x)))``: less work for f, and no map between.

    max(f(a), f(b)) = f(max(a, b)) bit for bit where f never decreases in float arithmetic and nothing is NaN (a
    window that holds one has no defined maximum in ONNX Runtime either). Conditions:

    1. f is a chain of ReLUs, of sums with finite constants and of products with positive finite constants (rounding is
       monotone), each constant the same over a channel.
    2. No other operator reads what the chain and the convolution compute.
    3. Every window holds a pixel of the image: the value of an empty one, minus infinity, must not go through f.
    """

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function of ``module``."""
        hoister = _Hoister(module)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                hoister.hoist(variable, function)
        return relax.transform.DeadCodeElimination()(hoister.builder_.get())


def count_readers(function: relax.Function) -> Counter[relax.Var]:
    """How many bindings of a function read each variable; its result counts as one."""
    readers: Counter[relax.Var] = Counter()
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    for value in (*values, function.body.body):
        read: set[relax.Var] = set()
        relax.analysis.post_order_visit(value, lambda e, read=read: read.add(e) if isinstance(e, relax.Var) else None)
        readers.update(read)
    return readers


@relax.expr_functor.mutator
class _Hoister(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self._bindings: dict[relax.Var, relax.Expr] = {}
        self._readers: Counter[relax.Var] = Counter()
        self._constants = ConstantEvaluator({})

    def hoist(self, variable: tvm.ir.GlobalVar, function: relax.Function) -> None:
        """Replace ``function`` in the builder's module by its rewritten form."""
        self._bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self._readers = count_readers(function)
        self._constants = ConstantEvaluator(self._bindings)
        self.builder_.update_func(variable, self.visit_expr(function))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Rewrite a max-pool behind a chain behind a convolution."""
        chain = self._chain(call) if op_name(call) == "relax.nn.max_pool2d" else []
        if not chain:
            return super().visit_call_(call)
        arguments = [self.visit_expr(chain[-1][0].args[chain[-1][1]])]
        value = relax.Call(call.op, arguments, call.attrs, call.ty_args)
        for work, position in reversed(chain):
            bound = self.builder_.emit(value)
            operands = [bound if i == position else self.visit_expr(arg) for i, arg in enumerate(work.args)]
            value = relax.Call(work.op, operands, work.attrs, work.ty_args)
        # Not bound here: it is the value of the pool's variable, whose name says which tensor this is.
        return value

    def _chain(self, pool: relax.Call) -> list[tuple[relax.Call, int]]:
        """The calls between ``pool`` and a convolution, last first, and which argument continues; or nothing."""
        shape, out_shape = static_shape(pool.args[0]), static_shape(pool)
        if shape is None or out_shape is None or str(pool.attrs.layout) != "NCHW" or 0 in out_shape:
            return []
        if not windows_hold_pixels(window_geometry(shape, out_shape, pool.attrs.pool_size, pool.attrs, shape[1])):
            return []
        chain: list[tuple[relax.Call, int]] = []
        source = pool.args[0]
        while isinstance(source, relax.Var) and self._readers[source] == 1:
            call = self._bindings.get(source)
            if not isinstance(call, relax.Call):
                return []
            if op_name(call) == "relax.nn.conv2d":
                return chain
            position = self._monotone(call, shape)
            if position is None:
                return []
            chain.append((call, position))
            source = call.args[position]
        return []

    def _monotone(self, call: relax.Call, shape: tuple[int, ...]) -> int | None:
        """The argument in which ``call`` never decreases, a tensor of ``shape``; None where it is no such call."""
        name = op_name(call)
        if name == "relax.nn.relu":
            return 0
        if name not in (*_ADDITIONS, "relax.multiply"):
            return None
        for position in (0,) if name == "relax.subtract" else (0, 1):
            constant = self._constants.value(call.args[1 - position])
            if constant is None or static_shape(call.args[position]) != shape or not np.isfinite(constant).all():
                continue
            axes = (1,) * (len(shape) - constant.ndim) + constant.shape
            per_channel = len(axes) == len(shape) and axes == (1, axes[1], *(1 for _ in shape[2:]))
            if per_channel and (name in _ADDITIONS or (constant > 0).all()):
                return position
        return None
