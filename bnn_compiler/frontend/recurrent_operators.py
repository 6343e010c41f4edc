"""``RNN``, ``GRU`` and ``LSTM`` written out step by step.

The products of all inputs with W are one matrix product in front; each step adds the product of the state with R. With
the gates' inputs a = X_t W' + H R' + b (clipped where ``clip`` says so) and the activations f, g, h:

``RNN``
    H = f(a)
``GRU``, gates z, r, h
    H = (1 - z) * n + z * H;  n = g(X_t W_h' + (r * H) R_h' + b), or with ``linear_before_reset``
    g(X_t W_h' + r * (H R_h' + b_R) + b_W)
``LSTM``, gates i, o, f, c
    C = f * C + i * c, H = o * h(C), where i and f see C through the peepholes P, and o the new C; with ``input_forget``
    f = 1 - i

A sequence shorter than the tensor (``sequence_lens``) keeps its state in the steps beyond its end, where Y is 0; a
reverse pass starts with those steps, so that it begins at each sequence's own end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import attribute_value, describe_node, integer_attribute, text_attribute
from .recurrent_activations import Activation, read_activations
from .unrolling_limit import check_unrolled_size
from .versioned_operators import emit_reshape, emit_slice, emit_split, emit_squeeze, emit_unsqueeze

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_STEP_NODES = {"RNN": 6, "GRU": 20, "LSTM": 28}
"""Nodes per step and direction, with clips, peepholes and masks: an upper bound."""


@dataclass(frozen=True)
class _Sizes:
    steps: int
    batch: int
    inputs: int
    hidden: int
    directions: int


class _Recurrence:
    """One node: its sizes, and what its directions share."""

    def __init__(self, node: NodeProto, emit: NodeEmitter, sizes: _Sizes, activations: list[list[Activation]]) -> None:
        self.node, self.emit, self.sizes, self.activations = node, emit, sizes, activations
        self.gates = _GATES[node.op_type]
        limit = attribute_value(node, "clip", 0.0)
        assert isinstance(limit, float)
        self.limit = limit
        self.batch_first = bool(integer_attribute(node, "layout", 0))
        data = node.input[0]
        if self.batch_first:
            data = emit("Transpose", data, perm=[1, 0, 2])
        self.rows = emit_reshape(emit, data, [sizes.steps * sizes.batch, sizes.inputs])
        self.active = self._active_steps()

    def operand(self, index: int) -> str:
        """The name of an optional input; empty where it is absent."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def of_direction(self, index: int, direction: int) -> str:
        """One direction's part of an input whose first axis is the direction; empty where it is absent."""
        name = self.operand(index)
        if not name:
            return ""
        part = name if self.sizes.directions == 1 else emit_slice(self.emit, name, 0, direction, direction + 1)
        return emit_squeeze(self.emit, part, [0])

    def state(self, index: int, direction: int) -> str:
        """An initial state, [batch, hidden]; zeros where it is absent."""
        emit, sizes = self.emit, self.sizes
        name = self.operand(index)
        if not name:
            return emit.constant(np.zeros((sizes.batch, sizes.hidden)))
        axis = 1 if self.batch_first else 0
        part = name if sizes.directions == 1 else emit_slice(emit, name, axis, direction, direction + 1)
        return emit_squeeze(emit, part, [axis])

    def input_terms(self, direction: int, bias: str) -> list[str]:
        """X_t W' + bias of each step, [batch, gates * hidden]."""
        emit, sizes = self.emit, self.sizes
        weight = emit("Transpose", self.of_direction(1, direction), perm=[1, 0])
        terms = emit("MatMul", self.rows, weight)
        terms = emit("Add", terms, bias) if bias else terms
        return emit_split(emit, terms, 0, [sizes.batch] * sizes.steps)

    def biases(self, direction: int) -> tuple[str, str]:
        """The biases of W and of R, [gates * hidden]; empty where there are none."""
        name = self.of_direction(3, direction)
        if not name:
            return "", ""
        width = self.gates * self.sizes.hidden
        first, second = emit_split(self.emit, name, 0, [width, width])
        return first, second

    def clipped(self, data: str) -> str:
        """The input of an activation."""
        return self.emit.clip(data, -self.limit, self.limit) if self.limit > 0 else data

    def keep(self, step: int, new: str, old: str) -> str:
        """The new state where the step is part of the sequence."""
        return self.emit("Where", self.active[step], new, old) if self.active else new

    def gate_parts(self, data: str, count: int, axis: int = 1) -> list[str]:
        """Equal parts, one per gate."""
        return emit_split(self.emit, data, axis, [self.sizes.hidden] * count)

    def finish(self, outputs: Sequence[list[str]], states: Sequence[Sequence[str]]) -> None:
        """Y from the steps of each direction, in order of time; and the last states."""
        emit, axis = self.emit, 1
        if self.node.output[0]:
            whole = [
                emit("Concat", *(emit_unsqueeze(emit, step, [0, 1]) for step in steps), axis=0) for steps in outputs
            ]
            joined = whole[0] if len(whole) == 1 else emit("Concat", *whole, axis=axis)
            if self.batch_first:
                emit.result("Transpose", joined, perm=[2, 0, 1, 3])
            else:
                emit.result("Identity", joined)
        for index, of_directions in enumerate(zip(*states, strict=True), start=1):
            axis = 1 if self.batch_first else 0
            parts = [emit_unsqueeze(emit, state, [axis]) for state in of_directions]
            emit.result("Concat", *parts, index=index, axis=axis)

    def _active_steps(self) -> list[str]:
        """Per step, which sequences it is part of, [batch, 1]; empty where all of them are whole."""
        emit, name = self.emit, self.operand(4)
        known = emit.constant_value(name) if name else None
        if not name or (known is not None and (known >= self.sizes.steps).all()):
            return []
        lengths = emit_unsqueeze(emit, name, [1])
        return [emit("Greater", lengths, emit.constant(np.asarray(t), np.int32)) for t in range(self.sizes.steps)]


