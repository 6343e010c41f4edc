"""Windows of pools as explicit ``pads``, in ONNX Runtime's terms.

ONNX's shape inference, TVM and ONNX Runtime count a pool's output positions differently where windows do not fit the
image. Behind this module there is one way left, the plain one. Per spatial axis, with the extent ``e = (kernel - 1) *
dilation + 1`` of a window and an image of ``size`` elements between ``before`` and ``after`` elements of padding:

1. ``auto_pad`` has ``total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)`` elements, as for
   convolutions, except that dilation does not count (as ONNX Runtime has it, not ONNX's text).
2. The output has ``(before + size + after - e) / stride + 1`` positions. The quotient is rounded up in ``ceil_mode``,
   else towards zero, so that an image just smaller than a window has one position.
3. In ``ceil_mode``, a last window that starts behind the image is dropped.
4. Where the last window then hangs over the padded image, ``after`` grows to its end. A maximum or a norm does not see
   that, and an average that counts pixels alone does not, either. An average that counts padding
   (``count_include_pad``) counts what was there before, but not what was added; before operator set 19 and without
   ``ceil_mode`` it counts both. So the padding that counts becomes a ``Pad`` in front, and the pool counts pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TypeProto, helper, numpy_helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError

from .onnx_graph import describe_node, integer_attribute, integers_attribute, static_shape, text_attribute
from .shape_inference import TypesBefore

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
_COUNTS_GIVEN_PADS_ALONE = 19
"""The operator set from which an average never counts padding that was added."""

_Pads = list[tuple[int, int]]


def make_pool_windows_explicit(model: onnx.ModelProto, opset: int) -> int:
    """Rewrite pools with ``ceil_mode`` or ``auto_pad`` whose input's shape is known, in place; the number rewritten.

    To be called before shapes are inferred: ONNX's inference does not agree with ONNX Runtime about such pools.

    Raises:
        ModelError: ``auto_pad`` has an unknown value, or shapes in front of a pool contradict each other.
        UnsupportedOperatorError: a window needs more padding behind the image than ONNX Runtime takes.
    """
    types = TypesBefore(model)
    rewritten = 0
    index = 0
    while index < len(model.graph.node):
        node = model.graph.node[index]
        if node.op_type in _POOLS and _is_special(node):
            nodes = len(model.graph.node)
            rewritten += _rewrite(model, index, types.of(index, node.input[0]), opset)
            index += len(model.graph.node) - nodes
        index += 1
    return rewritten


def pad_overhanging_pools(model: onnx.ModelProto, opset: int, types: Mapping[str, TypeProto]) -> int:
    """Rule 4 for pools without either attribute, in place; the number rewritten. ``types`` are those of all tensors."""
    found = [index for index, node in enumerate(model.graph.node) if node.op_type in _POOLS and not _is_special(node)]
    return sum(_rewrite(model, index, types.get(model.graph.node[index].input[0]), opset) for index in reversed(found))


def _is_special(node: NodeProto) -> bool:
    """Whether the windows are not given by ``pads`` alone."""
    return bool(integer_attribute(node, "ceil_mode", 0)) or text_attribute(node, "auto_pad", "NOTSET") != "NOTSET"


def _rewrite(model: onnx.ModelProto, index: int, kind: TypeProto | None, opset: int) -> bool:
    """Give one pool its windows; whether it changed. Attributes that do not fit the image are left to inference."""
    node = model.graph.node[index]
    shape = None if kind is None else static_shape(kind)
    pads = None if shape is None else _given_pads(node, shape[2:])
    if shape is None or pads is None:
        return False
    kernel, _, _ = _window(node, len(pads))
    grown = _grown_pads(node, shape[2:], pads)
    added = grown is not None and grown != pads
    if grown is None or not (added or _is_special(node)):
        return False
    if any(after >= taps and after > given for (_, after), (_, given), taps in zip(grown, pads, kernel, strict=True)):
        raise UnsupportedOperatorError(
            f"{describe_node(node)} has windows that hang too far over the padded image: "
            "pad the image by a Pad node instead"
        )
    counted = node.op_type == "AveragePool" and bool(integer_attribute(node, "count_include_pad", 0))
    ceil_mode = integer_attribute(node, "ceil_mode", 0)
    _set_attributes(node, ("auto_pad", "ceil_mode"), pads=[*(b for b, _ in grown), *(a for _, a in grown)])
    if counted and added and (ceil_mode or opset >= _COUNTS_GIVEN_PADS_ALONE):
        _pad_in_front(model, index, pads, opset)
        over = [after - given for (_, after), (_, given) in zip(grown, pads, strict=True)]
        _set_attributes(node, ("count_include_pad",), pads=[0] * len(over) + over)
    return True


def _given_pads(node: NodeProto, image: tuple[int, ...]) -> _Pads | None:
    """Rule 1, or the node's own pads; ``None`` where attributes do not fit the image."""
    rank = len(image)
    mode = text_attribute(node, "auto_pad", "NOTSET")
    kernel, strides, _ = _window(node, rank)
    if not rank or not all(len(values) == rank and min(values) > 0 for values in _window(node, rank)):
        return None
    if mode in ("NOTSET", "VALID"):
        pads = integers_attribute(node, "pads", [0] * (2 * rank)) if mode == "NOTSET" else [0] * (2 * rank)
        return list(zip(pads[:rank], pads[rank:], strict=True)) if len(pads) == 2 * rank else None
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"{describe_node(node)} has the unknown auto_pad {mode!r}")
    pairs = []
    for size, taps, stride in zip(image, kernel, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + taps - size, 0)
        before = total // 2 if mode == "SAME_UPPER" else total - total // 2
        pairs.append((before, total - before))
    return pairs


