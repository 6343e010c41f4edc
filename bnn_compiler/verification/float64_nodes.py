"""Operators that ONNX Runtime has no float64 kernels for, as operators that it has them for.

Each function gives the nodes for one node, or None where its form is not known here. The identities are exact; what is
left are float64's own roundings:

- ``Conv``: for each tap of the kernel a matrix product with the pixels it meets, added up;
- ``LeakyRelu`` and ``PRelu``: max(x, 0) + slope · min(x, 0);
- ``HardSigmoid``: min(max(alpha · x + beta, 0), 1);
- ``GlobalAveragePool``: the mean over the axes of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bnn_compiler.verification.reference import Array


@dataclass
class Emitter:
    """Collects nodes and constants under names of their own, all of which begin with ``prefix``."""

    prefix: str
    opset: int
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def constant(self, value: Array) -> str:
        """Name of a new constant."""
        name = f"{self.prefix}/c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def emit(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """Name of a new node's result."""
        output = output or f"{self.prefix}/t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output


Lowering = Callable[[NodeProto, Emitter], bool]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _conv(node: NodeProto, emitter: Emitter) -> bool:
    given = _attributes(node)
    weights, shape = emitter.constants.get(node.input[1]), emitter.shapes.get(node.input[0])
    if weights is None or shape is None or given.get("auto_pad", b"NOTSET") != b"NOTSET":
        return False
    kernel, rank = weights.shape[2:], weights.ndim - 2
    strides, dilations = (given.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads, groups = given.get("pads", [0] * 2 * rank), given.get("group", 1)
    padded = _pad(node.input[0], pads, rank, emitter)
    extents = [
        (shape[2 + axis] + pads[axis] + pads[rank + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis]
        + 1
        for axis in range(rank)
    ]
    pixels = int(np.prod(extents))
    rows = emitter.constant(np.asarray([shape[0], groups, shape[1] // groups, pixels], np.int64))
    taps = np.moveaxis(weights, (0, 1), (-2, -1))
    products = []
    for tap in itertools.product(*map(range, kernel)):
        value = padded
        for axis, position in enumerate(tap):
            indices = position * dilations[axis] + strides[axis] * np.arange(extents[axis])
            value = emitter.emit("Gather", [value, emitter.constant(indices.astype(np.int64))], axis=2 + axis)
        part = taps[tap].reshape(groups, weights.shape[0] // groups, -1)
        value = emitter.emit("Reshape", [value, rows])
        products.append(emitter.emit("MatMul", [emitter.constant(part.astype(np.float64)), value]))
    total = emitter.emit("Sum", products)
    result = emitter.constant(np.asarray([shape[0], weights.shape[0], *extents], np.int64))
    bias = node.input[2] if len(node.input) > 2 else ""
    if not bias:
        emitter.emit("Reshape", [total, result], node.output[0])
        return True
    total = emitter.emit("Reshape", [total, result])
    column = emitter.constant(np.asarray([-1, *[1] * rank], np.int64))
    emitter.emit("Add", [total, emitter.emit("Reshape", [bias, column])], node.output[0])
    return True


def _pad(name: str, pads: list[int], rank: int, emitter: Emitter) -> str:
    if not any(pads):
        return name
    widths = [0, 0, *pads[:rank], 0, 0, *pads[rank:]]
    if emitter.opset < 11:
        return emitter.emit("Pad", [name], pads=widths)
    return emitter.emit("Pad", [name, emitter.constant(np.asarray(widths, np.int64))])


def _slope(node: NodeProto, emitter: Emitter) -> bool:
    zero = emitter.constant(np.asarray(0.0))
    slope = node.input[1] if node.op_type == "PRelu" else ""
    slope = slope or emitter.constant(np.asarray(float(_attributes(node).get("alpha", 0.01))))
    above, below = (emitter.emit(operator, [node.input[0], zero]) for operator in ("Max", "Min"))
    emitter.emit("Add", [above, emitter.emit("Mul", [below, slope])], node.output[0])
    return True


def _hard_sigmoid(node: NodeProto, emitter: Emitter) -> bool:
    given = _attributes(node)
    # The attributes are floats: 0.2 is 0.2 in float32.
    alpha, beta = (float(np.float32(given.get(name, usual))) for name, usual in (("alpha", 0.2), ("beta", 0.5)))
    value = emitter.emit("Mul", [node.input[0], emitter.constant(np.asarray(alpha))])
    value = emitter.emit("Add", [value, emitter.constant(np.asarray(beta))])
    value = emitter.emit("Max", [value, emitter.constant(np.asarray(0.0))])
    emitter.emit("Min", [value, emitter.constant(np.asarray(1.0))], node.output[0])
    return True


def _global_average(node: NodeProto, emitter: Emitter) -> bool:
    shape = emitter.shapes.get(node.input[0])
    if shape is None:
        return False
    axes = list(range(2, len(shape)))
    if emitter.opset < 18:
        emitter.emit("ReduceMean", [node.input[0]], node.output[0], axes=axes, keepdims=1)
    else:
        constant = emitter.constant(np.asarray(axes, np.int64))
        emitter.emit("ReduceMean", [node.input[0], constant], node.output[0], keepdims=1)
    return True


LOWERINGS: Mapping[str, Lowering] = {
    "Conv": _conv,
    "LeakyRelu": _slope,
    "PRelu": _slope,
    "HardSigmoid": _hard_sigmoid,
    "GlobalAveragePool": _global_average,
}
