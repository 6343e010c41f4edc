"""Store each tensor in the order of axes that saves the most transposes.

Exporters from frameworks of another order write transposes around every operator that ONNX defines in NCHW. Between two
of them stand operators that do not care (``layout_operators``). This pass chooses an order for each of their results
(``layout_assignment``) and writes the function anew: transposes that meet their inverse vanish, and the rest stands
where it moves the fewest elements. A convolution whose sign and pad an exporter put into NHWC then reads them in NCHW,
where recognition knows a pad of rows and columns.

Rules:

1. ``main`` is one dataflow block; else nothing is done.
2. Parameters, results of the function and every other operator's operands and results keep the model's order.
3. A variable that is stored permuted has ``axes`` in its entry of ``bnnc.names``; its ONNX tensor is compared so.
4. A ``Sign`` whose operand was a transposed tensor remembers that tensor's name as ``operand``: verification finds the
   node in the model by it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Var

from bnn_compiler.constants import ConstantEvaluator, op_name, static_shape
from bnn_compiler.module_attributes import NAMES_ATTRIBUTE, read_attribute

from .layout_assignment import Net, Node, Permutation, assign_layouts, compose, identity, inverse
from .layout_operators import Permutable, permutable

Names = dict[str, dict[str, Any]]


@dataclass
class _Plan:
    """What the pass knows of the function.

    ``sources``: a transposed or renamed variable as another variable and a permutation. ``operators``: calls on
    permuted tensors, with their layout. ``layouts``: how variables are stored that are not as in the model.
    """

    sources: dict[Var, tuple[Var, Permutation]] = field(default_factory=dict)
    operators: dict[Var, tuple[Permutable, Permutation]] = field(default_factory=dict)
    layouts: dict[Var, Permutation] = field(default_factory=dict)

    def source(self, variable: Var) -> tuple[Var, Permutation]:
        """The variable that ``variable`` is a transpose of, and the permutation."""
        return self.sources.get(variable) or (variable, identity(len(static_shape(variable) or ())))

    def layout(self, variable: Var) -> Permutation:
        """How ``variable``, no transpose itself, is stored."""
        return self.layouts.get(variable) or identity(len(static_shape(variable) or ()))


def _permutation(value: relax.Expr) -> Permutation | None:
    """The permutation of a ``permute_dims`` of a variable of known shape."""
    if op_name(value) != "relax.permute_dims" or not isinstance(value.args[0], Var):
        return None
    shape = static_shape(value.args[0])
    if shape is None:
        return None
    axes = value.attrs.axes
    return tuple(int(axis) % len(shape) for axis in axes) if axes is not None else identity(len(shape))[::-1]


class _Graph:
    """Builds nodes and nets of ``layout_assignment`` from the bindings of one block."""

    def __init__(self, function: relax.Function, bindings: list[relax.VarBinding]) -> None:
        self.plan = _Plan()
        self._constants = ConstantEvaluator({binding.var: binding.value for binding in bindings})
        self._nodes: list[Node] = []
        self._driver: dict[Var, int] = {}
        self._readers: dict[Var, list[tuple[int | None, Permutation]]] = defaultdict(list)
        self._candidates: dict[Var, tuple[Permutable, int]] = {}
        for parameter in function.params:
            self._add_fixed(parameter)
        for binding in bindings:
            self._add(binding.var, binding.value)
            if not isinstance(binding.var, relax.DataflowVar):
                self._read(binding.var, None)

    def solve(self) -> _Plan:
        """Choose the layouts."""
        drivers = [variable for variable in self._driver if self._readers[variable]]
        nets = [
            Net(self._driver[variable], _elements(variable), tuple(dict.fromkeys(self._readers[variable])))
            for variable in drivers
        ]
        layouts = assign_layouts(self._nodes, nets)
        for variable, (operator, node) in self._candidates.items():
            self.plan.operators[variable] = operator, layouts[node]
            if not operator.drops_axes and layouts[node] != identity(len(layouts[node])):
                self.plan.layouts[variable] = layouts[node]
        return self.plan

    def _add(self, variable: Var, value: relax.Expr) -> None:
        permutation = _permutation(value)
        if permutation is not None and self._constants.value(value) is None:
            source, before = self.plan.source(value.args[0])
            self.plan.sources[variable] = source, compose(before, permutation)
            return
        if isinstance(value, Var) and static_shape(value) is not None:
            self.plan.sources[variable] = self.plan.source(value)
            return
        operator = permutable(value, self._constants)
        if operator is None:
            relax.analysis.post_order_visit(value, lambda e: self._read(e, None) if isinstance(e, Var) else None)
            self._add_fixed(variable)
            return
        node = self._add_node(Node(len(static_shape(operator.operands[0]) or ()), allows=operator.allows))
        self._candidates[variable] = operator, node
        if operator.drops_axes:
            self._add_fixed(variable)
        else:
            self._driver[variable] = node
        for operand in operator.operands:
            self._read(operand, node)
        moving = set(operator.operands)
        relax.analysis.post_order_visit(
            value, lambda e: self._read(e, None) if isinstance(e, Var) and e not in moving else None
        )

    def _read(self, variable: Var, node: int | None) -> None:
        source, permutation = self.plan.source(variable)
        if source in self._driver:
            self._readers[source].append((node, permutation))

    def _add_fixed(self, variable: Var) -> None:
        shape = static_shape(variable)
        if shape is not None and self._constants.value(variable) is None:
            self._driver[variable] = self._add_node(Node(len(shape), fixed=True))

    def _add_node(self, node: Node) -> int:
        self._nodes.append(node)
        return len(self._nodes) - 1


def _elements(variable: Var) -> int:
    """What a transposed copy costs; where only axes of extent 1 move, nothing does."""
    shape = static_shape(variable) or ()
    wide = sum(size > 1 for size in shape)
    return int(np.prod(shape, dtype=np.int64)) if wide > 1 else 0


@relax.expr_functor.mutator
class _Rewriter(relax.PyExprMutator):  # type: ignore[misc]
    """Writes the function as planned; ``names`` are those of the result."""

    def __init__(self, module: tvm.IRModule, plan: _Plan, names: Names) -> None:
        super().__init__(module)
        self._plan = plan
        self._names = names
        self._copies: dict[tuple[Var, Permutation], relax.Expr] = {}
        self._stored: dict[Var, relax.Expr] = {}
        self._transposes: dict[tuple[Var, Permutation], str] = {}
        for variable, key in plan.sources.items():
            if isinstance(variable, relax.DataflowVar):
                self._transposes.setdefault(key, variable.name)

    def visit_var_(self, variable: Var) -> relax.Expr:
        """An operand of an operator that keeps the model's order (rule 2)."""
        return self._read(variable)

    def visit_dataflow_var_(self, variable: Var) -> relax.Expr:
        """Likewise."""
        return self._read(variable)

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        """Bind the permuted form of what is planned, nothing for a transpose, all else as it is."""
        variable, is_result = binding.var, not isinstance(binding.var, relax.DataflowVar)
        if variable in self._plan.sources:
            if is_result:
                value = self._read(variable)
                self._stored[variable] = self.builder_.emit_output(value, variable.name)
            return
        planned = self._plan.operators.get(variable)
        if planned is None or planned[1] == identity(len(planned[1])):
            value = self.visit_expr(binding.value)
        else:
            operator, axes = planned
            moved = [self._read(operand, axes) for operand in operator.operands]
            value = operator.rewrite(axes, moved, self.visit_expr)
        if planned is not None:
            self._note_operand(variable, planned[0])
        layout = self._plan.layouts.get(variable)
        if not is_result:
            self._stored[variable] = self.builder_.emit(value, variable.name)
            if layout is not None and variable.name in self._names:
                entry = self._names[variable.name]
                axes = tuple(entry.get("axes") or identity(len(layout)))
                self._names[variable.name] = {**entry, "axes": list(compose(axes, layout))}  # 3
            return
        if layout is None:
            self._stored[variable] = self.builder_.emit_output(value, variable.name)
            return
        self._stored[variable] = self.builder_.emit(value, f"{variable.name}_stored")
        result = relax.op.permute_dims(self._stored[variable], list(inverse(layout)))
        self._copies[variable, identity(len(layout))] = self.builder_.emit_output(result, variable.name)

    def _read(self, variable: Var, axes: Permutation | None = None) -> relax.Expr:
        """``variable`` permuted by ``axes``, or as in the model: as it is stored, or a copy."""
        if variable in self._stored and axes is None and variable in self._plan.sources:
            return self._stored[variable]  # a result of the function
        source, permutation = self._plan.source(variable)
        stored = self._stored.get(source, source)
        if static_shape(source) is None:
            return stored
        wanted = permutation if axes is None else compose(permutation, axes)
        layout = self._plan.layout(source)
        if wanted == layout:
            return stored
        key = source, wanted
        if key not in self._copies:
            name = self._transposes.get(key) or f"{source.name}_transposed_{len(self._copies)}"
            copy = relax.op.permute_dims(stored, list(compose(inverse(layout), wanted)))
            self._copies[key] = self.builder_.emit(copy, name)
        return self._copies[key]

    def _note_operand(self, variable: Var, operator: Permutable) -> None:
        """Rule 4."""
        operand = operator.operands[0]
        tensor = self._names.get(operand.name, {}).get("output") if operand in self._plan.sources else None
        if tensor is not None and self._names.get(variable.name, {}).get("op") == "Sign":
            self._names[variable.name] = {**self._names[variable.name], "operand": tensor}


@tvm.transform.module_pass(opt_level=0, name="PlanLayouts")
class PlanLayouts:
    """See the module's docstring."""

    def transform_module(self, module: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply to ``main``."""
        main = module["main"]
        blocks = main.body.blocks
        if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):  # 1
            return module
        bindings = list(blocks[0].bindings)
        if not all(isinstance(binding, relax.VarBinding) for binding in bindings):
            return module
        if not any(_permutation(binding.value) is not None for binding in bindings):
            return module
        plan = _Graph(main, bindings).solve()
        names: Names = read_attribute(module, NAMES_ATTRIBUTE) or {}
        rewriter = _Rewriter(module, plan, names)
        rewriter.builder_.update_func(module.get_global_var("main"), rewriter.visit_expr(main))
        attributes = dict(module.attrs.items()) if module.attrs else {}
        if names:
            attributes[NAMES_ATTRIBUTE] = json.dumps(names)
        written = tvm.IRModule(rewriter.builder_.get().functions, attrs=attributes)
        return relax.transform.DeadCodeElimination()(written)