def _grown_pads(node: NodeProto, image: tuple[int, ...], pads: _Pads) -> _Pads | None:
    """Rules 2 to 4; ``None`` where a window has no position at all."""
    ceil_mode = integer_attribute(node, "ceil_mode", 0)
    grown = []
    for size, taps, stride, dilation, (before, after) in zip(image, *_window(node, len(image)), pads, strict=True):
        room = before + size + after - (taps - 1) * dilation - 1
        positions = (math.ceil(room / stride) if ceil_mode else math.trunc(room / stride)) + 1  # 2
        if ceil_mode and (positions - 1) * stride >= before + size:  # 3
            positions -= 1
        if positions < 1:
            return None
        grown.append((before, after + max((positions - 1) * stride - room, 0)))  # 4
    return grown


def _window(node: NodeProto, rank: int) -> tuple[list[int], list[int], list[int]]:
    """Kernel, strides and dilations."""
    ones = [1] * rank
    return (
        integers_attribute(node, "kernel_shape", []),
        integers_attribute(node, "strides", ones),
        integers_attribute(node, "dilations", ones),
    )


def _set_attributes(node: NodeProto, dropped: tuple[str, ...], *, pads: list[int]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in {*dropped, "pads"}]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("pads", pads)])


def _pad_in_front(model: onnx.ModelProto, index: int, pads: _Pads, opset: int) -> None:
    """Let zeros of the image be what counted as padding: an explicit ``Pad`` with its own name."""
    if not any(map(any, pads)):
        return
    node = model.graph.node[index]
    amounts = [0, 0, *(before for before, _ in pads), 0, 0, *(after for _, after in pads)]
    name = f"{node.output[0]}/padded"
    if opset < 11:
        pad = helper.make_node("Pad", [node.input[0]], [name], name=name, pads=amounts)
    else:
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(amounts, np.int64), f"{name}/amounts"))
        pad = helper.make_node("Pad", [node.input[0], f"{name}/amounts"], [name], name=name)
    node.input[0] = name
    model.graph.node.insert(index, pad)