_Step = Callable[[str, str, int], Sequence[str]]
"""From H, C and the number of the step to the new ones; C is empty but for an LSTM."""


def _rnn_steps(whole: _Recurrence, direction: int) -> _Step:
    emit, [activation] = whole.emit, whole.activations[direction]
    first, second = whole.biases(direction)
    terms = whole.input_terms(direction, emit("Add", first, second) if first else "")
    recurrent = emit("Transpose", whole.of_direction(2, direction), perm=[1, 0])

    def step(hidden: str, _: str, index: int) -> Sequence[str]:
        return [activation(emit, whole.clipped(emit("Add", terms[index], emit("MatMul", hidden, recurrent)))), ""]

    return step


def _gru_steps(whole: _Recurrence, direction: int) -> _Step:
    emit, [gate, candidate] = whole.emit, whole.activations[direction]
    size = whole.sizes.hidden
    linear = bool(integer_attribute(whole.node, "linear_before_reset", 0))
    first, second = whole.biases(direction)
    own = ""
    if first and linear:  # the candidate's recurrent bias is reset with its product
        gates, own = emit_split(emit, second, 0, [2 * size, size])
        second = emit("Concat", gates, emit.constant(np.zeros(size)), axis=0)
    terms = whole.input_terms(direction, emit("Add", first, second) if first else "")
    recurrent = emit("Transpose", whole.of_direction(2, direction), perm=[1, 0])
    of_gates, of_candidate = emit_split(emit, recurrent, 1, [2 * size, size])
    one = emit.scalar(1.0)

    def step(hidden: str, _: str, index: int) -> Sequence[str]:
        given, new = emit_split(emit, terms[index], 1, [2 * size, size])
        both = gate(emit, whole.clipped(emit("Add", given, emit("MatMul", hidden, of_gates))))
        update, reset = whole.gate_parts(both, 2)
        if linear:
            product = emit("MatMul", hidden, of_candidate)
            product = emit("Mul", reset, emit("Add", product, own) if own else product)
        else:
            product = emit("MatMul", emit("Mul", reset, hidden), of_candidate)
        value = candidate(emit, whole.clipped(emit("Add", new, product)))
        kept = emit("Mul", update, hidden)
        return [emit("Add", emit("Mul", emit("Sub", one, update), value), kept), ""]

    return step


