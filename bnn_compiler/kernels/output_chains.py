"""Chains of element-wise operators behind a tensor, in a form that kernels can apply to their results.

A chain goes on from a tensor to the one operator that reads it where

1. the tensor has a single use, and is no output of the network;
2. the operator is one of ``schedules.output_chain``, in float32, and keeps the tensor's shape;
3. its other operand is a number, a constant per output channel, or a tensor of the same shape (a residual).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, ConstantEvaluator, dtype_of, op_name, prim_value, static_shape
from bnn_compiler.kernels.variable_uses import variable_uses
from bnn_compiler.schedules.output_chain import Chain, ChainStep, Operator

_BINARY: dict[str, Operator] = {
    "relax.add": "add",
    "relax.subtract": "subtract",
    "relax.multiply": "multiply",
    "relax.divide": "divide",
    "relax.maximum": "maximum",
    "relax.minimum": "minimum",
}
#: A kernel's operand: a constant float32 [channels], or the tensor of a residual.
Operand = Any


@dataclass(frozen=True, eq=False)
class OutputChain:
    """Operators behind a tensor: ``absorbed`` are the variables they define, the last of which is the result."""

    steps: Chain = ()
    operands: tuple[Operand, ...] = ()
    absorbed: tuple[Var, ...] = ()

    def joined(self, other: OutputChain) -> OutputChain:
        """This chain, then the other."""
        return OutputChain(
            (*self.steps, *other.steps), (*self.operands, *other.operands), (*self.absorbed, *other.absorbed)
        )

    def of_channels(self, first: int, count: int) -> OutputChain | None:
        """The chain for some of the channels; None where it reads a residual."""
        if any(step.operand == "map" for step in self.steps):
            return None
        constants = tuple(np.ascontiguousarray(operand[first : first + count]) for operand in self.operands)
        return OutputChain(self.steps, constants, self.absorbed)


class DataFlow:
    """Definitions and uses of a function's variables."""

    def __init__(self, function: relax.Function) -> None:
        self.bindings: dict[Var, relax.Expr] = {}
        #: The variables whose definitions read a variable, once per occurrence.
        self.uses: dict[Var, list[Var]] = {}
        self.outputs: set[Var] = set()
        for block in function.body.blocks:
            for binding in block.bindings:
                self.bindings[binding.var] = binding.value
                for variable in variable_uses(binding.value):
                    self.uses.setdefault(variable, []).append(binding.var)
        self.outputs.update(variable_uses(function.body.body))
        self.constants = ConstantEvaluator(self.bindings)

    def only_user(self, variable: Var) -> Var | None:
        """Condition 1: what reads ``variable``, if there is exactly one use."""
        uses = self.uses.get(variable, [])
        return uses[0] if len(uses) == 1 and variable not in self.outputs else None


def follow(flow: DataFlow, start: Var, taken: Set[Var]) -> OutputChain:
    """The longest chain behind ``start``, whose shape is [N, C, H, W], that defines none of ``taken``."""
    chain, variable = OutputChain(), start
    while (user := flow.only_user(variable)) is not None:
        link = _link(flow, flow.bindings[user], variable, user)
        if link is None or user in taken:
            break
        chain, variable = chain.joined(link), user
    return chain


def _link(flow: DataFlow, call: relax.Expr, value: Var, result: Var) -> OutputChain | None:
    """Conditions 2 and 3: ``call`` as steps behind ``value``."""
    shape = static_shape(value)
    if not isinstance(call, Call) or shape is None or static_shape(call) != shape or dtype_of(call) != "float32":
        return None
    name = op_name(call)
    if name == "relax.nn.relu":
        return _of_steps(result, [ChainStep("relu")])
    if name == "relax.nn.leakyrelu":
        return _of_steps(result, [ChainStep("leaky_relu", float(np.float32(call.attrs.alpha)))])
    if name == "relax.clip":
        low, high = (float(np.float32(prim_value(bound))) for bound in call.args[1:])
        if not np.isfinite([low, high]).all():
            return None
        return _of_steps(result, [ChainStep("minimum", high), ChainStep("maximum", low)])
    if name == "relax.nn.prelu" and call.args[0].same_as(value) and int(call.attrs.axis) % len(shape) == 1:
        slope = flow.constants.value(call.args[1])
        if slope is None or slope.size not in (1, shape[1]):
            return None
        return _with_constant(result, "prelu", slope.reshape(-1), shape[1], swapped=False)
    if name not in _BINARY:
        return None
    swapped = not call.args[0].same_as(value)
    other = call.args[0 if swapped else 1]
    constant = flow.constants.value(other)
    if constant is not None:
        per_channel = constant.ndim >= 3 and constant.shape[-3] == constant.size == shape[1]
        if constant.dtype != np.float32 or not (per_channel or constant.size == 1):
            return None
        return _with_constant(result, _BINARY[name], constant.reshape(-1), shape[1], swapped=swapped)
    if not isinstance(other, Var) or static_shape(other) != shape or dtype_of(other) != "float32":
        return None
    return OutputChain((ChainStep(_BINARY[name], "map", swapped),), (other,), (result,))


def _of_steps(result: Var, steps: Sequence[ChainStep]) -> OutputChain:
    return OutputChain(tuple(steps), (), (result,))


def _with_constant(result: Var, operator: Operator, values: Array, channels: int, *, swapped: bool) -> OutputChain:
    """One step with a constant: a number where all channels have the same, which NaN and infinity are not."""
    if np.all(values == values[0]) and np.isfinite(values[0]) and values[0] != 0:
        return OutputChain((ChainStep(operator, float(values[0]), swapped),), (), (result,))
    operand = np.ascontiguousarray(np.broadcast_to(values, (channels,)).astype(np.float32))
    return OutputChain((ChainStep(operator, "channel", swapped),), (operand,), (result,))
