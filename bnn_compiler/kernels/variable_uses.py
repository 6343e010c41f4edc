"""Which variables a Relax expression reads."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.ir import Call, Var


def variable_uses(expr: relax.Expr) -> list[Var]:
    """The variables that ``expr`` reads, one entry per occurrence in a call's or a tuple's arguments."""
    if isinstance(expr, Call):
        return [variable for argument in expr.args for variable in variable_uses(argument)]
    if isinstance(expr, relax.Tuple):
        return [variable for field in expr.fields for variable in variable_uses(field)]
    found: list[Var] = []

    def visit(part: Any) -> None:
        if isinstance(part, Var):
            found.append(part)

    relax.analysis.post_order_visit(expr, visit)
    return found
