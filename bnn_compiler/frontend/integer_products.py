"""Products of 8-bit integers, exact, by float32 convolutions and matrix products.

A sum of products of integers is exact in float32, in any order, while the magnitudes of its terms sum to 2^24 or less.
The bound is taken from the constants themselves: for each output, the sum of |w - zero point| times the largest
|x - zero point|. A longer sum is cut along the channels into parts that each keep the bound, and the parts are added as
32-bit integers, so that every form is the integer arithmetic of ONNX's definition. (ONNX Runtime on x86 processors
without VNNI saturates sums of two products of uint8 and int8 at 16 bits, unless asked for precision.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, TensorProto

from bnn_compiler.errors import UnsupportedOperatorError

from .node_emitter import NodeEmitter
from .onnx_graph import TENSOR_DTYPES, describe_node
from .versioned_operators import emit_slice

_Array = npt.NDArray[Any]

EXACT = 2.0**24
"""float32 holds all integers up to here."""


@dataclass(frozen=True)
class IntegerSum:
    """A tensor of sums. ``bound`` is that of their magnitudes where they are float32, else they are int32."""

    name: str
    bound: float | None


@dataclass(frozen=True)
class IntegerOperand:
    """Integers less their zero point, as float32; ``value`` where they are constant, else ``largest`` bounds them."""

    name: str
    value: _Array | None
    largest: float


def emit_centred(emit: NodeEmitter, data: str, zero: str, zero_shape: tuple[int, ...] = ()) -> IntegerOperand:
    """``data`` less its zero point (none where ``zero`` is empty), which is brought into ``zero_shape``."""
    limits = np.iinfo(TENSOR_DTYPES[emit.element_type_of(data)])
    values = emit("Cast", data, to=int(TensorProto.FLOAT))
    offset = emit.constant_value(zero) if zero else np.zeros(1)
    if zero and (offset is None or offset.any()):
        point = emit("Cast", zero, to=int(TensorProto.FLOAT))
        values = emit("Sub", values, emit("Reshape", point, emit.integers(zero_shape)))
    constant = emit.constant_value(data)
    if offset is None:
        return IntegerOperand(values, None, float(limits.max) - float(limits.min))
    known = None
    if constant is not None:
        known = constant.astype(np.float64) - (offset.astype(np.float64).reshape(zero_shape) if zero else 0.0)
    highest, lowest = float(offset.max(initial=0)), float(offset.min(initial=0))
    largest = max(highest - float(limits.min), float(limits.max) - lowest)
    return IntegerOperand(values, known, largest)


def emit_product(
    node: NodeProto,
    emit: NodeEmitter,
    operator: str,
    operands: tuple[IntegerOperand, IntegerOperand],
    axes: tuple[int, int],
    terms: tuple[int, int],
    **attributes: Any,
) -> IntegerSum:
    """``operator`` of the operands, summed over along ``axes``: ``terms[0]`` indices of ``terms[1]`` terms each.

    Raises:
        UnsupportedOperatorError: the sum is too long to cut.
    """
    first, second = operands
    costs = _costs(operator, second, axes[1], terms)
    parts = _cuts(costs * first.largest)
    if parts is None or (len(parts) > 1 and attributes.get("group", 1) != 1):
        raise UnsupportedOperatorError(
            f"{describe_node(node)} sums so many products of integers that float32 cannot hold them: "
            "leave this node out of the quantisation"
        )
    if len(parts) == 1:
        bound = float((costs * first.largest).sum(axis=0).max(initial=0.0))
        return IntegerSum(emit(operator, first.name, second.name, **attributes), bound)
    total = ""
    for begin, end in parts:
        left = emit_slice(emit, first.name, axes[0], begin, end)
        right = emit_slice(emit, second.name, axes[1], begin, end)
        part = emit("Cast", emit(operator, left, right, **attributes), to=int(TensorProto.INT32))
        total = emit("Add", total, part) if total else part
    return IntegerSum(total, None)


def _costs(operator: str, weight: IntegerOperand, axis: int, terms: tuple[int, int]) -> _Array:
    """Sums of magnitudes of the weights, by index of the axis and output; the worst case where they are not known."""
    if weight.value is None:
        return np.full((terms[0], 1), float(terms[1]) * weight.largest)
    if operator == "Conv":  # the taps of a channel belong to one sum
        return np.asarray(np.abs(weight.value).reshape(*weight.value.shape[:2], -1).sum(axis=2).T)
    return np.asarray(np.abs(np.moveaxis(weight.value, axis, 0)).reshape(terms[0], -1))


def _cuts(costs: _Array) -> list[tuple[int, int]] | None:
    """Consecutive ranges of the first axis in each of which every column sums to ``EXACT`` or less."""
    ranges: list[tuple[int, int]] = []
    begin, sums = 0, np.zeros(costs.shape[1])
    for index, cost in enumerate(costs):
        if cost.max(initial=0.0) > EXACT:
            return None
        sums = sums + cost
        if sums.max(initial=0.0) > EXACT:
            ranges.append((begin, index))
            begin, sums = index, cost
    return [*ranges, (begin, len(costs))]


def emit_biased(emit: NodeEmitter, product: IntegerSum, bias: str, shape: Callable[[str], str]) -> IntegerSum:
    """The sums plus a bias of int32, which ``shape`` makes broadcast; an empty one is none."""
    if not bias:
        return product
    value = emit.constant_value(bias)
    added = float(np.abs(value.astype(np.float64)).max(initial=0.0)) if value is not None else EXACT
    if product.bound is not None and product.bound + added <= EXACT:
        wide = emit("Cast", bias, to=int(TensorProto.FLOAT))
        return IntegerSum(emit("Add", product.name, shape(wide)), product.bound + added)
    return IntegerSum(emit("Add", emit_integers(emit, product), shape(bias)), None)


def emit_integers(emit: NodeEmitter, product: IntegerSum) -> str:
    """The sums as int32."""
    return product.name if product.bound is None else emit("Cast", product.name, to=int(TensorProto.INT32))


def emit_floats(emit: NodeEmitter, product: IntegerSum) -> str:
    """The sums as float32, rounded once."""
    return product.name if product.bound is not None else emit("Cast", product.name, to=int(TensorProto.FLOAT))