def _lstm_steps(whole: _Recurrence, direction: int) -> _Step:
    emit, [gate, candidate, output] = whole.emit, whole.activations[direction]
    coupled = bool(integer_attribute(whole.node, "input_forget", 0))
    first, second = whole.biases(direction)
    terms = whole.input_terms(direction, emit("Add", first, second) if first else "")
    recurrent = emit("Transpose", whole.of_direction(2, direction), perm=[1, 0])
    peepholes = whole.of_direction(7, direction)
    seen = whole.gate_parts(peepholes, 3, axis=0) if peepholes else []
    one = emit.scalar(1.0)

    def peep(data: str, cell: str, index: int) -> str:
        return whole.clipped(emit("Add", data, emit("Mul", seen[index], cell)) if seen else data)

    def step(hidden: str, cell: str, index: int) -> Sequence[str]:
        inputs, outputs, forgets, cells = whole.gate_parts(
            emit("Add", terms[index], emit("MatMul", hidden, recurrent)), 4
        )
        taken = gate(emit, peep(inputs, cell, 0))
        kept = emit("Sub", one, taken) if coupled else gate(emit, peep(forgets, cell, 2))
        value = candidate(emit, whole.clipped(cells))
        cell = emit("Add", emit("Mul", kept, cell), emit("Mul", taken, value))
        shown = gate(emit, peep(outputs, cell, 1))
        return [emit("Mul", shown, output(emit, cell)), cell]

    return step


_STEPS: Mapping[str, Callable[[_Recurrence, int], _Step]] = {"RNN": _rnn_steps, "GRU": _gru_steps, "LSTM": _lstm_steps}


def _lower_recurrent(node: NodeProto, emit: NodeEmitter) -> str | None:
    if any(emit.shape(name) is None for name in node.input if name):
        return "the shapes of its operands are not known"
    direction = text_attribute(node, "direction", "forward")
    sizes = _sizes(node, emit, direction)
    check_unrolled_size(node, sizes.steps * sizes.directions, _STEP_NODES[node.op_type])
    if emit.opset < 9 and len(node.input) > 4 and node.input[4]:
        raise UnsupportedOperatorError(f"{describe_node(node)} has sequence_lens before operator set 9")
    whole = _Recurrence(node, emit, sizes, read_activations(node, sizes.directions))
    outputs: list[list[str]] = []
    states: list[Sequence[str]] = []
    zeros = emit.scalar(0.0)
    for index in range(sizes.directions):
        backwards = direction == "reverse" or index == 1
        hidden, cell = whole.state(5, index), whole.state(6, index) if node.op_type == "LSTM" else ""
        advance = _STEPS[node.op_type](whole, index)
        results = [""] * sizes.steps
        for step in range(sizes.steps)[:: -1 if backwards else 1]:
            new, new_cell = advance(hidden, cell, step)
            results[step] = whole.keep(step, new, zeros)
            hidden, cell = whole.keep(step, new, hidden), whole.keep(step, new_cell, cell) if cell else ""
        outputs.append(results)
        states.append([hidden, cell] if cell else [hidden])
    whole.finish(outputs, states)
    return None


def _sizes(node: NodeProto, emit: NodeEmitter, direction: str) -> _Sizes:
    """The sizes, from the operands; all of these must agree."""
    directions = {"forward": 1, "reverse": 1, "bidirectional": 2}.get(direction)
    if directions is None:
        raise ModelError(f"{describe_node(node)} has the unknown direction {direction!r}")
    data, weight, recurrent = (emit.shape(name) or () for name in node.input[:3])
    if (len(data), len(weight), len(recurrent)) != (3, 3, 3):
        raise ModelError(f"{describe_node(node)} has operands of other ranks than 3")
    hidden = integer_attribute(node, "hidden_size", recurrent[2])
    batch_first = integer_attribute(node, "layout", 0)
    steps, batch = data[:2][:: -1 if batch_first else 1]
    sizes = _Sizes(steps, batch, data[2], hidden, directions)
    rows = _GATES[node.op_type] * hidden
    state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
    expected: list[tuple[int, ...]] = [
        data,
        (directions, rows, data[2]),
        (directions, rows, hidden),
        (directions, 2 * rows),
        (batch,),
        state,
        state,
        (directions, 3 * hidden),
    ]
    for name, shape in zip(node.input, expected, strict=False):
        if name and emit.shape(name) != shape:
            raise ModelError(
                f"{describe_node(node)} has {name!r} of shape {list(emit.shape(name) or ())}; {list(shape)} is expected"
            )
    if not all((steps, batch, data[2], hidden > 0)):
        raise UnsupportedOperatorError(f"{describe_node(node)} has no elements to compute")
    return sizes


RECURRENT_LOWERINGS: Mapping[str, Lowering] = dict.fromkeys(_GATES, _lower_recurrent)
"""By operator of the standard domain."""
