"""Float convolutions and matrix products become calls of scheduled kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from bnn_compiler.constants import ConstantEvaluator, dtype_of, op_name, static_shape
from bnn_compiler.schedules.float_concat import concat_kernel, plan_concat
from bnn_compiler.schedules.float_conv_choice import (
    FloatConvPlan,
    float_conv_kernel,
    pack_float_conv_weight,
    plan_float_conv,
    plan_pooled_conv,
)
from bnn_compiler.schedules.float_conv_transpose import TransposedConvPlan, transposed_conv_kernel
from bnn_compiler.schedules.float_gemm import gemm_kernel, pack_gemm_weight, plan_gemm
from bnn_compiler.schedules.float_pool import PoolKind, PoolPlan, average_weights, pool_kernel
from bnn_compiler.schedules.float_reduce import ReducePlan, reduce_kernel, softmax_kernel
from bnn_compiler.schedules.float_transpose import plan_transpose, transpose_kernel
from bnn_compiler.schedules.float_vector import FloatVector, float_vector
from bnn_compiler.schedules.geometry import ConvGeometry, windows_hold_pixels
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.window_geometry import window_geometry, window_pads

from .hoist_max_pool import count_readers

_DATA_LAYOUTS = {1: "NCW", 2: "NCHW"}
_KERNEL_LAYOUTS = {1: "OIW", 2: "OIHW"}
_PRODUCTS = ("relax.multiply", "relax.divide")


@tvm.transform.module_pass(opt_level=0, name="LowerFloatOps")
class LowerFloatOps:
    """Rewrite float operators that this project has kernels for as ``call_tir``; leave all others alone.

    1. Operands and result are float32 tensors of static shape.
    2. ``nn.conv1d`` and ``nn.conv2d`` in NC(H)W with a constant OI(H)W weight, any stride, dilation, padding and
       groups; the weight is re-packed here.
    3. 1-D and 2-D max and average pools in NC(H)W; a max-pool that alone reads a convolution joins its kernel.
    4. ``sum``, ``mean``, ``max`` and ``min`` over the last one or two axes; ``nn.softmax`` over the last axis.
    5. ``permute_dims`` that amounts to transposing matrices (NCHW to NHWC and back) at least a vector wide and high.
    6. Transposed convolutions of one to three axes, in NC(D)(H)W with a weight in IO(D)(H)W.
    7. ``matmul`` of matrices, or of any stack of rows with a constant matrix (re-packed here).

    The kernels' pattern lets ``relax.transform.FuseOps`` append elementwise operators, which ``ScheduleFloatKernels``
    then merges into the kernels' store.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        """Lower for the vectors of ``target``."""
        self.vector = float_vector(detect_isa(target))

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to every Relax function of ``module``."""
        lowerer = _Lowerer(module, self.vector)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function) and isinstance(function.body, relax.SeqExpr):
                lowerer.lower(variable, function)
        return relax.transform.DeadCodeElimination()(lowerer.builder_.get())


@relax.expr_functor.mutator
class _Lowerer(relax.PyExprMutator):  # type: ignore[misc]
    """Kernels are shared by every call of the same plan; packed weights by every call of the same weight and plan."""

    def __init__(self, module: tvm.IRModule, vector: FloatVector) -> None:
        super().__init__(module)
        self._vector = vector
        self._constants = ConstantEvaluator({})
        self._bindings: dict[relax.Var, relax.Expr] = {}
        self._readers: Counter[relax.Var] = Counter()
        self._rules: dict[str, Callable[[relax.Call], relax.Expr | None]] = {
            "relax.nn.conv1d": self._convolution,
            "relax.nn.conv2d": self._convolution,
            **{f"relax.nn.conv{rank}d_transpose": self._transposed_convolution for rank in (1, 2, 3)},
            "relax.nn.max_pool1d": self._pool,
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.avg_pool1d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.matmul": self._matmul,
            "relax.nn.softmax": self._softmax,
            "relax.permute_dims": self._transpose,
            "relax.concat": self._concatenation,
            **{f"relax.{kind}": self._reduce for kind in ("sum", "mean", "max", "min")},
        }
        self._kernels: dict[Any, tvm.ir.GlobalVar] = {}

    def lower(self, variable: tvm.ir.GlobalVar, function: relax.Function) -> None:
        """Replace ``function`` in the builder's module by its lowered form."""
        self._bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self._readers = count_readers(function)
        self._constants = ConstantEvaluator(self._bindings)
        self.builder_.update_func(variable, self.visit_expr(function))

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Lower ``call`` where a rule applies."""
        rule: Callable[[relax.Call], relax.Expr | None] | None
        if op_name(call) in _PRODUCTS:
            rule = self._by_zero if dtype_of(call).startswith("float") else None
        else:
            rule = self._rules.get(op_name(call)) if _is_static_float(call) else None
        lowered = None if rule is None else rule(call)
        return super().visit_call_(call) if lowered is None else lowered

    def _convolution(self, call: relax.Call) -> relax.Expr | None:
        geometry = self._conv_geometry(call)
        return None if geometry is None else self._convolve(call, plan_float_conv(geometry, self._vector), call)

    def _conv_geometry(self, call: relax.Call) -> ConvGeometry | None:
        """The geometry of a convolution that there is a kernel for, or None."""
        attrs = call.attrs
        shape, out_shape = static_shape(call.args[0]), static_shape(call)
        assert shape is not None and out_shape is not None
        weight = self._constants.value(call.args[1])
        rank = len(shape) - 2
        layouts = (str(attrs.data_layout), str(attrs.kernel_layout), str(attrs.out_layout))
        if weight is None or layouts != (_DATA_LAYOUTS[rank], _KERNEL_LAYOUTS[rank], _DATA_LAYOUTS[rank]):
            return None
        if weight.size == 0 or 0 in out_shape:
            return None
        return window_geometry(shape, out_shape, weight.shape[2:], attrs, int(attrs.groups))

    def _convolve(self, conv: relax.Call, plan: FloatConvPlan, result: relax.Call) -> relax.Expr:
        """The kernel call for ``conv`` and what ``plan`` computes behind it, of the shape of ``result``."""
        out_shape = static_shape(result)
        weight = self._constants.value(conv.args[1])
        assert out_shape is not None and weight is not None
        rank = len(out_shape) - 2
        kernel = self._kernel((plan, rank), f"float_conv{rank}d", lambda: float_conv_kernel(plan, rank))
        packed = relax.const(pack_float_conv_weight(plan, weight))
        return relax.call_tir(kernel, [self.visit_expr(conv.args[0]), packed], out_ty=_tensor(out_shape))

    def _transposed_convolution(self, call: relax.Call) -> relax.Expr | None:
        attrs = call.attrs
        shape, weight, out_shape = (static_shape(expr) for expr in (*call.args, call))
        assert shape is not None and weight is not None and out_shape is not None
        if 0 in (*shape, *weight, *out_shape) or not str(attrs.kernel_layout).startswith("IO"):
            return None
        rank = len(shape) - 2
        plan = TransposedConvPlan(
            shape, weight, out_shape[2:],
            tuple(int(step) for step in attrs.strides),
            tuple(int(step) for step in attrs.dilation),
            tuple(int(width) for width in attrs.padding)[:rank],
            int(attrs.groups), self._vector.lanes,
        )  # fmt: skip
        kernel = self._kernel(plan, f"float_conv{rank}d_transpose", lambda: transposed_conv_kernel(plan))
        return relax.call_tir(kernel, [self.visit_expr(arg) for arg in call.args], out_ty=_tensor(out_shape))

    def _pooled_convolution(self, call: relax.Call, pool: ConvGeometry) -> relax.Expr | None:
        """A max-pool and the convolution that it alone reads, in one kernel, where that is possible and faster."""
        source = call.args[0]
        conv = self._bindings.get(source) if isinstance(source, relax.Var) and self._readers[source] == 1 else None
        if op_name(conv) != "relax.nn.conv2d" or not _is_static_float(conv) or not windows_hold_pixels(pool):
            return None
        geometry = self._conv_geometry(conv)
        plan = None if geometry is None else plan_pooled_conv(geometry, pool, self._vector)
        return None if plan is None else self._convolve(conv, plan, call)

    def _pool(self, call: relax.Call) -> relax.Expr | None:
        attrs = call.attrs
        shape, out_shape = static_shape(call.args[0]), static_shape(call)
        assert shape is not None and out_shape is not None
        rank = len(shape) - 2
        if (str(attrs.layout), str(attrs.out_layout)) != (_DATA_LAYOUTS[rank],) * 2 or 0 in out_shape:
            return None
        geometry = window_geometry(shape, out_shape, attrs.pool_size, attrs, shape[1])
        kind: PoolKind = "max" if "max" in op_name(call) else "average"
        if kind == "max" and (fused := self._pooled_convolution(call, geometry)) is not None:
            return fused
        if kind == "average" and geometry.kernel == shape[-2:] and not any(geometry.pads):
            return self._over_trailing(call, ReducePlan("mean", shape, 2, True, self._vector.lanes))
        plan = PoolPlan(geometry, kind, self._vector.lanes, rank)
        kernel = self._kernel(plan, f"float_{kind}_pool{rank}d", lambda: pool_kernel(plan))
        arguments = [self.visit_expr(call.args[0])]
        if kind == "average":
            pads = window_pads(attrs)
            arguments.append(relax.const(average_weights(geometry, pads, bool(attrs.count_include_pad))))
        return relax.call_tir(kernel, arguments, out_ty=_tensor(out_shape))

    def _matmul(self, call: relax.Call) -> relax.Expr | None:
        left, right = (static_shape(arg) for arg in call.args)
        assert left is not None and right is not None
        if len(left) < 2 or len(right) != 2 or 0 in left or 0 in right:
            return None
        weight = self._constants.value(call.args[1])
        rows, depth, columns = int(np.prod(left[:-1])), left[-1], right[1]
        plan = plan_gemm(rows, columns, depth, self._vector, weight_is_packed=weight is not None)
        kernel = self._kernel(plan, "float_gemm", lambda: gemm_kernel(plan))
        x = self.visit_expr(call.args[0])
        if len(left) > 2:
            x = self.builder_.emit(relax.op.reshape(x, (rows, depth)))
        w = self.visit_expr(call.args[1]) if weight is None else relax.const(pack_gemm_weight(plan, weight))
        product = relax.call_tir(kernel, [x, w], out_ty=_tensor((rows, columns)))
        if len(left) == 2:
            return product
        return relax.op.reshape(self.builder_.emit(product), (*left[:-1], columns))

    def _reduce(self, call: relax.Call) -> relax.Expr | None:
        shape, out_shape = static_shape(call.args[0]), static_shape(call)
        assert shape is not None and out_shape is not None
        axes = call.attrs.axis
        reduced = sorted({int(a) % len(shape) for a in axes}) if axes is not None else list(range(len(shape)))
        trailing = len(reduced)
        if trailing not in (1, 2) or reduced != list(range(len(shape) - trailing, len(shape))) or 0 in shape:
            return None
        kind: Any = op_name(call).removeprefix("relax.")
        keep = bool(call.attrs.keepdims)
        return self._over_trailing(call, ReducePlan(kind, shape, trailing, keep, self._vector.lanes))

    def _over_trailing(self, call: relax.Call, plan: ReducePlan) -> relax.Expr:
        """The kernel call for a reduction; an average pool over a whole map is one."""
        out_shape = static_shape(call)
        assert out_shape is not None
        kernel = self._kernel(plan, f"float_{plan.kind}", lambda: reduce_kernel(plan))
        return relax.call_tir(kernel, [self.visit_expr(call.args[0])], out_ty=_tensor(out_shape))

    def _by_zero(self, call: relax.Call) -> relax.Expr | None:
        """A scalar 0 as a tensor: TVM makes 0 of x·0, where NaN and infinite x give NaN, and refuses x/0."""
        data, scalar = call.args
        shape, value = static_shape(data), self._constants.value(scalar)
        if not shape or value is None or value.ndim or value != 0:
            return None
        zero = relax.const(value.reshape((1,) * len(shape)), str(value.dtype))
        return relax.Call(call.op, [self.visit_expr(data), zero], call.attrs, call.ty_args)

    def _softmax(self, call: relax.Call) -> relax.Expr | None:
        shape = static_shape(call)
        if not shape or int(call.attrs.axis) % len(shape) != len(shape) - 1 or 0 in shape:
            return None
        lanes = self._vector.lanes
        kernel = self._kernel(("softmax", shape), "float_softmax", lambda: softmax_kernel(shape, lanes))
        return relax.call_tir(kernel, [self.visit_expr(call.args[0])], out_ty=_tensor(shape))

    def _transpose(self, call: relax.Call) -> relax.Expr | None:
        shape, out_shape = static_shape(call.args[0]), static_shape(call)
        assert shape is not None and out_shape is not None
        axes = call.attrs.axes
        permutation = [int(a) % len(shape) for a in axes] if axes is not None else list(reversed(range(len(shape))))
        plan = plan_transpose(shape, permutation, self._vector.lanes)
        if plan is None or 0 in shape or self._constants.value(call.args[0]) is not None:
            return None
        kernel = self._kernel(plan, "float_transpose", lambda: transpose_kernel(plan))
        return relax.call_tir(kernel, [self.visit_expr(call.args[0])], out_ty=_tensor(out_shape))

    def _concatenation(self, call: relax.Call) -> relax.Expr | None:
        operands, out_shape = _operands(call), static_shape(call)
        assert out_shape is not None
        shapes = [static_shape(operand) or () for operand in operands]
        plan = plan_concat(shapes, int(call.attrs.axis) % len(out_shape), self._vector.lanes)
        if plan is None:
            return None
        kernel = self._kernel(plan, "float_concat", lambda: concat_kernel(plan))
        return relax.call_tir(kernel, [self.visit_expr(operand) for operand in operands], out_ty=_tensor(out_shape))

    def _kernel(self, key: Any, name: str, build: Callable[[], tirx.PrimFunc]) -> tvm.ir.GlobalVar:
        if key not in self._kernels:
            self._kernels[key] = self.builder_.add_func(build(), name)
        return self._kernels[key]


def _operands(call: relax.Call) -> list[relax.Expr]:
    """The tensors a call reads, those of a tuple one by one; none where the tuple is made elsewhere."""
    first = call.args[0] if call.args else None
    return list(first.fields) if isinstance(first, relax.Tuple) else list(call.args)


def _is_static_float(call: relax.Call) -> bool:
    return all(dtype_of(e) == "float32" and static_shape(e) is not None for e in (*_operands(call), call))


def _tensor(shape: tuple[int, ...]) -> relax.TensorType:
    return relax.TensorType(shape, "float32")
