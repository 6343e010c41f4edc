"""How many nodes, operands and layers a network has, compared with the limits.

A file's own numbers are counted when it is read (:mod:`bnn_compiler.frontend.model_file`). Here it is what becomes of
them: constants are folded, which leaves few of many nodes, and loops and branches are written out.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.limits import Limits

from .onnx_graph import all_nodes, describe_node

_LAYERS = frozenset({"Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"})

_ONE_BY_ONE = frozenset({"Concat", "Max", "Mean", "Min", "Sum"})
"""Operators that become an operator, or a case, per operand."""

MAX_NESTED = 256
"""Operands of a node that becomes one operator inside the other; the importer calls itself for each."""

_GO = frozenset({"Cast", "Dropout", "Identity"})
"""Operators of which there may be less at the end."""


def check_written_out(model: onnx.ModelProto, limits: Limits) -> None:
    """Compare the nodes of a network that is on its way with what a file may hold.

    Raises:
        ModelError: there are more.
    """
    nodes = len(model.graph.node)
    limits.require("nodes", nodes, f"the network is written out as {nodes} nodes", limits.file_nodes)


def check_size(model: onnx.ModelProto, limits: Limits) -> None:
    """Compare a network whose constants are folded with the limits.

    Raises:
        ModelError: a limit is exceeded; the message says by what.
        UnsupportedOperatorError: a node has too many operands to be compiled at all.
    """
    nodes = all_nodes(model.graph)
    operators = sum(_operators(node) for node in nodes if node.op_type not in _GO)
    limits.require("nodes", operators, f"the network comes to {operators} operators")
    layers = sum(node.op_type in _LAYERS for node in nodes)
    limits.require("layers", layers, f"the network has {layers} convolutions and matrix products")
    for node in nodes:
        operands = max(len(node.input), len(node.output))
        if operands > limits.operands:
            limits.require("operands", operands, f"{describe_node(node)} has {operands} inputs or outputs")
        if node.op_type in _ONE_BY_ONE - {"Concat"} and operands > MAX_NESTED:
            raise UnsupportedOperatorError(
                f"{describe_node(node)} has {operands} operands; at most {MAX_NESTED} can be compiled: "
                "combine them in several nodes"
            )


def _operators(node: NodeProto) -> int:
    return max(len(node.input) - 1, 1) if node.op_type in _ONE_BY_ONE else 1
