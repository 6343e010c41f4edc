"""Names of Relax variables that say which ONNX tensor they hold, and that passes do not make up by themselves.

TVM calls what it binds ``lv``, ``lv1``, … in every pass anew, so such a name says nothing about a variable once a pass
has run. A variable that begins with :data:`PREFIX` was named here, or by a pass that knows what the value stands for:
the key of ``bnnc.names`` stays true for as long as the binding exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import tvm
from tvm import relax

from bnn_compiler.module_attributes import NAMES_ATTRIBUTE, read_attribute

PREFIX = "onnx_"


@tvm.transform.module_pass(opt_level=0, name="NameVariables")
class NameVariables:
    """Rename the variables of ``main`` that ``bnnc.names`` knows to ``onnx_`` and their tensor (or node), uniquely.

    A module without ``bnnc.names`` is left alone.
    """

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass to a copy of ``module``."""
        names = read_attribute(module, NAMES_ATTRIBUTE)
        if not names:
            return module
        main = module["main"]
        taken = {str(parameter.name) for parameter in main.params}
        renamed: dict[relax.Var, str] = {}
        entries = {}
        for variable in bound_variables(main):
            entry = names.get(str(variable.name))
            if entry is not None:
                renamed[variable] = unique_name(entry["output"] or f"{entry['node']}_inner", taken)
                entries[renamed[variable]] = entry
        return with_main(module, rename_variables(main, renamed)).with_attr(NAMES_ATTRIBUTE, json.dumps(entries))


def bound_variables(function: relax.Function) -> list[relax.Var]:
    """The variables that ``function`` binds, in order."""
    return [binding.var for block in function.body.blocks for binding in block.bindings]


def with_main(module: tvm.IRModule, main: relax.Function) -> tvm.IRModule:
    """A copy of ``module`` with another ``main``."""
    copy = tvm.IRModule(module.functions, attrs=module.attrs)
    copy.update_func(copy.get_global_var("main"), main)
    return copy


def unique_name(text: str, taken: set[str]) -> str:
    """An identifier for ``text`` that is not in ``taken``; added to it."""
    base = name = PREFIX + re.sub(r"\W", "_", text, flags=re.ASCII)
    number = 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


def rename_variables(function: relax.Function, names: Mapping[relax.Var, str]) -> relax.Function:
    """``function`` with other names for the bound variables that are keys of ``names``."""
    return _Renamer(names).visit_expr(function)


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, names: Mapping[relax.Var, str]) -> None:
        super().__init__()
        self._names = names

    def visit_dataflow_var_def_(self, variable: relax.DataflowVar) -> relax.Var:
        """Define a variable of the new name in its place."""
        return self._define(variable, relax.DataflowVar)

    def visit_var_def_(self, variable: relax.Var) -> relax.Var:
        """Define a variable of the new name in its place."""
        return self._define(variable, relax.Var)

    def _define(self, variable: relax.Var, kind: type[relax.Var]) -> relax.Var:
        name = self._names.get(variable)
        if name is None:
            return variable
        renamed = kind(name, variable.ty)
        self.set_var_remap(variable, renamed)
        return renamed
