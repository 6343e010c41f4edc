"""Float convolutions that only a pack reads give its bits: no map is written between them."""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import relax

from bnn_compiler.constants import Array, ConstantEvaluator, dtype_of, op_name, static_shape
from bnn_compiler.schedules.float_conv_bits import PackedConvPlan, pack_packed_conv_weight, packed_conv_kernel
from bnn_compiler.schedules.isa import detect_isa
from bnn_compiler.schedules.pack import PACK_ATTR, read_pack
from bnn_compiler.window_geometry import window_geometry

from .hoist_max_pool import count_readers


@tvm.transform.module_pass(opt_level=0, name="FuseConvPacks")
class FuseConvPacks:
    """Rewrite ``pack(conv2d(x, w) + bias)`` as one kernel's call, named after the tensor that is packed.

    1. The pack is a kernel of ``pack_conv_activations``, lowered before, and alone reads its float32 operand.
    2. That is ``nn.conv2d`` in NCHW with a constant OIHW weight; or the sum of one, which nothing else reads, and a
       constant per channel.
    3. ``PackedConvPlan.fits``.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        """Fuse for the vectors of ``target``."""
        self.isa = detect_isa(target)

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to ``main``, where there is one."""
        main = next((variable for variable in module.functions if variable.name_hint == "main"), None)
        if main is None or not isinstance(module[main].body, relax.SeqExpr):
            return module
        fuser = _Fuser(module, self)
        fuser.builder_.update_func(main, fuser.visit_expr(module[main]))
        return relax.transform.DeadCodeElimination()(fuser.builder_.get())


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, options: FuseConvPacks) -> None:
        super().__init__(module)
        main = module["main"]
        self._module = module
        self._isa = options.isa
        self._bindings: dict[relax.Var, relax.Expr] = {b.var: b.value for k in main.body.blocks for b in k.bindings}
        self._readers: Counter[relax.Var] = count_readers(main)
        self._constants = ConstantEvaluator(self._bindings)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Replace a pack."""
        fused = self._fused(call) if op_name(call) == "relax.call_tir" else None
        return super().visit_call_(call) if fused is None else fused

    def _fused(self, call: relax.Call) -> relax.Expr | None:
        attributes = self._module[call.args[0]].attrs or {}
        if PACK_ATTR not in attributes:  # 1
            return None
        packed, *parameters = call.args[1].fields
        conv, bias = self._only_read(packed), None
        if conv is not None and op_name(conv) == "relax.add":
            bias = self._constants.value(conv.args[1])
            channels = (static_shape(conv) or (0, 0))[1]
            if bias is None or bias.shape not in ((channels, 1, 1), (1, channels, 1, 1)):
                return None
            conv = self._only_read(conv.args[0])
        weight = None if conv is None else self._weight(conv)
        if conv is None or weight is None:  # 2
            return None
        shape, out_shape = static_shape(conv.args[0]), static_shape(conv)
        assert shape is not None and out_shape is not None
        geometry = window_geometry(shape, out_shape, weight.shape[2:], conv.attrs, int(conv.attrs.groups))
        plan = PackedConvPlan(geometry, *read_pack(str(attributes[PACK_ATTR])), bias is not None, self._isa)
        if not plan.fits:  # 3
            return None
        function = packed_conv_kernel(plan)
        kernel = self.builder_.add_func(function, str(function.attrs["bnnc.kernel"]))
        constants = [pack_packed_conv_weight(weight), *([] if bias is None else [bias.reshape(-1)])]
        arguments = [self.visit_expr(conv.args[0]), *map(relax.const, constants), *map(self.visit_expr, parameters)]
        # By this name the profile finds the convolution's node.
        return self.builder_.emit(relax.call_tir(kernel, arguments, out_ty=call.ty_args[0]), str(packed.name))

    def _only_read(self, operand: relax.Expr) -> relax.Expr | None:
        """The value of a variable that one binding reads."""
        is_single = isinstance(operand, relax.Var) and self._readers[operand] == 1
        return self._bindings.get(operand) if is_single else None

    def _weight(self, conv: relax.Expr) -> Array | None:
        """The constant weight of a convolution of rule 2, or None."""
        if op_name(conv) != "relax.nn.conv2d" or dtype_of(conv) != "float32":
            return None
        layouts = (str(conv.attrs.data_layout), str(conv.attrs.kernel_layout), str(conv.attrs.out_layout))
        if layouts != ("NCHW", "OIHW", "NCHW") or None in (static_shape(conv.args[0]), static_shape(conv)):
            return None
        return self._constants.value(conv.args[1])
