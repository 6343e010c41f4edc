"""What becomes of 0 at each ``Sign`` that makes a layer's activation: ONNX's 0, or +1 as binary engines have it?

ONNX's ``Sign(0)`` is 0, and a bit cannot hold it. ``Decision`` says which of four cases a ``Sign`` is:

- *never*: its operand cannot be 0. Nothing to decide.
- *plus*: 0 is an accident of float arithmetic (``mixtures``: no atom), and taken as +1. The ``Sign`` then is ±1 for all
  that reads it, so that what follows can be proven to be binary, too.
- *checked*: as *plus* for measured numbers, but a ``Sign`` of the input itself, or of what was made of it without sums:
  0 is common if the caller's numbers are masks or counts. That is seen when the network runs, and cheaply.
- *kept*: 0 is common. ONNX's value is kept, and a layer that reads it has three-valued activations.

Only a ``Sign`` that leaves the 0 in an activation of −a, 0 and a of a layer with binary weights is decided about, and
with it those of the same tensor: all others keep ONNX's 0, as nothing is gained. A constant pad in front of a ``Sign``
is looked through, since the zeros of a frame become a binary layer's own zero padding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import dtype_of, elementwise_operands, is_elementwise, op_name
from bnn_compiler.options import SignZero
from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.recognition.element_selection import Functions, selected_operands
from bnn_compiler.recognition.matching import PRODUCTS, output_channels_first
from bnn_compiler.recognition.mixture_analysis import MixtureAnalysis
from bnn_compiler.recognition.value_sets import ValueSetAnalysis


@dataclass(frozen=True, eq=False)
class Decision:
    """``sign`` holds the result of a ``Sign`` of ``data``, perhaps behind the constant ``pad`` that the Sign reads.

    ``source`` is the tensor in which 0 becomes common, where it is.
    """

    sign: Var
    data: Var
    pad: Call | None
    zero: Literal["never", "plus", "checked", "kept"]
    source: Var | None = None


Checked = Literal["plus", "ask", "keep"]
"""What becomes of a ``Sign`` that would be checked: it is taken as +1, it is checked, or it keeps ONNX's 0."""

#: Operators between the inputs and a ``Sign`` that is checked: they run twice.
_MOST_CHECKED = 16


def decide_sign_zeros(
    function: relax.Function,
    functions: Functions,
    sign_zero: SignZero,
    keeps: Callable[[Var], bool] = lambda _: False,
    *,
    checked: Checked = "plus",
) -> list[Decision]:
    """The decisions of ``function``, in its order.

    ``sign_zero``: ``auto`` decides as the module's docstring says, ``plus`` takes every 0 as +1, ``exact`` none.
    ``keeps`` names results of ``Sign`` that keep 0 whatever the analysis says. ``checked`` says
    what becomes of a ``Sign`` that would be checked, for who cannot look at the numbers of a run.
    """
    bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
    plus: set[Var] = set()
    kept: set[Var] = set()
    analysis = ValueSetAnalysis(bindings, functions, plus, kept)
    order = {variable: index for index, variable in enumerate(bindings)}
    signs_of = _signs_by_operand(bindings)
    decided: dict[Var, Decision] = {}
    for call in bindings.values():
        if not isinstance(call, Call) or op_name(call) not in PRODUCTS:
            continue
        activation = _activation(call, analysis)
        # A decision may let an earlier Sign of the same activation be seen through, or make it decide another way.
        while activation is not None and (found := _undecided(activation, analysis, decided)):
            first = min(found, key=order.__getitem__)
            # All signs of one tensor: a reference, too, can only be told of the tensor.
            signs = signs_of[bindings[first].args[0]]
            for sign in signs:
                decided[sign] = _decide(sign, analysis, sign_zero, keeps, checked)
            found_common = analysis.mixtures.of(decided[first].data).may_hold_zero
            if decided[first].zero in ("plus", "checked"):
                plus.update(signs)
            elif decided[first].zero == "kept" and not found_common:
                kept.update(signs)
            else:
                continue
            analysis.forget_from(min(signs, key=order.__getitem__))
    return [decided[sign] for sign in sorted(decided, key=order.__getitem__)]


def _signs_by_operand(bindings: Mapping[Var, relax.Expr]) -> dict[relax.Expr, list[Var]]:
    """The results of ``Sign`` of each tensor."""
    signs: dict[relax.Expr, list[Var]] = {}
    for variable, call in bindings.items():
        if isinstance(call, Call) and op_name(call) == "relax.sign":
            signs.setdefault(call.args[0], []).append(variable)
    return signs


