"""A network with a correction added to some of its tensors: what it gives had they come out otherwise."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from bnn_compiler.verification.reference import Array

SUFFIX = "/correction"


def with_corrections(model: ModelProto, tensors: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Copy ``model`` with a float32 input ``tensor/correction`` for each of ``tensors``, which is added to it.

    The sum has the tensor's name where a node computes it; of a graph's input it is called ``tensor/corrected``.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    given = {info.name for info in graph.input}
    renamed = {name: f"{name}/corrected" for name in tensors if name in given}
    nodes = [_add(name, f"{name}/corrected", name) for name in renamed]
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        corrected = [name for name in node.output if name in tensors]
        node.output[:] = [f"{name}/computed" if name in corrected else name for name in node.output]
        nodes.append(node)
        nodes += [_add(f"{name}/computed", name, name) for name in corrected]
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    for name in tensors:
        graph.input.append(helper.make_tensor_value_info(name + SUFFIX, TensorProto.FLOAT, shapes[name]))
    return copy


def corrected_name(model: ModelProto, tensor: str) -> str:
    """What the corrected tensor is called in a model that :func:`with_corrections` made."""
    return f"{tensor}/corrected" if any(info.name == tensor for info in model.graph.input) else tensor


def correction_feed(
    corrections: Mapping[str, Array], tensors: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array]:
    """The inputs for ``corrections``; zeros where there is none."""
    return {
        name + SUFFIX: np.asarray(corrections.get(name, np.zeros(shapes[name])), np.float32).reshape(shapes[name])
        for name in tensors
    }


def _add(source: str, result: str, tensor: str) -> NodeProto:
    return helper.make_node("Add", [source, tensor + SUFFIX], [result], name=f"{tensor}{SUFFIX}_add")
