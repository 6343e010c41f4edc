"""Copies of expressions, for functions that compute a part of another function again."""

from __future__ import annotations

from tvm import relax
from tvm.ir import Var


@relax.expr_functor.mutator
class Substitution(relax.PyExprMutator):  # type: ignore[misc]
    """Replaces variables by those of another function."""

    def __init__(self) -> None:
        super().__init__()
        self.variables: dict[Var, Var] = {}

    def visit_var_(self, variable: Var) -> relax.Expr:
        """Return the new variable."""
        return self.variables[variable]

    def visit_dataflow_var_(self, variable: Var) -> relax.Expr:
        """Return the new variable."""
        return self.variables[variable]
