"""What else a graph may give where floats round otherwise: every node evaluated with errors of rounding put in.

ONNX does not say in which order a sum is taken, nor how exactly ``Tanh`` is computed. An implementation may give any
value near the exact one, and where a ``Sign``, ``Round`` or comparison lies within such an error, any of the results
of both. So the graph is evaluated node by node in ONNX Runtime, several times, and each result that *can* round gets a
random error of the size that another order of the same operations makes (Parker, "Monte Carlo Arithmetic", 1997). What
cannot round gets none: a sum of integers is exact in any order, and a zero made of zeros stays zero. That is what
tells a ``Sign(0)`` that every implementation meets from one that only chance meets.

1. *Exact*: operators that select, compare, round to integers or move. No error.
2. *Sums of products*: |error| <= 8 ulp of the same operator applied to absolute values, S. None where all terms lie on
   one grid of powers of two and S is within the mantissa; a mean of such terms is divided, which rounds by an ulp.
3. *Elementwise arithmetic*: 4 ulp where the float64 result is another number than the float32 one, else none.
4. *Anything else*: the operator of operands with relative errors of 4 ulp (backward error), and 4 ulp of the result.

Some results are not defined at all, and so is what is computed of them: extremes of NaN, codes of NaN, integers that
overflow, floats that fit no integer, sums that overflow in one order and not in another (``docs/architecture.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from .one_node import Array, OneNode, RejectedNodeError, reads

_EXACT_OPERATORS = """
Abs And ArgMax ArgMin BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Clip Compress
Concat Constant ConstantOfShape DepthToSpace Dropout Equal Expand EyeLike Flatten Floor Gather GatherElements
GatherND GlobalMaxPool Greater GreaterOrEqual Hardmax Identity If IsInf IsNaN Less LessOrEqual Max MaxPool Min
Neg NonZero Not OneHot Or Pad QuantizeLinear Range ReduceMax ReduceMin Relu Reshape Round Shape Sign Size
Slice SpaceToDepth Split Squeeze TopK Transpose Tile Trilu Unique Unsqueeze Where Xor Mod ThresholdedRelu
"""
_SUMS_OPERATORS = """
Conv ConvTranspose Gemm MatMul Einsum ReduceSum Sum CumSum ReduceL1 AveragePool GlobalAveragePool ReduceMean
Mean ConvInteger MatMulInteger
"""
_EXACT = frozenset(_EXACT_OPERATORS.split())
_SUMS = frozenset(_SUMS_OPERATORS.split())
_DIVIDED = frozenset(("AveragePool", "GlobalAveragePool", "ReduceMean", "Mean"))
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x),
    "DequantizeLinear": lambda *_: np.float64(0),
}
#: What they make of NaN depends on where it lies in memory (docs/float-kernels.md).
_ORDERS_NAN = frozenset(("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"))
_QUANTISES = frozenset(("QuantizeLinear", "DynamicQuantizeLinear"))
_ULPS_OF_SUMS = 8
_ULPS = 4


@dataclass(frozen=True)
class Evaluation:
    """Tensors by name, and the names of those that are not defined on this input."""

    values: dict[str, Array]
    undefined: frozenset[str]


class RoundingModel:
    """A reference model, node by node. Sessions are made once and serve all evaluations."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take the nodes in the order of the file."""
        self._opset = next(entry.version for entry in model.opset_import if entry.domain == "")
        self._graph = model.graph
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._sessions: dict[str, OneNode] = {}

    def evaluate(
        self, feed: Mapping[str, Array], rng: np.random.Generator | None, undefined: frozenset[str] = frozenset()
    ) -> Evaluation:
        """One evaluation; without ``rng``, without errors. Nodes named in ``undefined`` have undefined results on NaN.

        Raises:
            RejectedNodeError: a node fails on these numbers.
        """
        values = {**self._constants, **feed}
        bad: set[str] = set()
        for node in self._graph.node:
            operands = {name: values[name] for name in reads(node)}
            results = self._run(node, operands)
            names = [name for name in node.output if name]
            if not bad.isdisjoint(operands) or _is_undefined(node, operands, results, undefined):
                bad.update(names)
            if rng is not None and node.op_type not in _EXACT:
                with np.errstate(all="ignore"):
                    results = self._with_errors(node, operands, results, rng)
            values.update(zip(names, results, strict=True))
        return Evaluation(values, frozenset(bad))

    def _run(self, node: NodeProto, operands: Mapping[str, Array]) -> list[Array]:
        key = node.output[0]
        if key not in self._sessions:
            constants = {name: value for name, value in operands.items() if name in self._constants}
            if node.op_type in _SUMS or _changes_operands(node):
                constants = {name: value for name, value in constants.items() if value.dtype.kind != "f"}
            self._sessions[key] = OneNode(node, self._opset, operands, constants)
        return self._sessions[key](operands)

    def _with_errors(
        self, node: NodeProto, operands: Mapping[str, Array], results: list[Array], rng: np.random.Generator
    ) -> list[Array]:
        if not any(result.dtype.kind == "f" for result in results):
            return results
        unit = _unit(results[0].dtype)
        if node.op_type in _SUMS:
            sizes = self._run(node, {name: _size(value) for name, value in operands.items()})
            return [
                _add_error(y, self._sum_error(node, operands, y, s), rng) for y, s in zip(results, sizes, strict=True)
            ]
        if node.op_type in _ARITHMETIC:
            return [_add_error(results[0], _arithmetic_error(node, operands, results[0]), rng)]
        if _changes_operands(node):
            moved = {name: _moved(value, rng, unit) for name, value in operands.items()}
            results = self._run(node, moved)
        return [_add_error(y, _ULPS * _unit(y.dtype) * np.abs(y.astype(np.float64)), rng) for y in results]

    def _sum_error(self, node: NodeProto, operands: Mapping[str, Array], result: Array, size: Array) -> Array:
        unit = _unit(result.dtype)
        terms = max((value.size for value in operands.values()), default=1)
        largest = float(np.max(np.abs(size.astype(np.float64)), initial=0.0)) * (
            terms if node.op_type in _DIVIDED else 1
        )
        step = 1.0
        for value in operands.values():
            if value.dtype.kind == "f":
                step = step * _grid(value) if node.op_type not in ("Sum", "Mean") else min(step, _grid(value))
        for attribute in node.attribute:
            if attribute.name in ("alpha", "beta"):
                step *= _grid(np.float32(attribute.f))
        if step and np.isfinite(largest) and largest / step < 1 / unit:
            rounds = node.op_type in _DIVIDED
            return np.abs(result.astype(np.float64)) * (2 * unit if rounds else 0.0)
        return _ULPS_OF_SUMS * unit * np.abs(size.astype(np.float64))


