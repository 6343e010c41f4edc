"""``Scan`` and ``Loop`` without control flow: the body once per step.

``Scan``
    the steps are the extent of the scanned axes. Step t reads the slices t of its inputs (from the end where
    ``scan_input_directions`` says so) and gives slices that are stacked to the outputs.
``Loop``
    the steps are the constant trip count. The condition must be constantly true: given so or absent, and in the body a
    constant or the condition itself.

Steps are written out up to the limit of :mod:`bnn_compiler.frontend.unrolling_limit`, counted before anything is
written; what is left after constants are folded is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, numpy_helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .body_inlining import BodyInliner
from .node_emitter import NodeEmitter
from .onnx_graph import all_nodes, attribute_value, describe_node, integer_attribute, integers_attribute, tensor_types
from .unrolling_limit import check_unrolled_size
from .versioned_operators import emit_split, emit_squeeze, emit_unsqueeze

LOOPS = frozenset({"Loop", "Scan"})

OLDEST_SCAN = 9
"""The operator set; before it, ``Scan`` had a batch axis."""

_NO_STEPS = "it has no steps"


def unroll_loops(model: onnx.ModelProto, opset: int) -> int:
    """Write out the loops of the main graph whose number of steps is known, in place; the number of these.

    Raises:
        UnsupportedOperatorError: a loop has too many steps or none, or a form that is not supported.
        ModelError: a loop contradicts its operator's definition.
    """
    if not any(node.op_type in LOOPS for node in model.graph.node):
        return 0
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = tensor_types(model.graph)
    nodes: list[NodeProto] = []
    unrolled = written = 0
    for node in model.graph.node:
        loop = _Loop(model.graph, node, NodeEmitter(node, opset, constants, types)) if node.op_type in LOOPS else None
        if loop is None or loop.obstacle() is not None:
            nodes.append(node)
            continue
        written += loop.check_size(written)
        nodes.extend(loop.unroll())
        unrolled += 1
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return unrolled


def require_no_loops(model: onnx.ModelProto, opset: int) -> None:
    """No loop is left.

    Raises:
        UnsupportedOperatorError: one is; the message says what was missing.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = tensor_types(model.graph)
    for node in model.graph.node:
        if node.op_type in LOOPS:
            obstacle = _Loop(model.graph, node, NodeEmitter(node, opset, constants, types)).obstacle()
            raise UnsupportedOperatorError(
                f"{describe_node(node)} cannot be compiled: {obstacle}; export the network with a fixed number of steps"
            )


