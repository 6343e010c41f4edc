"""``relax.transform.FuseOps``, with the names of variables kept.

TVM binds what a fused function returns to a new variable. Its inner bindings still are those of the module before, so
each fused call is the value of one of the old variables: the one that has the same value number, which is the kernel
with the numbers of its arguments. That variable's name goes to the call.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import tvm
from tvm import relax

from .name_variables import PREFIX, bound_variables, rename_variables, with_main


@tvm.transform.module_pass(opt_level=0, name="FuseNamedOps")
class FuseNamedOps:
    """Fuse operators; a call of a fused function takes the name of the variable it stands for.

    1. Only names that begin with ``onnx_`` are kept, in ``main``; each goes to one variable.
    2. What cannot be recognised keeps the name that TVM gave it.
    """

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        fused = relax.transform.FuseOps()(module)
        if "main" not in {variable.name_hint for variable in module.functions}:
            return fused
        names: dict[Hashable, list[str]] = {}
        before = _ValueNumbers(module)
        for variable, number in before.of_function(module["main"]):
            if str(variable.name).startswith(PREFIX):
                names.setdefault(number, []).append(str(variable.name))
        main = fused["main"]
        kept = {str(variable.name) for variable in bound_variables(main)}
        renamed: dict[relax.Var, str] = {}
        for variable, number in _ValueNumbers(fused, before.keys).of_function(main):
            if str(variable.name).startswith(PREFIX):
                continue
            free = [name for name in names.get(number, ()) if name not in kept]
            if free:
                renamed[variable] = free[0]
                kept.add(free[0])
        return with_main(fused, rename_variables(main, renamed)) if renamed else fused


class _ValueNumbers:
    """Numbers of expressions: equal for equal calls of equal values. ``keys`` may be shared between modules."""

    def __init__(self, module: tvm.IRModule, keys: dict[Hashable, int] | None = None) -> None:
        self._module = module
        self.keys: dict[Hashable, int] = {} if keys is None else keys

    def of_function(self, function: relax.Function) -> list[tuple[relax.Var, Hashable]]:
        """Each variable that ``function`` binds, with the number of its value."""
        arguments = [self._number(("parameter", index)) for index in range(len(function.params))]
        return self._walk(function, arguments)[0]

    def _walk(
        self, function: relax.Function, arguments: Sequence[Hashable]
    ) -> tuple[list[tuple[relax.Var, Hashable]], Hashable]:
        values = dict(zip(function.params, arguments, strict=True))
        bound = []
        for block in function.body.blocks:
            for binding in block.bindings:
                values[binding.var] = self._value(binding.value, values)
                bound.append((binding.var, values[binding.var]))
        return bound, self._value(function.body.body, values)

    def _value(self, expression: relax.Expr, values: dict[relax.Var, Hashable]) -> Hashable:
        match expression:
            case relax.Var():
                return values[expression]
            case relax.Tuple():
                return tuple(self._value(field, values) for field in expression.fields)
            case relax.TupleGetItem():
                whole = self._value(expression.tuple_value, values)
                return whole[expression.index] if isinstance(whole, tuple) else self._number((whole, expression.index))
            case tvm.ir.GlobalVar():
                return str(expression.name_hint)
            case relax.Call():
                arguments = tuple(self._value(argument, values) for argument in expression.args)
                if isinstance(expression.op, tvm.ir.GlobalVar):
                    callee = self._module[expression.op]
                    if isinstance(callee, relax.Function):
                        return self._walk(callee, arguments)[1]
                return self._number((expression.op, arguments, expression.attrs))
            case _:
                return self._number(expression)

    def _number(self, key: Hashable) -> int:
        return self.keys.setdefault(key, len(self.keys))
