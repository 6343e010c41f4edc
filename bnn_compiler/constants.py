"""Values of Relax expressions that do not depend on any graph input.

Exporters leave weights behind chains of Transpose, Reshape, Cast and arithmetic. This evaluates such chains with NumPy,
lazily and without changing the module, so that a pass can look *through* them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Constant, Var

Array = np.ndarray[Any, np.dtype[Any]]

# Chains longer than this are not weights; the bound keeps a hostile graph from exhausting the stack.
_MAX_DEPTH = 64

#: Element-wise Relax operators with one operand and no attributes, as NumPy evaluates them.
UNARY: Mapping[str, Callable[[Array], Array]] = {
    "relax.sign": np.sign,
    "relax.abs": np.abs,
    "relax.negative": np.negative,
    "relax.nn.relu": lambda x: np.maximum(x, np.zeros((), x.dtype)),
    "relax.floor": np.floor,
    "relax.ceil": np.ceil,
    "relax.round": np.round,
    "relax.sqrt": np.sqrt,
    "relax.logical_not": np.logical_not,
}


def _divide(left: Array, right: Array) -> Array:
    """Division; of integers towards zero, as in C."""
    if left.dtype.kind not in "iu" or right.dtype.kind not in "iu":
        return np.asarray(np.divide(left, right))
    safe = np.where(right == 0, np.ones((), right.dtype), right)
    return np.asarray((left - np.fmod(left, safe)) // safe)


#: Element-wise Relax operators with two operands.
BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": _divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.greater": np.greater,
    "relax.greater_equal": np.greater_equal,
    "relax.less": np.less,
    "relax.less_equal": np.less_equal,
    "relax.equal": np.equal,
    "relax.not_equal": np.not_equal,
    "relax.logical_and": np.logical_and,
    "relax.logical_or": np.logical_or,
    "relax.logical_xor": np.logical_xor,
}


def op_name(expr: relax.Expr) -> str:
    """Name of the operator that ``expr`` calls, or an empty string where it is no call of an operator."""
    return str(getattr(expr.op, "name", "")) if isinstance(expr, Call) else ""


def static_shape(expr: relax.Expr) -> tuple[int, ...] | None:
    """Shape of a tensor expression, or None where it has none or a symbolic one."""
    shape = getattr(expr.ty, "shape", None)
    if shape is None:
        return None
    try:
        return tuple(int(size) for size in shape)
    except (TypeError, ValueError):
        return None


def dtype_of(expr: relax.Expr) -> str:
    """Element dtype of a tensor expression as a NumPy name, or an empty string."""
    return str(getattr(expr.ty, "dtype", ""))


def prim_value(expr: Any) -> float:
    """Number held by a scalar argument such as the bounds of ``relax.clip``."""
    return float(getattr(expr, "value", expr))


def elementwise_operands(call: Call) -> list[relax.Expr]:
    """The tensor operands of an element-wise call; the bounds of a clip are attributes here, not operands."""
    return [call.args[0]] if op_name(call) in {"relax.clip", "relax.astype"} else list(call.args)


def evaluate_elementwise(call: Call, operands: Sequence[Array]) -> Array:
    """What an element-wise call (an operator of the tables above, ``where``, ``clip``, ``astype``) gives."""
    name = op_name(call)
    if name == "relax.clip":
        return np.clip(operands[0], prim_value(call.args[1]), prim_value(call.args[2])).astype(operands[0].dtype)
    if name == "relax.astype":
        return operands[0].astype(dtype_of(call))
    return apply_elementwise(name, list(operands))


def is_elementwise(call: Call) -> bool:
    """Whether ``evaluate_elementwise`` takes the call."""
    name = op_name(call)
    return name in UNARY or name in BINARY or name in {"relax.where", "relax.clip", "relax.astype"}


def moves_single_elements(call: Call) -> bool:
    """Whether the call adds or removes axes of one element behind axis 1, the channels, and does nothing else."""
    if op_name(call) not in {"relax.reshape", "relax.expand_dims", "relax.squeeze", "relax.flatten"}:
        return False
    before, after = static_shape(call.args[0]), static_shape(call)
    if before is None or after is None or min(len(before), len(after)) < 2:
        return False
    return before[:2] == after[:2] and math.prod(before[2:]) == math.prod(after[2:]) == 1


class ConstantEvaluator:
    """Evaluates constant expressions of one function; ``bindings`` maps its variables to their definitions."""

    def __init__(self, bindings: Mapping[Var, relax.Expr]) -> None:
        self._bindings = bindings
        self._known: dict[Var, Array | None] = {}

    def value(self, expr: relax.Expr, depth: int = 0) -> Array | None:
        """The array that ``expr`` always holds, or None if it depends on an input or is not understood here."""
        if isinstance(expr, Constant):
            tensor: Any = getattr(expr, "value", None)
            return np.asarray(tensor.numpy()) if hasattr(tensor, "numpy") else None
        if depth > _MAX_DEPTH:
            return None
        if isinstance(expr, Var):
            if expr not in self._known:
                definition = self._bindings.get(expr)
                self._known[expr] = None if definition is None else self.value(definition, depth + 1)
            return self._known[expr]
        return self._call(expr, depth) if isinstance(expr, Call) else None

    def _call(self, call: Call, depth: int) -> Array | None:
        name = op_name(call)
        if name in UNARY or name in BINARY or name == "relax.where":
            operands = [self.value(arg, depth + 1) for arg in call.args]
            known = [operand for operand in operands if operand is not None]
            if len(known) < len(operands):
                return None
            with np.errstate(all="ignore"):
                return apply_elementwise(name, known)
        if name not in _MOVES:
            return None
        operand = self.value(call.args[0], depth + 1)
        return None if operand is None else _MOVES[name](call, operand)


def apply_elementwise(name: str, operands: list[Array]) -> Array:
    """Evaluate the operator ``name`` of the tables above (or ``relax.where``) on arrays."""
    if name == "relax.where":
        return np.where(operands[0], operands[1], operands[2])
    return UNARY[name](operands[0]) if len(operands) == 1 else BINARY[name](operands[0], operands[1])


def _reshape(call: Call, operand: Array) -> Array | None:
    shape = static_shape(call)
    return None if shape is None or math.prod(shape) != operand.size else operand.reshape(shape)


def _permute(call: Call, operand: Array) -> Array:
    axes = call.attrs.axes
    return operand.transpose([int(axis) for axis in axes] if axes is not None else None)


_MOVES: Mapping[str, Callable[[Call, Array], Array | None]] = {
    "relax.reshape": _reshape,
    "relax.expand_dims": _reshape,
    "relax.squeeze": _reshape,
    "relax.flatten": _reshape,
    "relax.permute_dims": _permute,
    "relax.astype": lambda call, operand: operand.astype(dtype_of(call)),
    "relax.broadcast_to": lambda call, operand: np.broadcast_to(operand, static_shape(call) or operand.shape),
}