def signs_behind(activation: relax.Expr, analysis: ValueSetAnalysis) -> list[Var]:
    """The results of ``Sign`` from which ``activation`` has its 0, nearest first."""
    found: list[Var] = []
    seen: set[Var] = set()
    pending = [activation]
    while pending:
        variable = pending.pop()
        if not isinstance(variable, Var) or variable in seen:
            continue
        seen.add(variable)
        known, definition = analysis.of(variable), analysis.definition(variable)
        if known is not None and known.is_exact and 0.0 not in known.values:
            continue
        if isinstance(definition, Call) and op_name(definition) == "relax.sign":
            found.append(variable)
        elif definition is not None:
            pending += _sources(definition, analysis)
    return found


def _activation(call: Call, analysis: ValueSetAnalysis) -> relax.Expr | None:
    """The operand of a product with binary weights if its values are −a, 0 and a."""
    for data, kernel, left in ((call.args[0], call.args[1], False), (call.args[1], call.args[0], True)):
        if left and op_name(call) != "relax.matmul":
            return None
        weights = analysis.constants.value(kernel)
        if weights is None or analysis.constants.value(data) is not None:
            continue
        if not isinstance(analyse_weights(output_channels_first(call, weights, left_weight=left)), BinaryWeights):
            return None
        known = analysis.of(data)
        values = sorted(known.values) if known is not None else []
        return data if len(values) == 3 and values[1] == 0.0 and values[0] == -values[2] else None
    return None


def _undecided(activation: relax.Expr, analysis: ValueSetAnalysis, decided: Collection[Var]) -> list[Var]:
    return [sign for sign in signs_behind(activation, analysis) if sign not in decided]


def _decide(
    sign: Var, analysis: ValueSetAnalysis, sign_zero: SignZero, keeps: Callable[[Var], bool], checked: Checked
) -> Decision:
    call = analysis.definition(sign)
    assert isinstance(call, Call), "signs_behind gives results of Sign"
    data, pad = call.args[0], None
    definition = analysis.definition(data)
    if isinstance(definition, Call) and op_name(definition) == "relax.nn.pad" and isinstance(definition.args[0], Var):
        mode = str(getattr(definition.attrs, "pad_mode", "constant"))
        data, pad = (definition.args[0], definition) if mode == "constant" else (data, None)
    bounds, mixture = analysis.bounds.of(data), analysis.mixtures.of(data)
    if bounds.low > 0 or bounds.high < 0 or mixture.can_equal(0.0) is False:
        return Decision(sign, data, pad, "never")
    # Where the operand has one sign, 0 is the other value of two: {0, 1} is no binariser, but its bit holds it.
    kept = sign_zero == "exact" or keeps(sign) or not dtype_of(data).startswith("float")
    kept = kept or bounds.low >= 0 or bounds.high <= 0 or (sign_zero == "auto" and mixture.may_hold_zero)
    if not kept and checked != "plus" and sign_zero == "auto" and _is_checked(data, analysis):
        return Decision(sign, data, pad, "checked" if checked == "ask" else "kept", mixture.zero)
    return Decision(sign, data, pad, "kept" if kept else "plus", mixture.zero)


def _is_checked(data: relax.Expr, analysis: ValueSetAnalysis) -> bool:
    """Whether ``data`` is made of inputs without products and at little cost, and is 0 for common numbers in them."""
    pending, seen = [data], set()
    while pending:
        variable = pending.pop()
        if not isinstance(variable, Var) or variable in seen:
            continue
        seen.add(variable)
        definition = analysis.definition(variable)
        if isinstance(definition, relax.If) or len(seen) > _MOST_CHECKED or op_name(definition) in PRODUCTS:
            return False
        if isinstance(definition, relax.TupleGetItem):
            pending.append(definition.tuple_value)
        elif isinstance(definition, Call):
            fields = (arg.fields if isinstance(arg, relax.Tuple) else [arg] for arg in definition.args)
            pending += [field for group in fields for field in group]
    return MixtureAnalysis(analysis, any_input=True).of(data).may_hold_zero


def _sources(definition: relax.Expr, analysis: ValueSetAnalysis) -> list[relax.Expr]:
    selected = selected_operands(definition, analysis.functions)
    if selected is not None:
        return selected
    if not isinstance(definition, Call):
        return []
    if is_elementwise(definition):
        return elementwise_operands(definition)
    return [definition.args[0]] if op_name(definition) == "relax.nn.pad" else []


def padded_sign_value(pad: Call) -> float:
    """Sign of what a constant pad fills its frame with."""
    return float(np.sign(float(pad.attrs.pad_value)))