class _Loop:
    """One node. ``state`` names the tensors handed from step to step, ``scanned`` those read slice by slice."""

    def __init__(self, graph: GraphProto, node: NodeProto, emit: NodeEmitter) -> None:
        self._graph, self._node, self._emit = graph, node, emit
        body = attribute_value(node, "body")
        if not isinstance(body, GraphProto):
            self._contradiction("has no body")
        self._body = body
        self._is_loop = node.op_type == "Loop"
        if not self._is_loop and emit.opset < OLDEST_SCAN:
            raise UnsupportedOperatorError(
                f"{describe_node(node)} has the form of the operator set {emit.opset}, which is not supported: export "
                f"the model with operator set {OLDEST_SCAN} or newer"
            )
        if self._is_loop:
            count, self._own = 0, 2
            self._state = list(node.input[2:])
        else:
            count, self._own = integer_attribute(node, "num_scan_inputs", 0), 0
            self._state = list(node.input[: len(node.input) - count])
        self._scanned = list(node.input[len(node.input) - count :]) if count > 0 else []
        self._scan_outputs = len(node.output) - len(self._state)
        results = len(body.output) - (1 if self._is_loop else 0)
        if (
            count < 0
            or count > len(node.input)
            or len(body.input) != self._own + len(self._state) + len(self._scanned)
            or results != len(node.output)
            or self._scan_outputs < 0
            or body.sparse_initializer
        ):
            self._contradiction(
                f"has {len(node.input)} inputs and {len(node.output)} outputs, which do not fit the {len(body.input)} "
                f"and {len(body.output)} of its body"
            )

    def obstacle(self) -> str | None:
        """Why the steps cannot be written out, or not yet."""
        if not self._is_loop:
            unknown = [name for name in self._scanned if self._emit.shape(name) is None]
            return f"the shape of its input {unknown[0]!r} is not known" if unknown else None
        trips, condition = self._node.input[:2]
        if condition and self._emit.constant_value(condition) is None:
            return "its condition is not a constant"
        if self._condition_constant(self._body.output[0].name) is None:
            return "its body computes the condition"
        if not trips or self._emit.constant_value(trips) is None:
            ends = condition and not self._truth(condition)
            return None if ends else "its trip count is not a constant"
        return None

    def check_size(self, others: int) -> int:
        """The nodes that the loop becomes, inner loops counted once, which may not be too many beside ``others``."""
        per_step = len(all_nodes(self._body)) + len(self._body.input)
        return check_unrolled_size(self._node, self._steps(), per_step, others=others)

    def unroll(self) -> list[NodeProto]:
        """The nodes of all steps."""
        steps = self._steps()
        if steps == 0 and self._scan_outputs:
            raise UnsupportedOperatorError(f"{describe_node(self._node)} cannot be compiled: {_NO_STEPS}")
        emit = self._emit
        body = BodyInliner(self._graph, self._body, self._node.name, emit.nodes)
        slices = self._slices(steps)
        state, stacks = self._state, []
        for step in range(steps):
            own = [emit.constant(np.asarray(step), np.int64), emit.constant(np.asarray(True), np.bool_)][: self._own]
            results = body.inline(step, [*own, *state, *(parts[step] for parts in slices)])[self._own // 2 :]
            state = results[: len(state)]
            stacks.append(results[len(state) :])
        for index, name in enumerate(state):
            emit.result("Identity", name, index=index)
        for index, parts in enumerate(zip(*stacks, strict=True)):
            self._stack(index, parts)
        self._graph.initializer.extend(emit.initializers)
        return emit.nodes

    def _steps(self) -> int:
        if self._is_loop:
            trips, condition = self._node.input[:2]
            count = self._emit.constant_value(trips) if trips else None
            goes = not condition or self._truth(condition)
            if not goes or count is None:
                return 0
            steps = max(int(count.reshape(-1)[0]), 0)
            # The condition of the body counts from the second step on.
            return steps if self._condition_constant(self._body.output[0].name) else min(steps, 1)
        extents = set()
        for name, axis in zip(self._scanned, self._listed("scan_input_axes", len(self._scanned)), strict=True):
            shape = self._emit.shape(name) or ()
            if not -len(shape) <= axis < len(shape):
                self._contradiction(f"has the axis {axis} for {name!r} of shape {list(shape)}")
            extents.add(shape[axis])
        if len(extents) != 1:
            self._contradiction(f"scans axes of {sorted(extents)} elements; there must be one number")
        return int(extents.pop())

    def _slices(self, steps: int) -> list[list[str]]:
        """Per scanned input, its slices by step."""
        found = []
        axes = self._listed("scan_input_axes", len(self._scanned))
        directions = self._listed("scan_input_directions", len(self._scanned))
        for name, given, backwards in zip(self._scanned, axes, directions, strict=True):
            axis = given % len(self._emit.shape(name) or (0,))
            parts = emit_split(self._emit, name, axis, [1] * steps) if steps else []
            squeezed = [emit_squeeze(self._emit, part, [axis]) for part in parts]
            found.append(squeezed[::-1] if backwards else squeezed)
        return found

    def _stack(self, index: int, parts: Sequence[str]) -> None:
        """Scan output number ``index`` from its slices."""
        axis, backwards = (
            (0, 0)
            if self._is_loop
            else (self._listed(f"scan_output_{what}", self._scan_outputs)[index] for what in ("axes", "directions"))
        )
        position = len(self._state) + index
        if axis < 0:
            rank = self._emit.rank(self._node.output[position])
            if rank is None:
                self._contradiction(f"has the axis {axis} for an output of unknown rank")
            axis += rank
        wide = [emit_unsqueeze(self._emit, part, [axis]) for part in parts]
        self._emit.result("Concat", *(wide[::-1] if backwards else wide), index=position, axis=axis)

    def _listed(self, name: str, count: int) -> list[int]:
        values = integers_attribute(self._node, name, [0] * count)
        if len(values) != count:
            self._contradiction(f"has {len(values)} {name}; {count} are needed")
        return values

    def _truth(self, name: str) -> bool:
        value = self._emit.constant_value(name)
        return value is not None and bool(value.reshape(-1)[:1].any())

    def _condition_constant(self, name: str) -> bool | None:
        """The value of a condition of the body, if it is the same in each step; its own input is true."""
        writers = {output: node for node in self._body.node for output in node.output}
        while name in writers and writers[name].op_type in {"Cast", "Identity"}:
            name = writers[name].input[0]
        if name == self._body.input[1].name:
            return True
        inner = next((tensor for tensor in self._body.initializer if tensor.name == name), None)
        if inner is None and name in writers and writers[name].op_type == "Constant":
            value = attribute_value(writers[name], "value")
            inner = value if isinstance(value, onnx.TensorProto) else None
        if inner is not None:
            return bool(numpy_helper.to_array(inner).reshape(-1)[:1].any())
        return None if name in writers or self._emit.constant_value(name) is None else self._truth(name)

    def _contradiction(self, what: str) -> NoReturn:
        raise ModelError(f"{describe_node(self._node)} {what}")
