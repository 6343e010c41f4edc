"""Which results only binary layers read, as bits, and what the network computes on the way.

A layer's result is handed on as bits where

1. all that reads it are binary layers, through a *path* of operators whose every result is read by the path or these
   layers alone; all layers read the same tensor of the path, and nothing of it is an output of the network;
2. the path is made of element-wise operators with constants that vary along the channels alone, of reshapes that add or
   remove axes of one element, and of at most one max-pool, through which everything on the path goes;
3. the layers pack that tensor in the same way: same comparison, same padding ring.

Whether the bits are thresholds of the layer's integers is another question (``bit_thresholds``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, GlobalVar, Var

from bnn_compiler.constants import (
    Array,
    ConstantEvaluator,
    elementwise_operands,
    evaluate_elementwise,
    is_elementwise,
    moves_single_elements,
    op_name,
    static_shape,
)
from bnn_compiler.kernels.layer_kernels import alphabet_of, pack_rule, ring_code
from bnn_compiler.kernels.variable_uses import variable_uses
from bnn_compiler.layers import BinarySpec
from bnn_compiler.schedules.bit_pool import can_pool
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.popcount_conv_plan import conv_bits_shape
from bnn_compiler.window_geometry import window_geometry

#: From float32 [Z, C], a number of values of each channel, to what some operators make of them.
Evaluate = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class BitPath:
    """What is computed between a layer's result and its readers' comparison: ``before``, a max-pool, ``after``."""

    before: Evaluate = lambda values: values
    pool: ConvGeometry | None = None
    after: Evaluate = lambda values: values


@dataclass(frozen=True, eq=False)
class BitEdge:
    """A result that readers take as bits: the composites that read it, one of them as data, and the path to them.

    ``result`` and ``operand`` are the path's ends, and ``variables`` all of the path that need not be computed.
    """

    readers: tuple[str, ...]
    reader: BinarySpec
    path: BitPath
    result: Var
    operand: Var
    variables: frozenset[Var]


def find_bit_edges(function: relax.Function, specs: Mapping[str, BinarySpec]) -> dict[str, BitEdge]:
    """The results of ``function`` that rules 1 to 3 hold for, by the composite that makes them.

    ``specs`` gives what each composite of the module computes.
    """
    graph = _Graph(function, specs)
    found = {}
    for variable, name in graph.results():
        edge = graph.edge_from(variable, name)
        if edge is not None:
            found[name] = edge
    return found


class _Graph:
    """The bindings of a function, and who reads what."""

    def __init__(self, function: relax.Function, specs: Mapping[str, BinarySpec]) -> None:
        bindings = [binding for block in function.body.blocks for binding in block.bindings]
        self._specs = specs
        self._values: dict[Var, relax.Expr] = {binding.var: binding.value for binding in bindings}
        self._constants = ConstantEvaluator(self._values)
        self._readers: dict[Var, list[Var | None]] = {}
        for binding in bindings:
            for variable in variable_uses(binding.value):
                self._readers.setdefault(variable, []).append(binding.var)
        for variable in variable_uses(function.body.body):
            self._readers.setdefault(variable, []).append(None)

    def results(self) -> Iterator[tuple[Var, str]]:
        """The variables that composites are bound to, and the composites."""
        for variable, value in self._values.items():
            name = composite_name(value)
            if name is not None and name in self._specs:
                yield variable, name

    def edge_from(self, result: Var, name: str) -> BitEdge | None:
        """The edge that starts at the result of the composite ``name``."""
        if self._specs[name].suffix:
            return None
        path, waiting = {result}, [result]
        readers: list[str] = []
        operands: set[Var] = set()
        while waiting:
            current = waiting.pop()
            for reader in self._readers.get(current, [None]):  # a result that nobody reads is not handed on either
                callee = None if reader is None else composite_name(self._values[reader])
                if callee is not None and callee in self._specs:
                    readers.append(callee)
                    operands.add(current)
                elif reader is None or not isinstance(self._values[reader], Call):
                    return None  # 1
                elif reader not in path:
                    path.add(reader)
                    waiting.append(reader)
        if len(operands) != 1:  # 1
            return None
        (operand,) = operands
        specs = [self._specs[reader] for reader in readers]
        if not _reads_as_it_is(specs[0]) or any(not packs_alike(specs[0], other) for other in specs[1:]):  # 3
            return None
        steps = self._steps(result, operand)
        if steps is None or len(path) != len(steps) + 1:  # 2
            return None
        computed = _path_of(self._constants, result, operand, [(v, self._values[v]) for v in steps])
        if computed is None:
            return None
        return BitEdge(tuple(readers), specs[0], computed, result, operand, frozenset(steps))

    def _steps(self, result: Var, operand: Var) -> list[Var] | None:
        """The variables from ``result`` (without it) to ``operand`` in the order of their bindings; None if others
        that are no constants take part."""
        wanted, waiting = set(), [operand]
        while waiting:
            variable = waiting.pop()
            if variable.same_as(result) or variable in wanted or self._constants.value(variable) is not None:
                continue
            value = self._values.get(variable)
            if not isinstance(value, Call) or composite_name(value) is not None:
                return None
            wanted.add(variable)
            waiting += variable_uses(value)
        return [variable for variable in self._values if variable in wanted]


def _path_of(
    constants: ConstantEvaluator, result: Var, operand: Var, steps: Sequence[tuple[Var, Call]]
) -> BitPath | None:
    """Rule 2."""
    pools = [index for index, (_, call) in enumerate(steps) if op_name(call) == "relax.nn.max_pool2d"]
    if len(pools) > 1 or any(not _is_per_channel(call, constants) for _, call in steps if not _is_pool(call)):
        return None
    if not pools:
        return BitPath(after=_evaluator(constants, result, operand, steps))
    variable, call = steps[pools[0]]
    # What stands behind the pool reads the pool alone, and what the pool reads stands before it.
    after = steps[pools[0] + 1 :]
    known = {variable, *(step for step, _ in after)}
    if any(not operands <= known for operands in (_inputs(step, constants) for _, step in after)):
        return None
    pool = window_geometry(_shape(call.args[0]), _shape(call), call.attrs.pool_size, call.attrs, _shape(call)[1])
    if str(call.attrs.layout) != "NCHW" or not can_pool(pool):
        return None
    before = _evaluator(constants, result, call.args[0], steps[: pools[0]])
    return BitPath(before, pool, _evaluator(constants, variable, operand, after))


def _is_pool(call: Call) -> bool:
    return op_name(call) == "relax.nn.max_pool2d" and static_shape(call) is not None


def _inputs(call: Call, constants: ConstantEvaluator) -> set[Var]:
    return {variable for variable in variable_uses(call) if constants.value(variable) is None}


def _is_per_channel(call: Call, constants: ConstantEvaluator) -> bool:
    """Whether the call does the same to every element of a channel, and channels stay where they are (axis 1)."""
    shape = static_shape(call)
    if shape is None or len(shape) < 2:
        return False
    if moves_single_elements(call):
        return True
    if not is_elementwise(call):
        return False
    for operand in elementwise_operands(call):
        value = constants.value(operand)
        if value is None:
            if static_shape(operand) != shape:
                return False
        elif value.ndim > len(shape) or any(
            size != 1 for axis, size in enumerate(value.shape, len(shape) - value.ndim) if axis != 1
        ):
            return False
    return True


def _evaluator(
    constants: ConstantEvaluator, start: relax.Expr, end: relax.Expr, steps: Sequence[tuple[Var, Call]]
) -> Evaluate:
    """What ``steps`` make of values of ``start``: they run on a tensor with axes of one element behind the channels."""

    def evaluate(values: Array) -> Array:
        known = {start: _with_rank(values, start)}

        def value_of(operand: relax.Expr) -> Array:
            constant = constants.value(operand)
            return known[operand] if constant is None else constant

        with np.errstate(all="ignore"):
            for variable, call in steps:
                if moves_single_elements(call):
                    known[variable] = _with_rank(known[call.args[0]], variable)
                else:
                    operands = [value_of(operand) for operand in elementwise_operands(call)]
                    known[variable] = evaluate_elementwise(call, operands)
        return known[end].reshape(values.shape)

    return evaluate


def _with_rank(values: Array, like: relax.Expr) -> Array:
    return values.reshape(*values.shape[:2], *(1,) * (len(_shape(like)) - 2))


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    shape = static_shape(expr)
    assert shape is not None
    return shape


def composite_name(value: Any) -> str | None:
    """The function that ``value`` calls, if it is a call of one."""
    is_call = isinstance(value, Call) and isinstance(value.op, GlobalVar)
    return str(value.op.name_hint) if is_call else None


def _reads_as_it_is(reader: BinarySpec) -> bool:
    """Whether the reader compares the tensor's own channels: no move but a reshape that drops axes of one element."""
    if reader.geometry is not None:
        return not reader.prefix
    apart = reader.input_shape[:2] == (reader.rows, reader.fan_in) and math.prod(reader.input_shape[2:]) == 1
    return apart and all(kind == "reshape" for kind, _ in reader.prefix)


def packs_alike(left: BinarySpec, right: BinarySpec) -> bool:
    """Whether two layers make the same packed activation of a tensor."""
    (rule, parameters), (other_rule, other_parameters) = pack_rule(left), pack_rule(right)
    if (left.geometry is None) != (right.geometry is None) or left.prefix != right.prefix or rule != other_rule:
        return False
    if len(parameters) != len(other_parameters):
        return False
    if any(not np.array_equal(a, b) for a, b in zip(parameters, other_parameters, strict=True)):
        return False
    if left.geometry is None or right.geometry is None:
        return (left.rows, left.fan_in) == (right.rows, right.fan_in)
    return (
        ring_code(left) == ring_code(right)
        and left.geometry.pads == right.geometry.pads
        and conv_bits_shape(left.geometry, alphabet_of(left)) == conv_bits_shape(right.geometry, alphabet_of(right))
    )
