"""Find the binary convolutions and dense layers of a module and make each a composite function.

What a binary layer is stands in ``matching``; what its composite looks like in ``layers``. Every convolution and matrix
product is entered in the report, the module attribute ``bnnc.layers`` (a JSON list), with the first condition it
misses.

The affine operations around a layer become part of it where that is exact: in front of the comparison as a threshold
(``threshold_folding``), behind the product as output scale and bias (``epilogue_folding``).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.composites import build_composite
from bnn_compiler.constants import op_name, static_shape
from bnn_compiler.layers import BinarySpec
from bnn_compiler.module_attributes import LAYERS_ATTRIBUTE, SIGNS_ATTRIBUTE, onnx_names, read_attribute
from bnn_compiler.options import Algorithm, SignZero
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.canonical_form import Match
from bnn_compiler.recognition.code_binarizers import describe_codes
from bnn_compiler.recognition.epilogue_folding import fold_affine_epilogue
from bnn_compiler.recognition.matching import PRODUCTS, LayerMatcher
from bnn_compiler.recognition.sign_zeros import signs_behind
from bnn_compiler.recognition.threshold_folding import fold_affine_chain
from bnn_compiler.report import Status


@dataclass(frozen=True, eq=False)
class _Planned:
    """A product of the function: its report entry and, where it becomes a composite, how."""

    call: Call
    entry: dict[str, Any]
    base: Var | None = None
    spec: BinarySpec | None = None


def _plan(matcher: LayerMatcher, algorithm: Algorithm) -> dict[Var, _Planned]:
    """Match every product and fold what stands in front of it."""
    planned: dict[Var, _Planned] = {}
    for variable, call in matcher.bindings.items():
        if not isinstance(call, Call) or op_name(call) not in PRODUCTS:
            continue
        found, proven = matcher.match(call)
        entry = _report_entry(matcher, variable, call, found, proven, algorithm)
        if isinstance(found, Match) and algorithm != "float":
            base, spec = fold_affine_chain(found.binarizer.base, found.spec, matcher)
            planned[variable] = _Planned(call, entry, base, spec)
        else:
            planned[variable] = _Planned(call, entry)
    return planned


@relax.expr_functor.mutator
class _Partitioner(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: tvm.IRModule, matcher: LayerMatcher, planned: dict[Var, _Planned]) -> None:
        super().__init__(module)
        self._matcher = matcher
        self._planned = planned
        self._starts = {plan.base for plan in planned.values() if plan.base is not None}
        self._layer_at: dict[Var, tuple[Var, BinarySpec]] = {}
        self._absorbed: set[Var] = set()
        for product, plan in planned.items():
            if plan.spec is not None:
                chain, spec = fold_affine_epilogue(product, plan.spec, matcher, self._starts)
                self._absorbed.update(chain[:-1])
                self._layer_at[chain[-1]] = (product, spec)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Put the composite's call where its last folded operation stood; drop what was folded."""
        if binding.var in self._absorbed:
            return
        if binding.var not in self._layer_at:
            super().visit_var_binding_(binding)
            return
        product, spec = self._layer_at[binding.var]
        plan = self._planned[product]
        assert plan.base is not None
        names = replace(
            self._matcher.names_of(product, plan.call),
            input_tensor=self._matcher.tensor_name(plan.base),
            output_tensor=self._matcher.tensor_name(binding.var),
            input_axes=self._matcher.tensor_axes(plan.base),
            output_axes=self._matcher.tensor_axes(binding.var),
        )
        composite = self.builder_.add_func(
            build_composite(spec, names), f"bnnc_layer_{len(self.builder_.get().functions)}"
        )
        call = Call(composite, [self.visit_expr(plan.base)])
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))


def _report_entry(
    matcher: LayerMatcher,
    variable: Var,
    call: Call,
    found: Match | NotBinary,
    proven: Status,
    algorithm: Algorithm,
) -> dict[str, Any]:
    names = matcher.names_of(variable, call)
    reason, detail = _verdict(found, matcher)
    lowered = isinstance(found, Match) and algorithm != "float"
    if isinstance(found, Match) and not lowered:
        reason, detail = "algorithm_forced", "the float algorithm was asked for"
    weight_shape = _weight_shape(call, matcher)
    return {
        "name": names.node,
        "op": names.op,
        "status": proven,
        "reason": reason,
        "detail": detail,
        "macs": _macs(call, weight_shape),
        "algorithm": "popcount" if lowered else "float",
        "weight_shape": weight_shape,
    }


def _verdict(found: Match | NotBinary, matcher: LayerMatcher) -> tuple[str, str]:
    """Reason and detail of the report."""
    if isinstance(found, NotBinary):
        return found.reason, found.detail
    plan = found.binarizer
    if plan.alphabet == "bipolar":
        return "", plan.remarks
    if plan.alphabet == "codes":
        return "activations_not_two_valued", describe_codes(found.spec)
    if plan.alphabet == "ternary":
        return "activations_not_two_valued", _three_values(found, matcher)
    return "activations_not_symmetric", f"activations take the values {plan.low:g} and {plan.high:g}"


def _three_values(found: Match, matcher: LayerMatcher) -> str:
    """Which ``Sign`` keeps a 0, and where it comes from; which values there are if it is none."""
    for sign in signs_behind(found.activation, matcher.analysis):
        known = matcher.sign_zero_of(sign)
        if known is None:
            continue
        kept = f"three-valued activations: Sign {known['node']!r} keeps 0"
        operator = f" ({known['source_op']})" if known["source_op"] else ""
        return kept if known["source"] is None else f"{kept}, which is common in {known['source']!r}{operator}"
    low, high = found.binarizer.low, found.binarizer.high
    return f"activations take the values {low:g}, 0 and {high:g}"


def _weight_shape(call: Call, matcher: LayerMatcher) -> list[int]:
    for arg in reversed(call.args[:2]):
        value = matcher.analysis.constants.value(arg)
        if value is not None:
            return [int(size) for size in value.shape]
    return [int(size) for size in static_shape(call.args[1]) or ()]


def _macs(call: Call, weight_shape: list[int]) -> int:
    out = static_shape(call)
    if out is None or not weight_shape:
        return 0
    if op_name(call) == "relax.matmul":
        shape = static_shape(call.args[0])
        return math.prod(out) * shape[-1] if shape else 0
    return math.prod(out) * math.prod(weight_shape[1:])


@tvm.transform.module_pass(opt_level=0, name="PartitionBinaryOps")
class PartitionBinaryOps:
    """Make composites of the binary layers of ``main`` and enter every product in the report.

    ``algorithm="float"`` only fills the report, the module attribute ``bnnc.layers`` (a JSON list).
    """

    def __init__(self, algorithm: Algorithm = "auto", sign_zero: SignZero = "auto") -> None:
        self._algorithm = algorithm
        self._sign_zero = sign_zero

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Partition the function ``main``."""
        main = module["main"]
        signs = read_attribute(module, SIGNS_ATTRIBUTE) or []
        matcher = LayerMatcher(main, onnx_names(module), self._sign_zero, dict(module.functions.items()), signs)
        planned = _plan(matcher, self._algorithm)
        partitioner = _Partitioner(module, matcher, planned)
        partitioner.builder_.update_func(module.get_global_var("main"), partitioner.visit_expr(main))
        attributes = dict(module.attrs.items()) if module.attrs else {}
        attributes[LAYERS_ATTRIBUTE] = json.dumps([plan.entry for plan in planned.values()])
        partitioned = tvm.IRModule(partitioner.builder_.get().functions, attrs=attributes)
        return relax.transform.DeadCodeElimination()(partitioned)
