"""How much of a loop may be written out."""

from __future__ import annotations

from onnx import NodeProto

from bnn_compiler.errors import UnsupportedOperatorError

from .onnx_graph import describe_node

MAX_UNROLLED_NODES = 10_000
"""Nodes that one loop becomes. Each takes milliseconds to compile; trip counts in files go up to 2^63."""


def check_unrolled_size(node: NodeProto, steps: int, nodes_per_step: int) -> None:
    """Refuse to write out too much.

    Raises:
        UnsupportedOperatorError: there would be more nodes than ``MAX_UNROLLED_NODES``.
    """
    size = steps * nodes_per_step
    if size > MAX_UNROLLED_NODES:
        raise UnsupportedOperatorError(
            f"{describe_node(node)} has {steps} steps, which would be written out as {size} nodes; at most "
            f"{MAX_UNROLLED_NODES} are supported: compile the network for shorter sequences"
        )
