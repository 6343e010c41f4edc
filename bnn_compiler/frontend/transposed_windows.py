"""``auto_pad`` and ``output_shape`` of transposed convolutions as explicit ``pads`` and ``output_padding``.

ONNX Runtime's rule, per spatial axis, with R = (input - 1) · stride + (kernel - 1) · dilation + 1 results before
cropping:

1. ``output_shape`` wants that many results, ``SAME_UPPER`` and ``SAME_LOWER`` input · stride; what R + output_padding
   has beyond it is cropped, an odd element at the end (``SAME_UPPER``) or at the start (all else).
2. What R + output_padding lacks is appended where ``output_shape`` asks for it, and nowhere else.
3. ``VALID`` crops nothing.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .onnx_graph import attribute_value, describe_node, integers_attribute, static_shape, text_attribute
from .shape_inference import TypesBefore

_Shape = tuple[int, ...]
_REPLACED = frozenset({"auto_pad", "output_shape", "output_padding", "pads"})


def make_crops_explicit(model: onnx.ModelProto) -> int:
    """Rewrite transposed convolutions whose operands' shapes are known, in place; the number rewritten.

    To be called before shapes are inferred: ONNX's inference does not agree with ONNX Runtime about such nodes.

    Raises:
        ModelError: ``auto_pad`` has an unknown value, or an attribute does not fit the operands.
    """
    types = TypesBefore(model)
    rewritten = 0
    for index, node in enumerate(model.graph.node):
        special = text_attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute_value(node, "output_shape")
        if node.op_type != "ConvTranspose" or not special:
            continue
        kinds = [types.of(index, name) for name in node.input[:2]]
        data, weight = (None if kind is None else static_shape(kind) for kind in kinds)
        if data is not None and weight is not None and 2 < len(data) == len(weight):
            _rewrite(node, data, weight)
            rewritten += 1
    return rewritten


def _rewrite(node: NodeProto, data: _Shape, weight: _Shape) -> None:
    mode, rank = text_attribute(node, "auto_pad", "NOTSET"), len(data) - 2
    if mode not in {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}:
        raise ModelError(f"{describe_node(node)} has the unknown auto_pad {mode!r}")
    strides = _per_axis(node, "strides", [1] * rank)
    extra = _per_axis(node, "output_padding", [0] * rank)
    results = [
        (extent - 1) * stride + (size - 1) * dilation + 1 + added
        for extent, stride, size, dilation, added in zip(
            data[2:],
            strides,
            _per_axis(node, "kernel_shape", list(weight[2:])),
            _per_axis(node, "dilations", [1] * rank),
            extra,
            strict=True,
        )
    ]
    sizes, appended = results, [0] * rank
    if attribute_value(node, "output_shape"):
        sizes = _per_axis(node, "output_shape", [0] * rank)
        appended = [max(size - result, 0) for result, size in zip(results, sizes, strict=True)]
    elif mode != "VALID":
        sizes = [extent * stride for extent, stride in zip(data[2:], strides, strict=True)]
    crops = [max(result - size, 0) for result, size in zip(results, sizes, strict=True)]
    first = [crop // 2 if mode == "SAME_UPPER" else crop - crop // 2 for crop in crops]
    replaced: dict[str, Any] = {
        "pads": [*first, *(crop - start for crop, start in zip(crops, first, strict=True))],
        "output_padding": [added + more for added, more in zip(extra, appended, strict=True)],
    }
    kept = [attribute for attribute in node.attribute if attribute.name not in _REPLACED]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in replaced.items())


def _per_axis(node: NodeProto, name: str, default: list[int]) -> list[int]:
    """An attribute of as many numbers as ``default`` has, one per spatial axis."""
    found, rank = integers_attribute(node, name, default), len(default)
    if name == "output_shape" and len(found) == rank + 2:
        found = found[2:]
    if len(found) != rank or min(found) < 0:
        raise ModelError(f"{describe_node(node)} has the {name} {found} for {rank} spatial axes")
    return found
