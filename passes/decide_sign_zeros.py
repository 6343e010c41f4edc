"""Make each ``Sign`` say itself what becomes of 0, so that all behind takes the graph by its word.

    sign(x)         →  sign(sign(x) + 1/2)            where 0 is taken as +1 (``recognition/sign_zeros``)
    sign(pad(x))    →  pad(sign(sign(x) + 1/2))       the frame's zeros stay zeros

The form is larq's: it keeps NaN, and is monotone in x, as chains in front of a pack want it.

The rule holds for the ``Sign``, not for one reader of it: packed layers, max-pools and outputs see the same value.
ONNX Runtime computes the same once ``verification.reference.take_zero_as_plus_one`` has changed that one node.

A ``Sign`` that is *checked* is taken so, too, and the module gains a function ``main_sees_zeros``: the inputs of
``main`` to one uint8, which is not 0 if an operand of such a ``Sign`` holds a 0. ``join_exact_form`` has it asked.

The module attribute ``bnnc.signs`` lists the decisions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.module_attributes import SIGNS_ATTRIBUTE, onnx_names
from bnn_compiler.options import SignZero
from bnn_compiler.recognition.sign_zeros import Checked, Decision, decide_sign_zeros, padded_sign_value

from .substitution import Substitution

#: The function that says whether a run needs ONNX's 0.
SEES_ZEROS = "main_sees_zeros"


@relax.expr_functor.mutator
class _Rewriter(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, plus: Mapping[Var, Decision]) -> None:
        super().__init__(module)
        self._plus = plus

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Rewrite a decided ``Sign``."""
        decision = self._plus.get(binding.var)
        if decision is None:
            super().visit_var_binding_(binding)
            return
        name = binding.var.name
        data = self.visit_expr(decision.data)
        dtype = str(data.ty.dtype)
        sign = self.builder_.emit(relax.op.sign(data), f"{name}_sign")
        shifted = self.builder_.emit(relax.op.add(sign, relax.const(0.5, dtype)), f"{name}_shifted")
        made = relax.op.sign(shifted)
        if decision.pad is not None:
            inner = self.builder_.emit(made, f"{name}_inside")
            widths = [int(width) for width in decision.pad.attrs.pad_width]
            made = relax.op.nn.pad(inner, widths, "constant", padded_sign_value(decision.pad))
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(made, name))


@tvm.transform.module_pass(opt_level=0, name="DecideSignZeros")
class DecideSignZeros:
    """Decide about every ``Sign`` of ``main`` that leaves a 0 in the activation of a layer with binary weights.

    ``exact_signs`` are ONNX tensors whose ``Sign`` keeps 0 whatever the analysis says (verification saw zeros there).
    With ``checked="ask"``, ``main_sees_zeros`` is added where a ``Sign`` is to be checked; see ``Checked``.
    """

    def __init__(
        self, sign_zero: SignZero = "auto", exact_signs: Collection[str] = (), checked: Checked = "plus"
    ) -> None:
        self._sign_zero = sign_zero
        self._exact_signs = frozenset(exact_signs)
        self._checked = checked

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite the function ``main``."""
        main = module["main"]
        names = onnx_names(module)
        operands = {
            binding.var: binding.value.args[0]
            for block in main.body.blocks
            for binding in block.bindings
            if isinstance(binding.value, Call) and binding.value.args
        }

        def operand(sign: Var) -> str | None:
            return _tensor(operands[sign], names)

        decisions = decide_sign_zeros(
            main,
            dict(module.functions.items()),
            self._sign_zero,
            lambda sign: operand(sign) in self._exact_signs,
            checked=self._checked,
        )
        rewriter = _Rewriter(module, {d.sign: d for d in decisions if d.zero in ("plus", "checked")})
        rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(main))
        rewritten = rewriter.builder_.get()
        checked = [d.data for d in decisions if d.zero == "checked" and isinstance(d.data, Var)]
        if checked:
            rewritten[SEES_ZEROS] = _sees_zeros(main, list(dict.fromkeys(checked)))
        attributes = dict(module.attrs.items()) if module.attrs else {}
        attributes[SIGNS_ATTRIBUTE] = json.dumps([_entry(d, operand(d.sign), names) for d in decisions])
        return relax.transform.DeadCodeElimination()(tvm.IRModule(rewritten.functions, attrs=attributes))


def _sees_zeros(main: relax.Function, tensors: Sequence[Var]) -> relax.Function:
    """The function of ``main``'s parameters that says whether any of ``tensors`` holds a 0, as uint8 of shape [1]."""
    bindings = {binding.var: binding.value for block in main.body.blocks for binding in block.bindings}
    needed, pending = set(tensors), list(tensors)
    while pending:
        for variable in relax.analysis.free_vars(bindings.get(pending.pop(), relax.Tuple([]))):
            if variable not in needed:
                needed.add(variable)
                pending.append(variable)
    substitution = Substitution()
    parameters = [relax.Var(parameter.name, parameter.ty) for parameter in main.params]
    substitution.variables.update(zip(main.params, parameters, strict=True))
    builder = relax.BlockBuilder()
    with builder.function(SEES_ZEROS, parameters):
        with builder.dataflow():
            for variable, value in bindings.items():
                if variable in needed:
                    substitution.variables[variable] = builder.emit(substitution.visit_expr(value))
            number = relax.const(np.zeros(1, np.float32))
            for tensor in tensors:
                data = substitution.variables[tensor]
                zeros = relax.op.equal(data, relax.const(0, str(tensor.ty.dtype)))
                count = relax.op.sum(relax.op.astype(zeros, "float32"))
                number = builder.emit(relax.op.add(number, count))
            seen = relax.op.astype(relax.op.greater(number, relax.const(0, "float32")), "uint8")
            result = builder.emit_output(seen)
        builder.emit_func_output(result)
    return builder.get()[SEES_ZEROS]


def _tensor(expr: relax.Expr, names: Mapping[str, Any]) -> str | None:
    entry = names.get(expr.name) if isinstance(expr, Var) else None
    return entry.get("output") if entry else None


def _entry(decision: Decision, operand: str | None, names: Mapping[str, Any]) -> dict[str, Any]:
    """The decision as the report has it."""
    sign, source = decision.sign, decision.source
    origin = names.get(source.name, {}) if source is not None else {}
    return {
        "node": names.get(sign.name, {}).get("node", sign.name),
        "input": operand,
        "padded": decision.pad is not None,
        "output": _tensor(sign, names),
        "zero": decision.zero,
        "source": origin.get("output", source.name) if source is not None else None,
        "source_op": origin.get("op") if source is not None else None,
    }
