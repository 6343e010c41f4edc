"""Match one convolution or matrix product against the definition of a binary layer.

Conditions for y = product(a, w), checked in this order; the first that fails is the reason in the report:

1. w is constant and binary, ±α per output channel (``binary_weights``).
2. a draws from a finite alphabet: two values, {−a, 0, +a} (``value_sets``, ``binarizers``), or codes of up to four bits
   (``code_binarizers``).
3. The form is supported: conv1d or conv2d in NCHW/OIHW, or a matrix product with a matrix; static shapes; float32.
4. Padding stays in the alphabet (``padding_not_in_alphabet``): zeros are exact for bipolar, {0, a} and ternary
   activations, and for codes where 0 or half a step beside 0 is one.

A match is the layer in canonical form (``canonical_form``), starting at the tensor that is compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, dtype_of, op_name, static_shape
from bnn_compiler.layers import LayerNames
from bnn_compiler.options import SignZero
from bnn_compiler.recognition.binarizers import Binarizer, plan_binarizer
from bnn_compiler.recognition.binary_weights import BinaryWeights, NotBinary, analyse_weights
from bnn_compiler.recognition.canonical_form import Match, canonical_convolution, canonical_product
from bnn_compiler.recognition.code_binarizers import CodePlanner
from bnn_compiler.recognition.code_lattice import fit_codes
from bnn_compiler.recognition.element_selection import Functions
from bnn_compiler.recognition.missing_condition import missing_condition
from bnn_compiler.recognition.monotone_chains import MonotoneChains
from bnn_compiler.recognition.value_sets import ValueSetAnalysis
from bnn_compiler.report import Status

#: Operators that may be layers.
PRODUCTS = frozenset(
    f"relax.{name}"
    for name in ("nn.conv1d", "nn.conv2d", "nn.conv3d", "nn.conv1d_transpose", "nn.conv2d_transpose", "matmul")
)


class LayerMatcher:
    """Applies the conditions of the module's docstring to the products of one function."""

    def __init__(
        self,
        function: relax.Function,
        names: Mapping[str, Any],
        sign_zero: SignZero,
        functions: Functions | None = None,
        signs: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self.analysis = ValueSetAnalysis(self.bindings, functions)
        self.uses = _count_uses(function)
        self.readers = _sole_readers(function)
        self._names = names
        self.has_names = bool(names)
        self._sign_zero = sign_zero
        self._signs = {entry["output"]: entry for entry in signs}
        chains = MonotoneChains(self.bindings, self.analysis.constants)
        self._codes = CodePlanner(
            self.bindings, chains, self.uses, lambda v: not self.has_names or self.tensor_name(v) is not None
        )

    def names_of(self, variable: Var, call: Call) -> LayerNames:
        """ONNX names where the front end left them, else Relax's."""
        entry = self._names.get(variable.name, {})
        return LayerNames(
            entry.get("node", variable.name),
            entry.get("op", op_name(call).removeprefix("relax.")),
            None,
            entry.get("output"),
        )

    def tensor_name(self, variable: relax.Expr) -> str | None:
        """The ONNX tensor that a variable stands for."""
        entry = self._names.get(variable.name) if isinstance(variable, Var) else None
        return entry.get("output") if entry else None

    def tensor_axes(self, variable: Var) -> tuple[int, ...] | None:
        """The order in which a variable has the axes of its ONNX tensor; None if that is the tensor's own."""
        axes = self._names.get(variable.name, {}).get("axes")
        return None if axes is None else tuple(axes)

    def operand_name(self, variable: Var) -> str | None:
        """The ONNX tensor that the node of ``variable`` reads, where that is none of Relax's (``PlanLayouts``)."""
        operand: str | None = self._names.get(variable.name, {}).get("operand")
        return operand

    def sign_zero_of(self, sign: Var) -> Mapping[str, Any] | None:
        """What ``DecideSignZeros`` said of the ``Sign`` that gives a variable."""
        return self._signs.get(self.tensor_name(sign))

    def describe(self, variable: Var) -> str:
        """A tensor for people: its ONNX name and operator, or Relax's."""
        entry = self._names.get(variable.name, {})
        name = entry.get("output", variable.name)
        return f"{name!r} ({entry['op']})" if "op" in entry else f"{name!r}"

    def match(self, call: Call) -> tuple[Match | NotBinary, Status]:
        """The layer in canonical form or the reason, and what is proven of it whether or not a kernel takes it."""
        name = op_name(call)
        left_weight = name == "relax.matmul" and self.analysis.constants.value(call.args[0]) is not None
        data, kernel = (call.args[1], call.args[0]) if left_weight else (call.args[0], call.args[1])
        weights = self.analysis.constants.value(kernel)
        if weights is None:
            return NotBinary("weights_not_constant", "the weights depend on an input of the graph"), "float"
        binary = analyse_weights(output_channels_first(call, weights, left_weight=left_weight))
        if not isinstance(binary, BinaryWeights):
            return binary, "float"
        plan = plan_binarizer(data, self.analysis.of(data), self._sign_zero)
        if isinstance(plan, NotBinary):
            codes = self._plan_codes(data, _channel_axis(call, data, left_weight=left_weight))
            if codes is None:
                if plan.reason == "activations_float":
                    plan = replace(plan, detail=missing_condition(data, self.analysis, self.describe))
                return plan, "binary_weight"
            plan = codes
        else:
            plan = self._earlier_start(data, plan, _channel_axis(call, data, left_weight=left_weight))
        proven: Status = "binary" if plan.alphabet == "bipolar" else "binary_weight"
        form = _unsupported_form(call, data, weights)
        if form is not None:
            return form, proven
        plan = self._through_moves(plan)
        if name == "relax.matmul":
            found = canonical_product(call, data, weights, plan, left_weight=left_weight)
        else:
            found = canonical_convolution(call, data, weights, plan)
        # A padding outside the alphabet is another alphabet; what else is missing is only a kernel.
        failed = isinstance(found, NotBinary) and found.reason != "unsupported_form"
        return found, "binary_weight" if failed else proven

    def _plan_codes(self, data: relax.Expr, channel_axis: int | None) -> Binarizer | None:
        """``data`` as codes (or bits), or None."""
        plan = self._codes.plan(data, self.analysis.of(data), channel_axis)
        if plan is not None and plan.levels and fit_codes(plan.levels, zero_padded=False) is None:
            return None
        return plan

    def _earlier_start(self, data: relax.Expr, plan: Binarizer, channel_axis: int | None) -> Binarizer:
        """Instead of the two values that a chain makes, pack what the chain starts from."""
        if not plan.base.same_as(data):
            return self._codes.from_earlier(plan, channel_axis)
        if plan.alphabet == "ternary" or plan.rounded:
            return plan
        found = self._plan_codes(data, channel_axis)
        return plan if found is None or found.levels else found

    def _through_moves(self, plan: Binarizer) -> Binarizer:
        """Start before a transpose or reshape that the moves behind the comparison undo."""
        while plan.moves and plan.threshold.size == 1:
            definition = self.analysis.definition(plan.base)
            if not isinstance(definition, Call) or op_name(definition) not in ("relax.permute_dims", "relax.reshape"):
                break
            inner = definition.args[0]
            if not isinstance(inner, Var):
                break
            plan = replace(plan, base=inner, moves=(definition, *plan.moves))
        return plan


def output_channels_first(call: Call, weights: Array, *, left_weight: bool) -> Array:
    """``weights`` with the axis of the output channels or features first."""
    name = op_name(call)
    if name == "relax.matmul" and not left_weight:
        return np.moveaxis(weights, -1, 0)
    # A transposed convolution stores input channels first, and output channels per group second.
    return np.moveaxis(weights, 1, 0) if name.endswith("_transpose") else weights


def _channel_axis(call: Call, data: relax.Expr, *, left_weight: bool) -> int | None:
    """The axis of the activation that holds a layer's input channels or features, if thresholds may vary along it."""
    rank = len(static_shape(data) or ())
    if op_name(call) != "relax.matmul":
        return 1
    return None if left_weight else rank - 1


def _unsupported_form(call: Call, data: relax.Expr, weights: Array) -> NotBinary | None:
    name = op_name(call)
    shape, out = static_shape(data), static_shape(call)
    if shape is None or out is None:
        return NotBinary("unsupported_form", "dynamic shape")
    if dtype_of(data) != "float32" or dtype_of(call) != "float32":
        return NotBinary("unsupported_form", f"dtype {dtype_of(data)}; binary kernels take float32")
    if name == "relax.matmul":
        fits = weights.ndim == 2 and len(shape) >= 2
        return None if fits else NotBinary("unsupported_form", f"matrix product of {len(shape)}-D by {weights.ndim}-D")
    if name not in ("relax.nn.conv1d", "relax.nn.conv2d"):
        return NotBinary("unsupported_form", f"{name.removeprefix('relax.nn.')} has no binary kernel")
    layout = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if layout not in (("NCHW", "OIHW"), ("NCW", "OIW")):
        return NotBinary("unsupported_form", f"layout {layout[0]}/{layout[1]}")
    return None


def _count_uses(function: relax.Function) -> Counter[Var]:
    uses: Counter[Var] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, Var):
            uses[expr] += 1

    for block in function.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(function.body.body, visit)
    return uses


def _sole_readers(function: relax.Function) -> dict[Var, Var]:
    """For each variable that is the first argument of a call: the variable bound to (the last such) call."""
    return {
        binding.value.args[0]: binding.var
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, Call) and binding.value.args and isinstance(binding.value.args[0], Var)
    }
