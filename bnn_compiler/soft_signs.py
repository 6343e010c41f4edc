"""Which ``Sign`` operators give an activation the zeros that ``--sign-zero plus`` takes as +1?

The rule holds for the ``Sign``, not for one reader of it: a layer that packs its input, a layer that packs what a
max-pool makes of its output, and a float operator all see +1 where its input is zero. ONNX Runtime then computes the
same once ``reference.take_zero_as_plus_one`` has changed that one node.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import elementwise_operands, is_elementwise, op_name
from bnn_compiler.recognition.element_selection import selected_operands
from bnn_compiler.recognition.value_sets import ValueSetAnalysis


def soft_signs(activation: relax.Expr, analysis: ValueSetAnalysis) -> list[Var]:
    """The variables that hold ``Sign`` of a general float, and from which ``activation`` is made value by value."""
    found: list[Var] = []
    seen: set[Var] = set()
    pending = [activation]
    while pending:
        variable = pending.pop()
        if not isinstance(variable, Var) or variable in seen:
            continue
        seen.add(variable)
        known, definition = analysis.of(variable), analysis.definition(variable)
        soft = known is None or known.soft_zero or (known.steps is not None and known.steps.soft_zero)
        if known is not None and known.is_exact and not soft:
            continue  # no zero, or one that says itself what it is
        if isinstance(definition, Call) and op_name(definition) == "relax.sign":
            # Of a padded tensor, the frame's zeros stay zeros: ONNX's rule and the other one, side by side. No single
            # Sign says that, so its other readers keep ONNX's.
            if known is None or known.steps is None or known.steps.padding is None:
                found.append(variable)
        elif definition is not None:
            pending += _sources(definition, analysis)
    return found


def positive_at_zero(sign: relax.Expr, data: relax.Expr) -> relax.Expr:
    """``sign`` of ``data``, and 1 where ``data`` is a zero of either sign."""
    zero, one = (relax.const(value, str(data.ty.dtype)) for value in (0.0, 1.0))
    return relax.op.where(relax.op.equal(data, zero), one, sign)


def _sources(definition: relax.Expr, analysis: ValueSetAnalysis) -> list[relax.Expr]:
    selected = selected_operands(definition, analysis.functions)
    if selected is not None:
        return selected
    if not isinstance(definition, Call):
        return []
    if is_elementwise(definition):
        return elementwise_operands(definition)
    return [definition.args[0]] if op_name(definition) == "relax.nn.pad" else []


def reads_sign(activation: Var, analysis: ValueSetAnalysis) -> bool:
    """Whether a ``Sign`` is among what makes the few values of ``activation``."""
    seen: set[Var] = set()
    pending: list[relax.Expr] = [activation]
    while pending:
        variable = pending.pop()
        definition = analysis.definition(variable) if isinstance(variable, Var) and variable not in seen else None
        if isinstance(variable, Var):
            seen.add(variable)
        if isinstance(definition, Call) and op_name(definition) == "relax.sign":
            return True
        if definition is not None:
            pending += _sources(definition, analysis)
    return False
