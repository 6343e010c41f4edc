"""How many multiplications and additions a node takes, as far as its shapes say.

An estimate from below that a file cannot talk down: what matters is that a window of a million elements, or a product
of two large matrices, is seen before anything computes it. Element-wise operators count one per element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import onnx
from onnx import NodeProto

from bnn_compiler.limits import Limits

from .onnx_graph import attribute_value, describe_node, static_shape, tensor_types, text_attribute

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape | None]

_WINDOWS = frozenset({"AveragePool", "LpPool", "MaxPool"})


def check_work(model: onnx.ModelProto, limits: Limits) -> None:
    """Compare the work of one run with its limit. Shapes must be inferred; what is not known counts nothing.

    Raises:
        ModelError: it is more; the message names the node with the most.
    """
    shapes: dict[str, Shape | None] = {name: static_shape(kind) for name, kind in tensor_types(model.graph).items()}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    works = [node_work(node, shapes) for node in model.graph.node]
    total = sum(works)
    if total > limits.work:
        largest = model.graph.node[max(range(len(works)), key=works.__getitem__)]
        what = f"the network takes {total} multiplications and additions, the most of them at {describe_node(largest)}"
        limits.require("work", total, what)


def node_work(node: NodeProto, shapes: Shapes) -> int:
    """Operations of one node; 0 where its shapes are not known."""
    operands = [shapes.get(name) for name in node.input]
    results = [shapes.get(name) for name in node.output if name]
    written = sum(math.prod(shape) for shape in results if shape is not None)
    read = sum(math.prod(shape) for shape in operands if shape is not None)
    special = _SPECIAL.get(node.op_type)
    if special is None or not results:
        return max(written, read)
    return max(written, read, special(node, operands, results[0] or ()))


def _convolution(_: NodeProto, operands: list[Shape | None], result: Shape) -> int:
    weight = operands[1] if len(operands) > 1 else None
    return math.prod(result) * math.prod((weight or ())[1:])


def _transposed_convolution(_: NodeProto, operands: list[Shape | None], __: Shape) -> int:
    data, weight = operands[0], operands[1] if len(operands) > 1 else None
    return math.prod(data or ()) * math.prod((weight or ())[1:])


def _product(_: NodeProto, operands: list[Shape | None], result: Shape) -> int:
    data = operands[0]
    return math.prod(result) * (data[-1] if data else 1)


def _general_product(node: NodeProto, operands: list[Shape | None], result: Shape) -> int:
    data = operands[0]
    if data is None or len(data) != 2:
        return 0
    return math.prod(result) * (data[0] if attribute_value(node, "transA", 0) else data[1])


def _window(node: NodeProto, _: list[Shape | None], result: Shape) -> int:
    kernel = attribute_value(node, "kernel_shape", [])
    return math.prod(result) * math.prod(kernel) if isinstance(kernel, list) else 0


def _neighbours(node: NodeProto, _: list[Shape | None], result: Shape) -> int:
    size = attribute_value(node, "size", 1)
    return math.prod(result) * min(size, result[1] if len(result) > 1 else 1) if isinstance(size, int) else 0


def _labelled_product(node: NodeProto, operands: list[Shape | None], _: Shape) -> int:
    """All combinations of the labels' positions. An ellipsis counts as what its operand has beyond the labels."""
    terms = text_attribute(node, "equation", "").replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, operands, strict=False):
        if shape is None:
            continue
        for label, size in zip(term, shape, strict=False):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _pairs_of_boxes(_: NodeProto, operands: list[Shape | None], __: Shape) -> int:
    boxes, scores = (operands[0] or ()), (operands[1] or ()) if len(operands) > 1 else ()
    return math.prod(scores) * (boxes[1] if len(boxes) > 1 else 1)


_SPECIAL: Mapping[str, Callable[[NodeProto, list[Shape | None], Shape], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _labelled_product,
    "Gemm": _general_product,
    "LRN": _neighbours,
    "MatMul": _product,
    "MatMulInteger": _product,
    "NonMaxSuppression": _pairs_of_boxes,
    **dict.fromkeys(_WINDOWS, _window),
}