def _changes_operands(node: NodeProto) -> bool:
    return node.op_type not in _ARITHMETIC and node.op_type not in _EXACT


def _unit(dtype: np.dtype[Any]) -> float:
    """Half an ulp of 1."""
    return float(np.finfo(dtype).eps) / 2 if dtype.kind == "f" else 0.0


def _size(value: Array) -> Array:
    return np.abs(value) if value.dtype.kind == "f" else value


def _moved(value: Array, rng: np.random.Generator, unit: float) -> Array:
    if value.dtype.kind != "f" or not value.size:
        return value
    return np.asarray(
        value * (1 + _ULPS * max(unit, _unit(value.dtype)) * rng.uniform(-1, 1, value.shape)), value.dtype
    )


def _add_error(result: Array, error: Array, rng: np.random.Generator) -> Array:
    if result.dtype.kind != "f":
        return result
    wide = result.astype(np.float64)
    moved = wide + np.where(np.isfinite(wide) & np.isfinite(error), error, 0.0) * rng.uniform(-1, 1, wide.shape)
    return np.asarray(moved, result.dtype)


def _arithmetic_error(node: NodeProto, operands: Mapping[str, Array], result: Array) -> Array:
    """Rule 3; integers are exact, and dequantised codes are if their scales are powers of two."""
    unit = _unit(result.dtype)
    size = np.abs(result.astype(np.float64))
    if node.op_type == "DequantizeLinear":
        exact = np.full(result.shape, _grid(operands[node.input[1]]) > 0)
    else:
        wide = [operands[name].astype(np.float64) for name in node.input]
        exact = _ARITHMETIC[node.op_type](*wide) == result.astype(np.float64)
    return np.where(exact, 0.0, _ULPS * unit * size)


def _grid(value: Array | np.floating[Any]) -> float:
    """The largest power of two that all values are multiples of, if these are short numbers; else 0."""
    wide = np.abs(np.asarray(value, np.float64)).ravel()
    wide = wide[wide > 0]
    if not wide.size:
        return 1.0
    if not np.isfinite(wide).all():
        return 0.0
    exponents = np.frexp(wide)[1]
    step = float(np.ldexp(1.0, int(exponents.min()) - 8))
    if (wide / step != np.rint(wide / step)).any():
        return 0.0
    while (wide / (2 * step) == np.rint(wide / (2 * step))).all():
        step *= 2
    return step


def _is_undefined(
    node: NodeProto, operands: Mapping[str, Array], results: list[Array], undefined: frozenset[str]
) -> bool:
    """The cases that the module's docstring lists."""
    floats = [value for value in operands.values() if value.dtype.kind == "f"]
    has_nan = any(np.isnan(value).any() for value in floats)
    finite = all(np.isfinite(value).all() for value in floats)
    if has_nan and (node.op_type in _ORDERS_NAN or node.op_type in _QUANTISES or node.name in undefined):
        return True
    if node.op_type in ("Cast", "CastLike") and floats and results[0].dtype.kind in "iu":
        # Codes of 8 bits wrap or saturate, as the processor likes.
        limits = np.iinfo(results[0].dtype)
        wide = floats[0].astype(np.float64)
        return not finite or bool(((wide <= limits.min - 1) | (wide >= limits.max + 1)).any())
    if node.op_type in ("Add", "Sub", "Mul", "Sum", "ReduceSum", "CumSum", "ReduceProd", "Neg", "Abs", "Pow"):
        integers = [value for value in operands.values() if value.dtype.kind == "i"]
        if results[0].dtype.kind == "i" and integers:
            return any(_may_overflow(value) for value in [*integers, *results])
    overflows = any(y.dtype.kind == "f" and not np.isfinite(y).all() for y in results)
    # Elementwise arithmetic overflows alike everywhere; sums, norms and half precision do not.
    half = any(y.dtype == np.float16 for y in results)
    return finite and overflows and (half or (node.op_type not in _ARITHMETIC and node.op_type not in _EXACT))


def _may_overflow(value: Array) -> bool:
    if value.dtype.kind != "i" or not value.size:
        return False
    limit = float(np.iinfo(value.dtype).max) / 4
    return bool(np.abs(value.astype(np.float64)).max() > limit)


__all__ = ["Evaluation", "RejectedNodeError", "RoundingModel"]
