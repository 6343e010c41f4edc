"""Which operators can be converted to Relax, and how an unsupported one is refused."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import NodeProto
from tvm.relax.frontend.onnx.onnx_frontend import _get_convert_map

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .loop_unrolling import LOOPS
from .lowerings import LOWERINGS, STANDARD_LOWERINGS
from .node_lowering import has_lowering
from .onnx_graph import ONNX_DOMAINS, all_nodes, attribute_value, describe_node
from .operator_converters import OWN_CONVERTERS

_NO_TENSOR = frozenset(
    {
        "Optional",
        "OptionalHasElement",
        "OptionalGetElement",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceAt",
        "ConcatFromSequence",
        "SplitToSequence",
    }
)
"""TVM converts these, but their values are no dense tensors, which everything behind the front end expects."""

_RESOLVED_HERE = frozenset({"Constant", "If"}) | LOOPS
"""Gone after normalisation."""


@cache
def supported_operators() -> frozenset[str]:
    """Operators of the standard domain that can be converted."""
    converted = frozenset(_get_convert_map()) - _NO_TENSOR
    return converted | _RESOLVED_HERE | frozenset(STANDARD_LOWERINGS) | frozenset(OWN_CONVERTERS)


def check_operators(model: onnx.ModelProto) -> None:
    """Look at every node, those of subgraphs too.

    Raises:
        UnsupportedOperatorError: an operator cannot be converted; the message names it, its domain and its node, and
            says how many others there are.
        ModelError: a node without an operator.
    """
    refused = [node for node in all_nodes(model.graph) if not _is_supported(node)]
    if not refused:
        return
    first = refused[0]
    if not first.op_type:
        raise ModelError(f"{describe_node(first)} names no operator")
    kinds = {(node.domain, node.op_type) for node in refused}
    others = f" ({len(refused)} nodes of {len(kinds)} such operators in all)" if len(refused) > 1 else ""
    if first.domain not in ONNX_DOMAINS:
        known = ", ".join(LOWERINGS.get(first.domain, ()))
        raise UnsupportedOperatorError(
            f"{describe_node(first)}: operators of the domain {first.domain!r} are not supported"
            f"{f' except {known}' if known else ''}{others}"
        )
    training = " in training mode" if first.op_type in supported_operators() else ""
    raise UnsupportedOperatorError(
        f"{describe_node(first)}: the operator {first.op_type}{training} is not supported{others}"
    )


def _is_supported(node: NodeProto) -> bool:
    if node.domain not in ONNX_DOMAINS:
        return has_lowering(node)
    if node.op_type not in supported_operators():
        return False
    # Before opset 14, more than one output asked for training.
    trains = attribute_value(node, "training_mode", 0) or len(node.output) > 1
    return not (node.op_type == "BatchNormalization" and trains)
