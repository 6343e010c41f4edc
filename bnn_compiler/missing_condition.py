"""Why a tensor is not known to take few values: which condition is missing, and at which tensor of the model.

The walk goes from the activation of a layer towards the inputs, through operators that only move or select elements, to
the first tensor whose values could not be proven finite.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import elementwise_operands, is_elementwise, op_name
from bnn_compiler.residue import element_wise_chain
from bnn_compiler.value_sets import MAX_SET_SIZE, MOVES, SUBSETS, ValueSetAnalysis

#: The name and operator of a tensor for people: ``'relu_1' (Relu)``.
Describe = Callable[[Var], str]
_CONTINUES = MOVES | SUBSETS | {"relax.nn.pad", "relax.concat", "relax.negative", "relax.astype", "relax.where"}


def missing_condition(activation: relax.Expr, analysis: ValueSetAnalysis, describe: Describe) -> str:
    """A sentence that names the tensor where the proof that ``activation`` takes few values stops."""
    current = activation
    while isinstance(current, Var):
        call = analysis.definition(current)
        if not isinstance(call, Call):
            return f"the input {describe(current)} may hold any float"
        unknown = _unknown_operands(call, analysis)
        if op_name(call) in _CONTINUES and unknown:
            current = unknown[0]
            continue
        return _at(current, call, unknown, analysis, describe)
    return "the activation may hold any float"


def _unknown_operands(call: Call, analysis: ValueSetAnalysis) -> list[Var]:
    """Operands whose values are not known; of a ``where`` its branches only."""
    match op_name(call):
        case "relax.concat":
            operands = list(getattr(call.args[0], "fields", []))
        case "relax.where":
            operands = list(call.args[1:])
        case _:
            operands = elementwise_operands(call) if is_elementwise(call) else list(call.args[:1])
    return [operand for operand in operands if isinstance(operand, Var) and analysis.of(operand) is None]


def _at(tensor: Var, call: Call, unknown: list[Var], analysis: ValueSetAnalysis, describe: Describe) -> str:
    where = describe(tensor)
    if not is_elementwise(call):
        return f"{where} may hold any float"
    if not unknown:
        return f"{where} takes more than {MAX_SET_SIZE} values"
    for entry in element_wise_chain(tensor, None, analysis):
        mixed = _mixed_operand(entry, analysis)
        if mixed is not None:
            cause = "does not cancel later" if analysis.bounds.of(mixed).is_bounded else "is not bounded"
            return f"{describe(entry)} combines few values with {describe(mixed)}, which {cause}"
    return f"{where} may hold any float"


def _mixed_operand(variable: Var, analysis: ValueSetAnalysis) -> Var | None:
    """The operand that may hold any float of an operator whose other operand takes few values, or None."""
    call = analysis.definition(variable)
    assert isinstance(call, Call), "the chain holds calls"
    operands = [operand for operand in elementwise_operands(call) if isinstance(operand, Var)]
    unknown = [operand for operand in operands if analysis.of(operand) is None]
    finite = [
        operand
        for operand in operands
        if analysis.of(operand) is not None and analysis.constants.value(operand) is None
    ]
    return unknown[0] if unknown and finite else None
