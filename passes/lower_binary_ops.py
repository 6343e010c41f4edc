"""Turn composites of binary layers into calls of the kernels that are chosen for them.

1. Each composite call in ``main`` becomes call_tir(product, call_tir(pack, x)). Layers that read the same tensor with
   the same comparison and padding share one pack.
2. Each layer also becomes a function ``layer_<i>`` of the module, from the float tensor that is compared to the layer's
   float output, calling the same kernels on the same constants: verification and benchmarks run a layer alone.
3. The report entries of the lowered layers get ``function``, ``kernel``, ``weight_bytes``, ``resident_bytes``,
   ``input`` and ``output`` and their axes.
4. A layer whose result only other layers read, as bits, gives them in ``main`` where its kernels can: the stages of
   ``LayerKernels.bits_for`` stand in place of its product, of its readers' packs and of all that is computed between
   them. Its report entry then says ``gives_bits``; its function ``layer_<i>`` still gives floats.
5. In ``main`` the calls' variables get names of their own, which ``bnnc.names`` then explains: which layer a kernel
   belongs to, and whether it counts (``product``) or changes the form of its input or result (``convert``).
6. What follows a layer runs in its kernel where it can (``output_fusion``): in ``main`` one kernel then stands in place
   of the product and of the operators behind it, and of its readers' packs where it gives their bits. The report entry
   lists the operators' ONNX nodes in ``fused`` and the layers it packs for in ``packs_for``.
7. A derived constant is stored as its value. With ``derive=True`` it becomes a call of the kernel that makes it, with
   the attribute ``bnnc.derives_constant``, for ``LiftDerivedConstants`` behind this pass.

The kernels are chosen by the target in scope (``with target:``) or the one given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Call, GlobalVar

from bnn_compiler.composites import apply_moves, binary_composites, composite_names, read_composite
from bnn_compiler.kernels.bit_paths import find_bit_edges
from bnn_compiler.kernels.bits_between_layers import BitFlow, handover_of, plan_bit_flow
from bnn_compiler.kernels.derived_constant import resident_bytes, stored_bytes
from bnn_compiler.kernels.kernel_choice import Choice, ChoiceOptions, choose_kernels
from bnn_compiler.kernels.layer_kernels import reach_of
from bnn_compiler.kernels.output_fusion import FusedOutput, plan_output_fusion
from bnn_compiler.layers import BinaryLayer, BinarySpec, LayerNames
from bnn_compiler.module_attributes import LAYERS_ATTRIBUTE, NAMES_ATTRIBUTE, read_attribute
from bnn_compiler.passes.kernel_calls import KernelCalls
from bnn_compiler.passes.name_variables import unique_name
from bnn_compiler.schedules.isa import Isa, detect_isa
from bnn_compiler.target import target_in_scope


@relax.expr_functor.mutator
class _Lowerer(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(
        self,
        module: tvm.IRModule,
        plans: dict[str, _Planned],
        bit_flow: BitFlow,
        fused: Sequence[FusedOutput],
        *,
        derive: bool,
    ) -> None:
        super().__init__(module)
        self._plans = plans
        self._bit_flow = bit_flow
        self._fused = {output.result: output for output in fused}
        self._absorbed = {variable for output in fused for variable in output.absorbed}
        self._packed: dict[str, relax.Expr] = {}
        self._inputs: dict[str, relax.Expr] = {}
        self._calls = KernelCalls(derive=derive)
        self._tensors: dict[str, Any] = read_attribute(module, NAMES_ATTRIBUTE) or {}
        self._taken = set(self._tensors)
        #: Rule 5: what is to be added to ``bnnc.names``.
        self.names: dict[str, dict[str, str | None]] = {}

    def visit_call_(self, call: Call) -> relax.Expr:
        """Rule 1."""
        name = call.op.name_hint if isinstance(call.op, GlobalVar) else None
        if name not in self._plans:
            return super().visit_call_(call)
        return self._emit_in_main(self.visit_expr(call.args[0]), self._plans[name])

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Rules 4 and 6: nothing between bits and their readers; a fused kernel where the last operator in it stood."""
        variable, value = binding.var, binding.value
        if variable in self._absorbed and isinstance(value.op, GlobalVar):
            self._inputs[value.op.name_hint] = self.visit_expr(value.args[0])
        if variable in self._fused:
            self._emit_fused(variable, self._fused[variable])
        elif variable not in self._absorbed and variable not in self._bit_flow.skipped:
            super().visit_var_binding_(binding)
            operand = self._bit_flow.operands.get(variable)
            if operand is not None:
                self.set_var_remap(operand, self.get_var_remap(variable))

    def _emit_fused(self, result: relax.Var, fused: FusedOutput) -> None:
        builder, calls = self.builder_, self._calls
        arguments: list[relax.Expr] = []
        for part in fused.parts:
            arguments.append(self._input_of_product(self._inputs[part.composite], self._plans[part.composite]))
            arguments += [calls.constant(builder, constant) for constant in part.constants]
            arguments += [
                calls.constant(builder, operand) if isinstance(operand, np.ndarray) else self.visit_expr(operand)
                for operand in part.operands
            ]
        arguments += [calls.constant(builder, parameter) for parameter in fused.parameters]
        types = [
            relax.TensorType(shape, dtype)
            for shape, dtype in ((fused.floats, "float32"), (fused.bits, "uint64"))
            if shape is not None
        ]
        function = builder.add_func(fused.function, str(fused.function.attrs["bnnc.kernel"]))
        output = self._tensors.get(str(result.name), {}).get("output")
        name = self._name(self._plans[fused.parts[0].composite], "product", output)
        value = builder.emit(relax.call_tir(function, arguments, types if len(types) > 1 else types[0]), name)
        results = [relax.TupleGetItem(value, i) for i in range(2)] if len(types) > 1 else [value]
        if fused.bits is not None:
            bits = results[-1] if len(types) == 1 else builder.emit(results[-1])
            self._packed.update(dict.fromkeys(fused.readers, bits))
        if fused.floats is not None and len(types) > 1:
            super().visit_var_binding_(relax.VarBinding(result, results[0]))
        elif fused.floats is not None:
            self.set_var_remap(result, value)

    def _input_of_product(self, x: relax.Expr, plan: _Planned) -> relax.Expr:
        """What the layer's product reads in ``main``, from the layer's input ``x``."""
        value = self._packed.get(plan.composite, x if plan.composite in self._bit_flow.readers else None)
        stages = plan.choice.kernels.stages[:-1]
        if value is None:
            value = self._calls.moved(self.builder_, x, plan.spec.prefix)
        else:
            stages = stages[1:]
        for kernel in stages:
            name = self._name(plan, "convert")
            value = self._calls.call(self.builder_, kernel, value, share=True, name=name)
        return value

    def layer_function(self, name: str, plan: _Planned) -> None:
        """Rule 2: add ``name`` to the module."""
        x = relax.Var("x", relax.TensorType(plan.spec.input_shape, "float32"))
        builder = self.builder_
        with builder.function(name, [x]):
            with builder.dataflow():
                value = apply_moves(builder, x, plan.spec.prefix)
                for kernel in plan.choice.kernels.stages:
                    value = self._calls.call(builder, kernel, value, share=False)
                output = builder.emit_output(apply_moves(builder, value, plan.spec.suffix))
            builder.emit_func_output(output)

    def _emit_in_main(self, x: relax.Expr, plan: _Planned) -> relax.Expr:
        """Rules 1 and 4."""
        builder = self.builder_
        value = self._input_of_product(x, plan)
        bits = self._bit_flow.stages.get(plan.composite)
        for index, kernel in enumerate(bits or (plan.choice.kernels.product,)):
            output = None if bits else plan.names.output_tensor
            name = self._name(plan, "convert" if index else "product", output)
            value = self._calls.call(builder, kernel, value, share=False, name=name)
        return apply_moves(builder, value, plan.spec.suffix)

    def _name(self, plan: _Planned, role: str, output: str | None = None) -> str:
        """Rule 5: a new variable's name."""
        name = unique_name(f"{plan.names.node}_{role}", self._taken)
        self.names[name] = {"node": plan.names.node, "op": plan.names.op, "output": output, "role": role}
        return name


