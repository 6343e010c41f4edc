"""Destination passing: every exported Relax function writes its results into buffers that its caller hands over.

    f(x...) -> (y0, y1)      becomes      f(x..., output_0, output_1) -> ()

A function with derived constants (``LiftDerivedConstants``) keeps them as its last parameters: what a library is called
with in each run comes first, what stays the same can be bound.

    f(x..., derived...) -> y      becomes      f(x..., output_0, derived...) -> ()

So ``run(out=...)`` fills the caller's arrays without a copy, and without ``out`` the arrays that ``run`` returns
are ordinary NumPy arrays that no allocator of the runtime has to keep alive.
"""

from __future__ import annotations

from collections.abc import Iterator

import tvm
from tvm import IRModule, relax, te, tirx

from .lift_derived_constants import derived_of


@tvm.transform.module_pass(opt_level=0, name="ReturnThroughParameters")
class ReturnThroughParameters:
    """Turn the results of every exported Relax function into parameters.

    Wants the form that ``relax.transform.CallTIRRewrite`` leaves (kernels called on ``R.builtin.alloc_tensor``
    buffers), before memory is planned.

    1. Each result must be a tensor of static shape; tuples may nest, their leaves count in order.
    2. A result whose buffer the function itself allocated, used by no earlier result, takes the caller's buffer in
       place of the allocation, also through ``R.reshape`` (the allocation becomes a view of the caller's buffer).
    3. Any other result (an input handed through, a constant, the same tensor twice) is copied by a kernel, but not one
       without elements. The tuple of results goes: TVM cannot load constants without elements.
    4. No exported function may be called inside the module: its calls would have the wrong number of arguments.

    Raises:
        ValueError: condition 1 or 4 does not hold.
    """

    def transform_module(self, module: IRModule, _context: tvm.transform.PassContext) -> IRModule:
        """Apply the pass to a copy of ``module``."""
        exported = [
            global_var
            for global_var, function in module.functions_items()
            if isinstance(function, relax.Function) and "global_symbol" in function.attrs
        ]
        exported.sort(key=lambda global_var: str(global_var.name_hint))
        _check_not_called(module, {str(global_var.name_hint) for global_var in exported})
        builder = relax.BlockBuilder(_without(module, exported))
        for global_var in exported:
            rewritten = _FunctionRewriter(builder, module[global_var]).rewrite()
            builder.add_func(rewritten, str(global_var.name_hint))
        result = builder.get()
        return result.with_attrs(module.attrs) if module.attrs else result


