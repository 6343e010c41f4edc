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
from bnn_compiler.module_attributes import INPUTS_ATTRIBUTE, LAYERS_ATTRIBUTE, NAMES_ATTRIBUTE, read_attribute
from bnn_compiler.options import Algorithm, SignZero
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.canonical_form import Match
from bnn_compiler.recognition.code_binarizers import describe_codes
from bnn_compiler.recognition.epilogue_folding import fold_affine_epilogue
from bnn_compiler.recognition.matching import LayerMatcher
from bnn_compiler.recognition.threshold_folding import fold_affine_chain
from bnn_compiler.report import Status
from bnn_compiler.soft_signs import positive_at_zero, reads_sign, soft_signs

_PRODUCTS = (
    "relax.nn.conv1d",
    "relax.nn.conv2d",
    "relax.nn.conv3d",
    "relax.nn.conv1d_transpose",
    "relax.nn.conv2d_transpose",
    "relax.matmul",
)


@dataclass(frozen=True, eq=False)
class _Planned:
    """A product of the function: its report entry and, where it becomes a composite, how."""

    call: Call
    entry: dict[str, Any]
    base: Var | None = None
    spec: BinarySpec | None = None
    soft_signs: tuple[Var, ...] = ()


def _plan(matcher: LayerMatcher, algorithm: Algorithm) -> dict[Var, _Planned]:
    """Match every product and fold what stands in front of it."""
    planned: dict[Var, _Planned] = {}
    for variable, call in matcher.bindings.items():
        if not isinstance(call, Call) or op_name(call) not in _PRODUCTS:
            continue
        found, proven = matcher.match(call)
        entry = _report_entry(matcher, variable, call, found, proven, algorithm)
        if isinstance(found, Match) and algorithm != "float":
            base, spec = fold_affine_chain(found.binarizer.base, found.spec, matcher)
            soft = soft_signs(found.activation, matcher.analysis) if found.binarizer.zero_taken_as_plus else []
            planned[variable] = _Planned(call, entry, base, spec, tuple(soft))
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
        self._soft_signs = {sign for plan in planned.values() for sign in plan.soft_signs}
        for product, plan in planned.items():
            if plan.spec is not None:
                chain, spec = fold_affine_epilogue(product, plan.spec, matcher, self._starts)
                self._absorbed.update(chain[:-1])
                self._layer_at[chain[-1]] = (product, spec)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Put the composite's call where its last folded operation stood; drop what was folded."""
        if binding.var in self._absorbed:
            return
        if binding.var in self._soft_signs:
            self._bind_soft_sign(binding)
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
            zero_tensors=self._zero_tensors(plan),
        )
        composite = self.builder_.add_func(
            build_composite(spec, names), f"bnnc_layer_{len(self.builder_.get().functions)}"
        )
        call = Call(composite, [self.visit_expr(plan.base)])
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(call, binding.var.name))

    def _bind_soft_sign(self, binding: relax.VarBinding) -> None:
        """A ``Sign`` that a layer takes as +1 at zero is so for its other readers, too; without any, it goes later."""
        data = self.visit_expr(self._sign_operand(binding.var))
        sign = self.builder_.emit(relax.op.sign(data), f"{binding.var.name}_sign")
        emit = self.builder_.emit if isinstance(binding.var, relax.DataflowVar) else self.builder_.emit_output
        self.set_var_remap(binding.var, emit(positive_at_zero(sign, data), binding.var.name))

    def _sign_operand(self, sign: Var) -> relax.Expr:
        definition = self._matcher.analysis.definition(sign)
        assert isinstance(definition, Call), "soft_signs only gives results of Sign"
        return definition.args[0]

    def _zero_tensors(self, plan: _Planned) -> tuple[str, ...]:
        names = [
            self._matcher.operand_name(sign) or self._matcher.tensor_name(self._sign_operand(sign))
            for sign in plan.soft_signs
        ]
        return tuple(name for name in names if name is not None)


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
        if reads_sign(found.activation, matcher.analysis):
            return "activations_not_two_valued", "three-valued activations: sign(0) = 0 is kept"
        return "activations_not_two_valued", f"activations take the values {plan.low:g}, 0 and {plan.high:g}"
    return "activations_not_symmetric", f"activations take the values {plan.low:g} and {plan.high:g}"


def _onnx_names(module: tvm.IRModule) -> dict[str, dict[str, Any]]:
    """ONNX node and tensor of each Relax variable, as the front end left them; empty for modules from elsewhere."""
    inputs = read_attribute(module, INPUTS_ATTRIBUTE) or {}
    names = read_attribute(module, NAMES_ATTRIBUTE) or {}
    return {parameter: {"output": tensor} for parameter, tensor in inputs.items()} | names


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

    def __init__(self, algorithm: Algorithm = "auto", sign_zero: SignZero = "plus") -> None:
        self._algorithm = algorithm
        self._sign_zero = sign_zero

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Partition the function ``main``."""
        main = module["main"]
        matcher = LayerMatcher(main, _onnx_names(module), self._sign_zero, dict(module.functions.items()))
        planned = _plan(matcher, self._algorithm)
        partitioner = _Partitioner(module, matcher, planned)
        partitioner.builder_.update_func(module.get_global_var("main"), partitioner.visit_expr(main))
        attributes = dict(module.attrs.items()) if module.attrs else {}
        attributes[LAYERS_ATTRIBUTE] = json.dumps([plan.entry for plan in planned.values()])
        partitioned = tvm.IRModule(partitioner.builder_.get().functions, attrs=attributes)
        return relax.transform.DeadCodeElimination()(partitioned)
