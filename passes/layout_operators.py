"""Which operators can be computed on tensors with permuted axes, and how they are written then.

For y = f(x, …) and a permutation π, ``permuted`` gives f' with f'(π·x, …) = π·y. Element-wise operators are their own
f', constants are permuted along; pads, concatenations, per-channel slopes and reductions name their axes, which are
renamed. Every element of the result is computed from the same numbers by the same operations, so nothing is rounded
otherwise; only a reduction may add them up in another order.

A reduction that drops its axes gives the same tensor from π·x as long as π keeps the order of the axes that stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import ConstantEvaluator, elementwise_operands, is_elementwise, op_name, static_shape

from .layout_assignment import Permutation

_MORE_ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "sigmoid", "tanh", "exp", "log", "erf", "rsqrt", "square", "power", "isnan", "isinf", "isfinite",
        "floor_divide", "nn.gelu", "nn.silu", "nn.leakyrelu",
    )
)  # fmt: skip
_REDUCTIONS = frozenset(f"relax.{name}" for name in ("sum", "mean", "max", "min", "prod"))

Visit = Callable[[relax.Expr], relax.Expr]
Rewrite = Callable[[Permutation, Sequence[relax.Expr], Visit], relax.Expr]


@dataclass(frozen=True, eq=False)
class Permutable:
    """A call that can be computed on permuted tensors.

    ``operands`` are the variables whose axes move along. ``rewrite`` takes π, them, permuted, and a function for the
    operands that stay as they are (in the module that is written); it gives f'. The result is permuted alike, unless
    the call ``drops_axes``: then it is the model's own. ``allows`` says for which π this holds.
    """

    operands: tuple[Var, ...]
    rewrite: Rewrite
    drops_axes: bool = False
    allows: Callable[[Permutation], bool] = lambda _: True


def permutable(value: relax.Expr, constants: ConstantEvaluator) -> Permutable | None:
    """``value`` (a definition) as a call that can be computed on permuted tensors, or None."""
    shape = static_shape(value)
    if not isinstance(value, Call) or shape is None:
        return None
    name = op_name(value)
    if is_elementwise(value) or name in _MORE_ELEMENTWISE:
        return _elementwise(value, constants, len(shape))
    if name == "relax.concat":
        return _concatenation(value, constants, len(shape))
    data = value.args[0] if value.args else None
    source = static_shape(data) if isinstance(data, Var) else None
    if source is None or constants.value(data) is not None:
        return None
    if name == "relax.nn.pad":
        return Permutable((data,), lambda axes, moved, _: _padded(value, axes, moved[0]))
    if name == "relax.nn.prelu":
        axis = int(value.attrs.axis) % len(shape)
        return Permutable(
            (data,), lambda axes, moved, keep: relax.op.nn.prelu(moved[0], keep(value.args[1]), axes.index(axis))
        )
    return _reduction(value, data, len(source)) if name in _REDUCTIONS else None


def _elementwise(call: Call, constants: ConstantEvaluator, rank: int) -> Permutable | None:
    operands = elementwise_operands(call)
    found = _moving(operands, constants, rank)
    if found is None:
        return None

    def rewrite(axes: Permutation, moved: Sequence[relax.Expr], keep: Visit) -> relax.Expr:
        arguments = _arguments(operands, found, moved, axes, constants, keep)
        return relax.Call(call.op, [*arguments, *call.args[len(operands) :]], call.attrs, call.ty_args)

    return Permutable(tuple(var for var in found if var is not None), rewrite)


def _concatenation(call: Call, constants: ConstantEvaluator, rank: int) -> Permutable | None:
    operands = list(getattr(call.args[0], "fields", []))
    found = _moving(operands, constants, rank) if operands else None
    if found is None or any(len(static_shape(operand) or ()) != rank for operand in operands):
        return None
    axis = int(call.attrs.axis) % rank

    def rewrite(axes: Permutation, moved: Sequence[relax.Expr], keep: Visit) -> relax.Expr:
        return relax.op.concat(_arguments(operands, found, moved, axes, constants, keep), axes.index(axis))

    return Permutable(tuple(var for var in found if var is not None), rewrite)


def _reduction(call: Call, data: Var, rank: int) -> Permutable:
    given = call.attrs.axis
    reduced = {int(axis) % rank for axis in given} if given is not None else set(range(rank))
    keeps = bool(call.attrs.keepdims)
    operator: Any = getattr(relax.op, op_name(call).removeprefix("relax."))

    def rewrite(axes: Permutation, moved: Sequence[relax.Expr], _: Visit) -> relax.Expr:
        return operator(moved[0], sorted(axes.index(axis) for axis in reduced), keeps)

    def allows(axes: Permutation) -> bool:
        left = [axis for axis in axes if axis not in reduced]
        return keeps or left == sorted(left)

    return Permutable((data,), rewrite, drops_axes=not keeps, allows=allows)


def _padded(call: Call, axes: Permutation, data: relax.Expr) -> relax.Expr:
    widths = [int(width) for width in call.attrs.pad_width]
    permuted = [width for axis in axes for width in widths[2 * axis : 2 * axis + 2]]
    return relax.op.nn.pad(data, permuted, str(call.attrs.pad_mode), float(call.attrs.pad_value))


def _moving(operands: Sequence[relax.Expr], constants: ConstantEvaluator, rank: int) -> list[Var | None] | None:
    """Per operand, the variable whose axes move along, or None for constants and scalars; None if one has other axes.

    An operand of fewer axes lies along the last ones and would need axes of its own.
    """
    found: list[Var | None] = []
    for operand in operands:
        shape = static_shape(operand)
        if shape is None:
            return None
        if constants.value(operand) is not None or (len(shape) < rank and all(size == 1 for size in shape)):
            found.append(None)
        elif isinstance(operand, Var) and len(shape) == rank:
            found.append(operand)
        else:
            return None
    return found if any(var is not None for var in found) else None


def _arguments(
    operands: Sequence[relax.Expr],
    moving: Sequence[Var | None],
    moved: Sequence[relax.Expr],
    axes: Permutation,
    constants: ConstantEvaluator,
    keep: Visit,
) -> list[relax.Expr]:
    """``operands`` with those that move replaced by ``moved``, constants permuted, and scalars kept."""
    remaining = iter(moved)
    return [
        next(remaining) if var is not None else _permuted_constant(operand, axes, constants, keep)
        for operand, var in zip(operands, moving, strict=True)
    ]


def _permuted_constant(operand: relax.Expr, axes: Permutation, constants: ConstantEvaluator, keep: Visit) -> relax.Expr:
    value = constants.value(operand)
    if value is None or value.size == 1:
        return keep(operand)
    aligned = value.reshape((1,) * (len(axes) - value.ndim) + value.shape)
    return relax.const(np.ascontiguousarray(aligned.transpose(axes)), str(value.dtype))
