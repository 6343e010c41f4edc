"""How much of a loop may be written out."""

from __future__ import annotations

from onnx import NodeProto

from bnn_compiler.errors import UnsupportedOperatorError

from .onnx_graph import describe_node

MAX_UNROLLED_NODES = 10_000
"""Nodes that loops become, those of one graph together. Each takes milliseconds to compile; trip counts in files go up
to 2^63, and loops in loops multiply."""


def check_unrolled_size(node: NodeProto, steps: int, nodes_per_step: int, *, others: int = 0) -> int:
    """The nodes that ``node`` becomes, which may not be too many beside the ``others`` written out so far.

    Raises:
        UnsupportedOperatorError: there would be more nodes than ``MAX_UNROLLED_NODES``.
    """
    size = steps * nodes_per_step
    if size + others > MAX_UNROLLED_NODES:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} has {steps} steps, which would be written out as {size} nodes"
            f"{f' beside {others} of other loops' if others else ''}; at most {MAX_UNROLLED_NODES} are supported: "
            "compile the network for shorter sequences"
        )
    return size
