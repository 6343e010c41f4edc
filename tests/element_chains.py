"""Chains of element-wise operators in Relax, and what the value analysis makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import op_name
from bnn_compiler.options import SignZero
from bnn_compiler.recognition.value_sets import ValueSetAnalysis

op = relax.op
SHAPE = (1, 4, 5, 6)


def const(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


@dataclass
class Chain:
    """Emits operators on ``x``; ``y`` is a second input."""

    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    x: Var = field(default_factory=lambda: relax.Var("x", relax.TensorType(SHAPE, "float32")))
    y: Var = field(default_factory=lambda: relax.Var("y", relax.TensorType(SHAPE, "float32")))

    def emit(self, expr: relax.Expr) -> Var:
        return self.builder.emit(expr)

    def analyse(
        self, build: Callable[[Chain], relax.Expr], sign_zero: SignZero = "plus"
    ) -> tuple[Var, ValueSetAnalysis]:
        """The result of ``build`` and the analysis, in which with ``plus`` a Sign of an input is +1 at zero."""
        with self.builder.function("main", [self.x, self.y]):
            with self.builder.dataflow():
                result = self.emit(build(self))
                output = self.builder.emit_output(result)
            self.builder.emit_func_output(output)
        bindings = {b.var: b.value for block in self.builder.get()["main"].body.blocks for b in block.bindings}
        return result, ValueSetAnalysis(bindings, plus_signs=plus_signs(bindings) if sign_zero == "plus" else set())


def plus_signs(bindings: Mapping[Var, relax.Expr]) -> set[Var]:
    """The results of ``Sign`` of an input, perhaps a padded one."""
    signs = {v: d for v, d in bindings.items() if isinstance(d, Call) and op_name(d) == "relax.sign"}
    return {v for v, sign in signs.items() if op_name(bindings.get(sign.args[0])) in ("", "relax.nn.pad")}


def residue(chain: Chain, hard: relax.Expr, soft: relax.Expr) -> relax.Expr:
    """(hard − soft) + soft."""
    return op.add(chain.emit(op.subtract(hard, soft)), soft)