@dataclass(frozen=True, eq=False)
class _Planned:
    """One composite: its name in the module, its names in ONNX, what it computes and with which kernels."""

    composite: str
    names: LayerNames
    spec: BinarySpec
    choice: Choice


def lower_module(
    module: tvm.IRModule, target: tvm.target.Target, options: ChoiceOptions, *, derive: bool = False
) -> tuple[tvm.IRModule, list[BinaryLayer]]:
    """The lowered module and what verification needs of each layer, in the order of the report."""
    attributes = dict(module.attrs.items()) if module.attrs else {}
    entries = read_attribute(module, LAYERS_ATTRIBUTE) or []
    isa = detect_isa(target)
    specs = {variable.name_hint: read_composite(function) for variable, function in binary_composites(module).items()}
    edges = find_bit_edges(module["main"], specs)
    found = {name: handover_of(specs[name], edge, isa) for name, edge in edges.items()}
    handovers = {name: handover for name, handover in found.items() if handover is not None}
    planned = _plan(module, specs, isa, options, [entry["name"] for entry in entries])
    plans = {plan.composite: plan for plan in planned}
    bit_flow = plan_bit_flow(edges, handovers, {name: plan.choice.kernels for name, plan in plans.items()})
    layers_of = {name: (plan.spec, plan.choice.kernels) for name, plan in plans.items()}
    fused = plan_output_fusion(module["main"], layers_of, bit_flow, isa)
    lowerer = _Lowerer(module, plans, bit_flow, fused, derive=derive)
    lowerer.builder_.update_func(module.get_global_var("main"), lowerer.visit_expr(module["main"]))
    entry_of = {entry["name"]: entry for entry in entries}
    layers = []
    for index, plan in enumerate(planned):
        bits = bit_flow.stages.get(plan.composite, ())
        behind = next((output for output in fused if plan.composite in output.composites), None)
        constants = (*plan.choice.kernels.constants, *(c for kernel in bits for c in kernel.constants))
        layer = _binary_layer(f"layer_{index}", plan, stored_bytes(constants))
        lowerer.layer_function(layer.function, plan)
        layers.append(layer)
        entry_of.get(layer.name, {}).update(
            algorithm=plan.choice.kernels.algorithm,
            kernel=layer.kernel,
            weight_bytes=layer.weight_bytes,
            resident_bytes=resident_bytes(constants),
            choice=plan.choice.details,
            gives_bits=bool(bits) or (behind is not None and behind.floats is None),
            fused=[] if behind is None else _node_names(module, behind.absorbed, plan.names),
            packs_for=[] if behind is None else [plans[reader].names.node for reader in behind.readers],
            function=layer.function,
            input=layer.input_tensor,
            output=layer.output_tensor,
            input_axes=None if layer.input_axes is None else list(layer.input_axes),
            output_axes=None if layer.output_axes is None else list(layer.output_axes),
        )
    attributes[LAYERS_ATTRIBUTE] = json.dumps(entries)
    if NAMES_ATTRIBUTE in attributes:
        attributes[NAMES_ATTRIBUTE] = json.dumps({**read_attribute(module, NAMES_ATTRIBUTE), **lowerer.names})
    composites = {plan.composite for plan in planned}
    functions = {v: f for v, f in lowerer.builder_.get().functions.items() if v.name_hint not in composites}
    return relax.transform.DeadCodeElimination()(tvm.IRModule(functions, attrs=attributes)), layers


