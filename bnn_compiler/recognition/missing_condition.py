"""Why a tensor is not known to take few values: which condition is missing, and at which tensor of the model.

The walk goes from the activation of a layer towards the inputs, through operators that only move or select elements, to
the first tensor whose values could not be proven finite.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import elementwise_operands, is_elementwise, op_name
from bnn_compiler.recognition.element_selection import selected_operands
from bnn_compiler.recognition.residue import element_wise_chain
from bnn_compiler.recognition.value_sets import MAX_SET_SIZE, ValueSetAnalysis

#: The name and operator of a tensor for people: ``'relu_1' (Relu)``.
Describe = Callable[[Var], str]
_CONTINUES = {"relax.nn.pad", "relax.negative", "relax.astype", "relax.where"}


def missing_condition(activation: relax.Expr, analysis: ValueSetAnalysis, describe: Describe) -> str:
    """A sentence that names the tensor where the proof that ``activation`` takes few values stops."""
    current = activation
    while isinstance(current, Var):
        definition = analysis.definition(current)
        if definition is None:
            return f"the input {describe(current)} may hold any float"
        selected = selected_operands(definition, analysis.functions)
        if selected is None and op_name(definition) in _CONTINUES and isinstance(definition, Call):
            # Of a where, the branches.
            selected = list(definition.args[1:] if op_name(definition) == "relax.where" else definition.args[:1])
        unknown = [operand for operand in selected or () if isinstance(operand, Var) and analysis.of(operand) is None]
        if not unknown:
            return _at(current, definition, analysis, describe)
        current = unknown[0]
    return "the activation may hold any float"


def _at(tensor: Var, definition: relax.Expr, analysis: ValueSetAnalysis, describe: Describe) -> str:
    where = describe(tensor)
    if not isinstance(definition, Call) or not is_elementwise(definition):
        return f"{where} may hold any float"
    if all(analysis.of(operand) is not None for operand in elementwise_operands(definition)):
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
