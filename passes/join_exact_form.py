"""Two forms of one network in one module: with Sign(0) = +1 for measured inputs, and with ONNX's 0 for others.

``DecideSignZeros`` adds ``main_sees_zeros`` where a ``Sign`` of the input is to be checked. The same network, lowered
with those signs kept, joins the module as ``main_exact``; ``RunInOneCall`` then has ``main`` ask and choose:

    main(x) { sees_zeros(x) ? exact kernels … : kernels … }

Both forms call the same kernel where they have equal ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.ir import Constant, GlobalVar

from .decide_sign_zeros import SEES_ZEROS

#: The form of ``main`` that keeps ONNX's 0 at every ``Sign`` that is checked.
EXACT = "main_exact"

_Content = tuple[tuple[int, ...], str, bytes]
"""Of a constant: shape, dtype, digest of its elements."""


def has_checked_signs(module: tvm.IRModule) -> bool:
    """Whether ``main`` is right for some inputs only, those that ``main_sees_zeros`` finds no 0 for."""
    return SEES_ZEROS in {variable.name_hint for variable in module.get_global_vars()}


def join_exact_form(module: tvm.IRModule, exact: tvm.IRModule) -> tvm.IRModule:
    """``module`` with the ``main`` of ``exact``, and what that calls, as ``main_exact``."""
    entry = "main"
    alone = tvm.IRModule(
        {
            variable: function
            for variable, function in exact.functions_items()
            if variable.name_hint == entry or not isinstance(function, relax.Function)
        }
    )
    alone = relax.transform.DeadCodeElimination([entry])(alone)
    builder = relax.BlockBuilder(tvm.IRModule(module.functions, attrs=module.attrs))
    renaming = _Renaming(alone, _constants(module["main"]))
    for variable, function in alone.functions_items():
        if variable.name_hint != entry:
            # The builder takes an equal function that it has, and gives another one a name of its own.
            renaming.globals[str(variable.name_hint)] = builder.add_func(function, str(variable.name_hint))
    joined = builder.get().with_attrs(module.attrs)
    joined[GlobalVar(EXACT)] = renaming.visit_expr(alone[entry]).with_attr("global_symbol", EXACT)
    return joined


@relax.expr_functor.mutator
class _Renaming(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces global variables by their names, and constants by equal ones of the other form: those are there once."""

    def __init__(self, module: tvm.IRModule, constants: Mapping[_Content, Constant]) -> None:
        super().__init__(module)
        self.globals: dict[str, GlobalVar] = {}
        self._constants = constants

    def visit_global_var_(self, variable: GlobalVar) -> relax.Expr:
        """Return the variable of the joined module."""
        return self.globals[str(variable.name_hint)]

    def visit_constant_(self, constant: Constant) -> relax.Expr:
        """Return the constant that is there already, or this one."""
        content = _content(constant)
        return constant if content is None else self._constants.get(content, constant)


def _content(constant: Constant) -> _Content | None:
    if not hasattr(constant.value, "numpy"):
        return None
    array = constant.value.numpy()
    return array.shape, str(array.dtype), hashlib.sha256(array.tobytes()).digest()


def _constants(function: relax.Function) -> dict[_Content, Constant]:
    found: dict[_Content, Constant] = {}

    def visit(expression: relax.Expr) -> None:
        content = _content(expression) if isinstance(expression, Constant) else None
        if content is not None:
            found.setdefault(content, expression)

    relax.analysis.post_order_visit(function.body, visit)
    return found
