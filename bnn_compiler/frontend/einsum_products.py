"""``Einsum`` of two operands as ``MatMul`` between transposes and reshapes: a dense layer in its usual form.

Each label belongs to one of four groups: *batch* (in both operands and the result), *left* and *right* (in one operand
and the result) and *summed* (in both operands, not in the result). Then

    result = A[batch, left, summed] · B[batch, summed, right]

with each group's axes merged into one. Every product and every sum is the same; only the order of summation is the
matrix product's. An equation is left alone if it has an ellipsis, repeats a label within an operand, sums over a label
of one operand alone, or gives a label two sizes (broadcasting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from .onnx_graph import static_shape, tensor_types, text_attribute

_Shape = tuple[int, ...]


def rewrite_einsums(model: onnx.ModelProto) -> int:
    """Rewrite in place; the number of nodes rewritten. The model must have static shapes."""
    shapes = {name: static_shape(kind) for name, kind in tensor_types(model.graph).items()}
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    nodes: list[NodeProto] = []
    rewritten = 0
    for node in model.graph.node:
        replacement = _matrix_product(node, shapes) if node.op_type == "Einsum" else None
        if replacement is None:
            nodes.append(node)
            continue
        nodes.extend(replacement.nodes)
        model.graph.initializer.extend(replacement.constants)
        rewritten += 1
    if rewritten:
        kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del model.graph.node[:]
        model.graph.node.extend(kept)
    return rewritten


class _Chain:
    """The nodes that replace one, named after its result."""

    def __init__(self, result: str) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._result = result

    def transpose(self, data: str, source: str, target: str) -> str:
        """``data``, with axes labelled ``source``, in the order of ``target``."""
        if source == target:
            return data
        return self.add("Transpose", [data], perm=[source.index(label) for label in target])

    def reshape(self, data: str, before: Sequence[int], after: Sequence[int]) -> str:
        """``data`` of shape ``before`` in the shape ``after``."""
        if list(before) == list(after):
            return data
        name = f"{self._result}/shape_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(after, np.int64), name))
        return self.add("Reshape", [data, name])

    def add(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node; the name of its result."""
        output = f"{self._result}/{operator}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


def _matrix_product(node: NodeProto, shapes: dict[str, _Shape | None]) -> _Chain | None:
    """The replacement of one ``Einsum``, or ``None``."""
    terms = text_attribute(node, "equation", "").replace(" ", "").split("->")
    operands = terms[0].split(",")
    known = [shapes.get(name) for name in node.input]
    if len(operands) != 2 or len(known) != 2 or known[0] is None or known[1] is None or "." in terms[0]:
        return None
    a, b = operands
    if (len(a), len(b)) != (len(known[0]), len(known[1])) or len(set(a)) < len(a) or len(set(b)) < len(b):
        return None
    sizes = dict(zip(a, known[0], strict=True))
    if any(sizes.setdefault(label, size) != size for label, size in zip(b, known[1], strict=True)):
        return None
    # Without an arrow, the labels that occur once, in alphabetical order.
    result = terms[1] if len(terms) == 2 else "".join(sorted(set(a) ^ set(b)))
    if len(set(result)) < len(result) or set(result) - set(sizes) or (set(a) ^ set(b)) - set(result):
        return None
    batch = "".join(label for label in result if label in a and label in b)
    left = "".join(label for label in result if label not in b)
    right = "".join(label for label in result if label not in a)
    summed = "".join(label for label in a if label in b and label not in result)

    def extents(labels: str) -> list[int]:
        return [sizes[label] for label in labels]

    batches, rows, terms_summed, columns = extents(batch), *(math.prod(extents(g)) for g in (left, summed, right))
    chain = _Chain(node.output[0])
    first = chain.transpose(node.input[0], a, batch + left + summed)
    first = chain.reshape(first, extents(batch + left + summed), [*batches, rows, terms_summed])
    second = chain.transpose(node.input[1], b, batch + summed + right)
    second = chain.reshape(second, extents(batch + summed + right), [*batches, terms_summed, columns])
    product = chain.add("MatMul", [first, second])
    chain.nodes[-1].name = node.name
    product = chain.reshape(product, [*batches, rows, columns], extents(batch + left + right))
    chain.transpose(product, batch + left + right, result)
    chain.nodes[-1].output[0] = node.output[0]
    return chain
