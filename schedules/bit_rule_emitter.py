"""The code of a ``PackRule``: from a vector of float activations to the bits of each plane."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping

from tvm import tirx

from bnn_compiler.schedules.intrinsics import fused_multiply_add
from bnn_compiler.schedules.isa import Isa
from bnn_compiler.schedules.kernel_builder import Buffer, Expr, Index, bind, constant, load, splat, typed
from bnn_compiler.schedules.pack_rule import PackRule, Predicate
from bnn_compiler.schedules.popcount import planes


class BitRuleEmitter:
    """Emits comparisons with thresholds; a code of k bits costs about two masked operations per threshold.

    ``length`` is the number of channels (features) that have thresholds; ``row_parameters`` says that the elements of a
    vector share their channel. ``buffers`` holds the rule's parameters, their names behind ``prefix``.
    """

    def __init__(
        self,
        rule: PackRule,
        length: int,
        isa: Isa,
        buffers: Mapping[str, Buffer],
        *,
        row_parameters: bool,
        prefix: str = "",
    ) -> None:
        self._rule = rule
        self._length = length
        self._isa = isa
        self._buffers = buffers
        self._row_parameters = row_parameters
        self._prefix = prefix

    def bits(self, value: Expr, lanes: int, parameter: Index, bit: Expr, zero: Expr) -> list[Expr]:
        """Per plane, ``bit`` where its bit is set for the elements of ``value``, else ``zero`` (of the same type).

        ``parameter`` is the channel, or that of the first element.
        """
        dtype = typed(self._rule.compute_dtype, lanes)
        if self._rule.dtype != self._rule.compute_dtype:
            value = value.astype(dtype)
        if self._rule.affine:
            scale, shift = self._parameter("scale", parameter, lanes), self._parameter("shift", parameter, lanes)
            value = fused_multiply_add(value, scale, shift, dtype, self._isa)
        if not self._rule.codes:
            bound = self._bound(0, parameter, lanes)
            return [_bit_where(predicate, value, bound, bit, zero) for predicate in self._rule.predicates()]
        value = bind(value)
        passed = [
            _bit_where(self._rule.predicate, value, self._bound(i, parameter, lanes), bit, zero)
            for i in range(len(self._rule.codes) - 1)
        ]
        changed = [[passed[i] for i in self._rule.changes(plane)] for plane in range(planes(self._rule.alphabet))]
        return [functools.reduce(operator.xor, terms, zero) for terms in changed]

    def _bound(self, i: int, parameter: Index, lanes: int) -> Expr:
        """Threshold ``i``."""
        if self._rule.threshold == "channel":
            return self._parameter("threshold", parameter + i * self._length if i else parameter, lanes)
        return constant(self._rule.thresholds[i], self._rule.compute_dtype, lanes)

    def _parameter(self, name: str, index: Index, lanes: int) -> Expr:
        buffer = self._buffers[self._prefix + name]
        return splat(load(buffer, index), lanes) if self._row_parameters else load(buffer, index, lanes)


def _bit_where(predicate: Predicate, value: Expr, bound: Expr, bit: Expr, zero: Expr) -> Expr:
    compare = {
        "ge": lambda: value >= bound,
        "gt": lambda: value > bound,
        "le": lambda: value <= bound,
        "lt": lambda: value < bound,
        "eq": lambda: tirx.EQ(value, bound),
    }
    if predicate in compare:
        return tirx.Select(compare[predicate](), bit, zero)
    # "not equal" and the negated predicates are true on NaN: the arms of an ordered comparison swap.
    positive = "eq" if predicate == "ne" else predicate[1:]
    return tirx.Select(compare[positive](), zero, bit)