class _FunctionRewriter:
    """Rewrites one function; ``builder`` receives the copy kernels of rule 3."""

    def __init__(self, builder: relax.BlockBuilder, function: relax.Function) -> None:
        self.builder = builder
        self.function = function
        self.values: dict[relax.Var, relax.Expr] = {
            binding.var: binding.value
            for block in function.body.blocks
            for binding in block.bindings
            if isinstance(binding, relax.VarBinding)
        }

    def rewrite(self) -> relax.Function:
        """Return the function with its results as parameters behind its inputs and an empty tuple as its value."""
        outputs: list[relax.Var] = []
        replaced: dict[relax.Var, relax.Expr] = {}
        copies: list[relax.Binding] = []
        for index, result in enumerate(self._leaves(self.function.body.body)):
            output = relax.Var(f"output_{index}", _static_type(result))
            outputs.append(output)
            allocation = self._allocation_of(result)
            if 0 in _shape(output):
                continue
            if allocation is None or allocation in replaced:
                copies.append(self._copy(result, output))
            elif _shape(allocation) == _shape(output):
                replaced[allocation] = output
            else:
                replaced[allocation] = self.builder.normalize(relax.op.reshape(output, _shape(allocation)))
        if outputs and all(0 in _shape(output) for output in outputs):
            copies.append(self._copy(outputs[0], outputs[0]))  # TVM links no library without a kernel
        blocks = [
            relax.BindingBlock(
                [_replace_value(binding, replaced) for binding in block.bindings if not self._is_result(binding)]
            )
            for block in self.function.body.blocks
        ]
        body = self.builder.normalize(relax.SeqExpr([*blocks, relax.BindingBlock(copies)], relax.Tuple([])))
        inputs = len(self.function.params) - len(derived_of(self.function))
        parameters = [*self.function.params[:inputs], *outputs, *self.function.params[inputs:]]
        return relax.Function(parameters, body, relax.TupleType([]), False, self.function.attrs)

    def _resolve(self, expression: relax.Expr) -> relax.Expr:
        """Follow aliases and tuple projections to the variable (or other leaf) that stands behind ``expression``."""
        while True:
            value = self.values.get(expression) if isinstance(expression, relax.Var) else expression
            if isinstance(value, relax.Tuple):
                return value
            if isinstance(value, relax.Var):
                expression = value
            elif isinstance(value, relax.TupleGetItem):
                whole = self._resolve(value.tuple_value)
                if not isinstance(whole, relax.Tuple):
                    return expression
                expression = whole.fields[value.index]
            else:
                return expression

    def _is_result(self, binding: relax.Binding) -> bool:
        """Whether the binding only puts the results into a tuple."""
        return isinstance(self.values.get(binding.var), relax.Tuple) and binding.var.same_as(self.function.body.body)

    def _leaves(self, expression: relax.Expr) -> Iterator[relax.Expr]:
        resolved = self._resolve(expression)
        if isinstance(resolved, relax.Tuple):
            for field in resolved.fields:
                yield from self._leaves(field)
        else:
            yield resolved

    def _allocation_of(self, result: relax.Expr) -> relax.Var | None:
        """Return the variable bound to the ``alloc_tensor`` whose memory ``result`` is, looking through reshapes."""
        root = self._resolve(result)
        value = self.values.get(root)
        while isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.reshape"):
            root = self._resolve(value.args[0])
            value = self.values.get(root)
        if isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.builtin.alloc_tensor"):
            return root
        return None

    def _copy(self, source: relax.Expr, destination: relax.Var) -> relax.Binding:
        tensor = te.placeholder(_shape(destination), str(destination.ty.dtype), name="source")
        copied = te.compute(tensor.shape, lambda *indices: tensor[indices], name="destination")
        kernel = te.create_prim_func([tensor, copied]).with_attr("tirx.noalias", True).without_attr("global_symbol")
        global_var = self.builder.add_func(kernel, "copy_result")
        call = self.builder.normalize(relax.Call(global_var, [source, destination]))
        return relax.VarBinding(relax.Var("_", call.ty), call)


def _replace_value(binding: relax.Binding, replaced: dict[relax.Var, relax.Expr]) -> relax.Binding:
    if binding.var in replaced:
        return relax.VarBinding(binding.var, replaced[binding.var])
    return binding


def _shape(expression: relax.Expr) -> list[int]:
    return [int(extent) for extent in expression.ty.shape]


def _static_type(result: relax.Expr) -> relax.TensorType:
    tensor_type = result.ty
    if not isinstance(tensor_type, relax.TensorType) or not isinstance(tensor_type.shape, relax.ShapeExpr):
        raise ValueError(f"a result must be a tensor of known shape, found {tensor_type}")
    if not all(isinstance(extent, tirx.IntImm) for extent in tensor_type.shape):
        raise ValueError(f"a result must have a static shape, found {tensor_type}")
    return relax.TensorType(_shape(result), str(tensor_type.dtype))


def _check_not_called(module: IRModule, exported: set[str]) -> None:
    for global_var, function in module.functions_items():
        if not isinstance(function, relax.Function):
            continue

        def check(expression: relax.Expr, caller: str = str(global_var.name_hint)) -> None:
            if isinstance(expression, relax.Call) and isinstance(expression.op, relax.GlobalVar):
                callee = str(expression.op.name_hint)
                if callee in exported:
                    raise ValueError(f"{caller} calls the exported function {callee}; inline it or make it private")

        relax.analysis.post_order_visit(function.body, check)


def _without(module: IRModule, dropped: list[tvm.ir.GlobalVar]) -> IRModule:
    return IRModule({var: function for var, function in module.functions_items() if var not in dropped})
