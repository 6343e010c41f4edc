"""``ReverseSequence`` as a ``Gather`` of rows.

With the batch and time axes in front and merged, row b * T + t of the result is row b * T + (n_b - 1 - t) of the data
where t < n_b, the length of sequence b, and its own row beyond.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import describe_node, integer_attribute
from .versioned_operators import emit_reshape, emit_unsqueeze


def _lower_reverse_sequence(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, lengths = node.input[:2]
    shape, count = emit.shape(data), emit.shape(lengths)
    if shape is None or count is None:
        return "the shapes of its operands are not known"
    batch_axis, time_axis = integer_attribute(node, "batch_axis", 1), integer_attribute(node, "time_axis", 0)
    if {batch_axis, time_axis} != {0, 1} or len(shape) < 2:
        raise ModelError(f"{describe_node(node)} must have 0 and 1 as its batch and time axes")
    batch, steps = shape[batch_axis], shape[time_axis]
    if count != (batch,):
        raise ModelError(f"{describe_node(node)} has lengths of shape {list(count)} for a batch of {batch}")
    order = [batch_axis, time_axis, *range(2, len(shape))]
    rows = emit("Transpose", data, perm=order) if batch_axis else data
    rows = emit_reshape(emit, rows, [batch * steps, *shape[2:]])
    taken = emit("Gather", rows, _row_numbers(emit, lengths, batch, steps), axis=0)
    whole = emit_reshape(emit, taken, [batch, steps, *shape[2:]])
    if batch_axis:
        emit.result("Transpose", whole, perm=order)
    else:
        emit.result("Identity", whole)
    return None


def _row_numbers(emit: NodeEmitter, lengths: str, batch: int, steps: int) -> str:
    """The row of the data for each row of the result, [batch * steps]."""
    times, first = np.arange(steps), np.arange(batch).reshape(-1, 1) * steps
    ends = emit_unsqueeze(emit, lengths, [1])
    step = emit.constant(times, np.int64)
    backwards = emit("Sub", emit("Sub", ends, emit.constant(np.asarray(1), np.int64)), step)
    chosen = emit("Where", emit("Less", step, ends), backwards, step)
    return emit_reshape(emit, emit("Add", chosen, emit.constant(first, np.int64)), [batch * steps])


SEQUENCE_LOWERINGS: Mapping[str, Lowering] = {"ReverseSequence": _lower_reverse_sequence}
"""By operator of the standard domain."""
