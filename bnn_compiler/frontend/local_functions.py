"""Functions that a model defines for itself (``ModelProto.functions``), put in the place of their calls."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.inliner
from onnx import FunctionProto, NodeProto

from bnn_compiler.errors import ModelError
from bnn_compiler.limits import Limits

from .onnx_graph import ONNX_DOMAINS, subgraphs

MAX_CALL_DEPTH = 100
"""Exporters write a function per module, which nest some ten deep; the inliner is recursive."""

_Key = tuple[str, str, str]


def inline_local_functions(model: onnx.ModelProto, opset: int, limits: Limits) -> onnx.ModelProto:
    """The model, which uses the standard operator set ``opset``, without functions of its own.

    Raises:
        ModelError: a function uses another operator set, functions call each other in a circle, or their bodies
            multiply beyond any real network.
    """
    if not model.functions:
        return model
    for function in model.functions:
        versions = {entry.version for entry in function.opset_import if entry.domain in ONNX_DOMAINS}
        if versions - {opset}:
            raise ModelError(
                f"its function {function.domain}.{function.name} uses the operator set {min(versions)}, "
                f"the model {opset}"
            )
    functions = {_function_key(function): function for function in model.functions}
    if len(functions) < len(model.functions):
        raise ModelError("the model defines a function twice")
    size = _expanded_size(model.graph.node, functions, {}, [])
    limits.require("nodes", size, f"the model's own functions expand to {size} nodes", limits.file_nodes)
    try:
        return onnx.inliner.inline_local_functions(model)
    except Exception as error:  # the C++ side raises RuntimeError, ValueError, ...
        raise ModelError(
            f"the model's own functions cannot be expanded: {' '.join(str(error).split())[:300]}"
        ) from error


def _expanded_size(
    nodes: Iterable[NodeProto], functions: dict[_Key, FunctionProto], known: dict[_Key, int], calling: list[_Key]
) -> int:
    """Nodes after inlining. Counted before it is done, because ten small functions can make a billion nodes."""
    size = 0
    for node in nodes:
        size += 1
        for graph in subgraphs(node):
            size += _expanded_size(graph.node, functions, known, calling)
        key = (node.domain, node.op_type, node.overload)
        if key not in functions:
            continue
        if key in calling:
            raise ModelError(f"the model's own functions call each other in a circle at {key[0]}.{key[1]}")
        if len(calling) > MAX_CALL_DEPTH:
            raise ModelError(f"the model's own functions call each other more than {MAX_CALL_DEPTH} deep")
        if key not in known:
            known[key] = _expanded_size(functions[key].node, functions, known, [*calling, key])
        size += known[key]
    return size


def _function_key(function: FunctionProto) -> _Key:
    return function.domain, function.name, function.overload