def _plan(
    module: tvm.IRModule, specs: Mapping[str, BinarySpec], isa: Isa, options: ChoiceOptions, order: Sequence[str]
) -> list[_Planned]:
    """Kernels for every composite, in the order of the report."""
    planned = []
    composites = binary_composites(module)
    for index, (variable, function) in enumerate(composites.items()):
        names = composite_names(function)
        options.progress(index, len(composites))
        spec = specs[variable.name_hint]
        planned.append(_Planned(variable.name_hint, names, spec, choose_kernels(spec, isa, options)))
    position = {name: index for index, name in enumerate(order)}
    return sorted(planned, key=lambda plan: position.get(plan.names.node, len(order)))


def _node_names(module: tvm.IRModule, variables: Sequence[relax.Var], layer: LayerNames) -> list[str]:
    """The ONNX nodes that define ``variables``, but for the layer's own; the variables in a module without names.

    A variable that is unknown beside others is an inner result: its node is that of a later one.
    """
    found = [str(variable.name) for variable in variables]
    names = read_attribute(module, NAMES_ATTRIBUTE)
    nodes = found if not names else [names[name]["node"] for name in found if name in names]
    return [node for node in dict.fromkeys(nodes) if node != layer.node]


def _binary_layer(function: str, plan: _Planned, weight_bytes: int) -> BinaryLayer:
    names, spec, kernels = plan.names, plan.spec, plan.choice.kernels
    return BinaryLayer(
        name=names.node,
        function=function,
        input_tensor=names.input_tensor,
        output_tensor=names.output_tensor,
        scale=kernels.output.scale,
        bias=kernels.output.bias,
        macs=spec.macs,
        fan_in=spec.fan_in,
        input_shape=spec.input_shape,
        channel_axis=_channel_axis(spec),
        exact=kernels.output.exact and not spec.rounded,
        kernel=kernels.product.name,
        weight_bytes=weight_bytes,
        rounded=spec.rounded,
        reach=reach_of(spec),
        input_axes=names.input_axes,
        output_axes=names.output_axes,
    )


def _channel_axis(spec: BinarySpec) -> int:
    """Axis of the output channels in the layer's output, after its suffix moves."""
    if spec.geometry is not None:
        return 1
    swapped = any(kind == "permute" for kind, _ in spec.suffix)
    return -2 if swapped else -1


@tvm.transform.module_pass(opt_level=0, name="LowerBinaryOps")
class LowerBinaryOps:
    """See the module's docstring; what verification needs of each layer is appended to ``layers``."""

    def __init__(
        self,
        target: tvm.target.Target | None = None,
        choice: ChoiceOptions | None = None,
        layers: list[BinaryLayer] | None = None,
        *,
        derive: bool = False,
    ) -> None:
        self._target = target
        self._derive = derive
        self._choice = choice or ChoiceOptions()
        self._layers = layers

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Lower every composite of ``module``."""
        lowered, layers = lower_module(module, target_in_scope(self._target), self._choice, derive=self._derive)
        if self._layers is not None:
            self._layers.extend(layers)
        return lowered
