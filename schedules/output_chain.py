"""Element-wise float operators behind a binary convolution, applied to its results while they are in registers.

A chain is a sequence of operators, each of which takes the value before it and at most one more operand: a number, a
value per output channel, or a map of the output's shape (a residual). Every operator is written as TVM's own definition
of it and rounds by itself (``float_rounding`` says what must be kept apart), so a fused chain gives the bits of the
operators one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tvm import tirx

from bnn_compiler.schedules.float_nan import maximum, minimum
from bnn_compiler.schedules.kernel_builder import (
    Argument,
    Buffer,
    Expr,
    Index,
    bind,
    constant,
    join,
    load,
    splat,
    typed,
)

Operator = Literal["add", "subtract", "multiply", "divide", "maximum", "minimum", "relu", "leaky_relu", "prelu"]
#: ``channel``: float32 [channels]; ``map``: float32 of the output's shape; a number; None where there is one operand.
Operand = Literal["channel", "map"] | float | None

_UNARY = ("relu",)
_SUMS = ("add", "subtract")
_SELECTIONS = ("maximum", "minimum", "relu", "prelu", "leaky_relu")


@dataclass(frozen=True)
class ChainStep:
    """``operator(value, operand)``, or ``operator(operand, value)`` where ``swapped``.

    ``prelu`` and ``leaky_relu`` have the slope as operand.
    """

    operator: Operator
    operand: Operand = None
    swapped: bool = False

    def __post_init__(self) -> None:
        """Refuse an operand that is missing or in the wrong place."""
        if (self.operand is None) != (self.operator in _UNARY):
            raise ValueError(f"{self.operator} with operand {self.operand}")
        if self.swapped and self.operator in ("prelu", "leaky_relu"):
            raise ValueError(f"{self.operator} takes the slope second")


Chain = tuple[ChainStep, ...]


def chain_arguments(chain: Chain, shape: tuple[int, ...]) -> list[Argument]:
    """The kernel's parameters for a chain behind an output of ``shape`` [N, C, H, W], one per operand in memory."""
    return [
        Argument(_name(i), (shape[1],) if step.operand == "channel" else shape, "float32")
        for i, step in enumerate(chain)
        if isinstance(step.operand, str)
    ]


class ChainEmitter:
    """Applies a chain to vectors of adjacent pixels of one channel."""

    def __init__(self, chain: Chain, buffers: Mapping[str, Buffer]) -> None:
        self._chain = chain
        self._buffers = buffers

    def parameters(self, channel: Expr) -> list[Expr]:
        """The values of ``channel``, per step; for ``apply``."""
        return [
            bind(load(self._buffers[_name(i)], channel)) if step.operand == "channel" else None
            for i, step in enumerate(self._chain)
        ]

    def apply(self, value: Expr, parameters: Sequence[Expr], index: Index, lanes: int, valid: int) -> Expr:
        """The chain's result for float32 x lanes.

        ``index`` is the first element's position in the output; only the first ``valid`` of the vector exist there.
        """
        for i, step in enumerate(self._chain):
            if step.operator in _SUMS:
                # As two operators the sum or product before would have been rounded: no contraction, no x + c − c.
                value = _fence(value, lanes)
            operand = self._operand(i, step, parameters[i], index, lanes, valid)
            left, right = (operand, value) if step.swapped else (value, operand)
            value = _OPERATORS[step.operator](left, right, constant(0.0, "float32", lanes))
            # TVM's analysis of integer ranges fails on a product of a selection of floats; it stops at a call.
            value = bind(_fence(value, lanes) if step.operator in _SELECTIONS else value)
        return value

    def _operand(self, i: int, step: ChainStep, parameter: Expr, index: Index, lanes: int, valid: int) -> Expr:
        if step.operand is None:
            return None
        if step.operand == "channel":
            return splat(parameter, lanes)
        if isinstance(step.operand, float):
            return constant(step.operand, "float32", lanes)
        buffer = self._buffers[_name(i)]
        if valid < lanes:
            return join([load(buffer, index + min(lane, valid - 1)) for lane in range(lanes)])
        return bind(load(buffer, index, lanes))


def _name(step: int) -> str:
    return f"operand_{step}"


def _fence(value: Expr, lanes: int) -> Expr:
    return tirx.call_llvm_pure_intrin(typed("float32", lanes), "llvm.arithmetic.fence", value)


_OPERATORS: Mapping[Operator, Callable[[Expr, Expr, Expr], Expr]] = {
    "add": lambda a, b, _zero: a + b,
    "subtract": lambda a, b, _zero: a - b,
    "multiply": lambda a, b, _zero: a * b,
    "divide": lambda a, b, _zero: a / b,
    "maximum": lambda a, b, _zero: maximum(a, b),
    "minimum": lambda a, b, _zero: minimum(a, b),
    "relu": lambda a, _b, zero: maximum(a, zero),
    "leaky_relu": lambda a, slope, zero: tirx.Select(a > zero, a, a * slope),
    "prelu": lambda a, slope, zero: tirx.Select(a < zero, a * slope, a),
}
