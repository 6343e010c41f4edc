"""``auto_pad`` of convolutions as explicit ``pads``; :mod:`bnn_compiler.frontend.pool_windows` has that of pools.

Transposed convolutions crop instead, and have a module of their own (:mod:`bnn_compiler.frontend.transposed_windows`).

ONNX's rule, per spatial axis: the output has ``ceil(input / stride)`` positions, so the total padding is

    total = max((output - 1) * stride + (kernel - 1) * dilation + 1 - input, 0)

and an odd total has its extra element at the end (``SAME_UPPER``) or at the start (``SAME_LOWER``).
"""

from __future__ import annotations

import math

import onnx
from onnx import NodeProto

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import describe_node, integers_attribute, static_shape, tensor_types, text_attribute

_WINDOWED = frozenset({"Conv"})


def make_padding_explicit(model: onnx.ModelProto) -> int:
    """Rewrite every ``auto_pad`` in place; the number of nodes rewritten. The model must have static shapes.

    Raises:
        ModelError: ``auto_pad`` has an unknown value.
        UnsupportedOperatorError: ``auto_pad`` on another operator, or on data of unknown shape.
    """
    shapes = {name: static_shape(type_proto) for name, type_proto in tensor_types(model.graph).items()}
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    rewritten = 0
    for node in model.graph.node:
        mode = text_attribute(node, "auto_pad", "NOTSET")
        if mode == "NOTSET":
            continue
        if node.op_type not in _WINDOWED:
            raise UnsupportedOperatorError(f"{describe_node(node)} uses auto_pad={mode}: give explicit pads instead")
        pads = _pads(node, mode, shapes)
        kept = [attribute for attribute in node.attribute if attribute.name not in {"auto_pad", "pads"}]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.append(onnx.helper.make_attribute("pads", pads))
        rewritten += 1
    return rewritten


def _pads(node: NodeProto, mode: str, shapes: dict[str, tuple[int, ...] | None]) -> list[int]:
    shape, weight = shapes.get(node.input[0]), shapes.get(node.input[1]) if len(node.input) > 1 else None
    if shape is None:
        raise UnsupportedOperatorError(f"{describe_node(node)} uses auto_pad={mode} on a tensor of unknown shape")
    spatial = shape[2:]
    if mode == "VALID":
        return [0] * (2 * len(spatial))
    if mode not in {"SAME_UPPER", "SAME_LOWER"}:
        raise ModelError(f"{describe_node(node)} has the unknown auto_pad {mode!r}")
    ones = [1] * len(spatial)
    kernel = integers_attribute(node, "kernel_shape", list((weight or ())[2:]))
    strides, dilations = integers_attribute(node, "strides", ones), integers_attribute(node, "dilations", ones)
    begins, ends = [], []
    for extent, size, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
        total = max((math.ceil(extent / stride) - 1) * stride + (size - 1) * dilation + 1 - extent, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends
