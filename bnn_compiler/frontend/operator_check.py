"""Operands that ONNX's shape inference lets pass, and that would fail late or read out of bounds.

For each ``Conv``:

1. ``group`` divides the output channels, and the weight's input channels times ``group`` are the data's channels;
2. a bias has one element per output channel;
3. ``kernel_shape``, where given, is that of the weight;
4. the window, with its dilation, is not larger than the padded image.

And for the weights of ``Conv``, ``ConvTranspose``, ``Gemm`` and ``MatMul``:

5. every value is finite, and its square is, in the weight's own type. No training leaves a weight whose norm
   overflows; a file with flipped bits does, because the exponent's high bits are hit as often as others. (Damage that
   leaves all weights plausible cannot be told from training: nothing in the format protects the data.)
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from bnn_compiler.errors import ModelError

from .onnx_graph import describe_node, integer_attribute, integers_attribute, static_shape, tensor_types

_Shape = tuple[int, ...]

_WEIGHT_OPERANDS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


def check_operands(model: onnx.ModelProto) -> None:
    """Check every node of a model with inferred shapes and explicit pads.

    Raises:
        ModelError: a condition of this module does not hold; the message names the node.
    """
    shapes: dict[str, _Shape | None] = {name: static_shape(kind) for name, kind in tensor_types(model.graph).items()}
    shapes.update({tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer})
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    checked: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Conv":
            _check_conv(node, [shapes.get(name) if name else None for name in node.input])
        for index in _WEIGHT_OPERANDS.get(node.op_type, ()):
            weight = constants.get(node.input[index]) if index < len(node.input) else None
            if weight is not None and weight.name not in checked:
                _check_weight(node, weight)
                checked.add(weight.name)


def _check_conv(node: NodeProto, operands: list[_Shape | None]) -> None:
    """Conditions 1 to 4. Shape inference has proved the lengths and signs of the attributes."""
    data, weight = operands[0], operands[1]
    if data is None or weight is None:
        return
    group, rank = integer_attribute(node, "group", 1), len(data) - 2
    if rank < 1 or len(weight) != len(data):
        raise ModelError(f"{describe_node(node)} has data of shape {list(data)} but a weight of shape {list(weight)}")
    if group < 1 or weight[0] % group or weight[1] * group != data[1]:  # 1
        raise ModelError(
            f"{describe_node(node)} has data of {data[1]} channels, but its weight of shape {list(weight)} "
            f"in {group} group{'s' if group != 1 else ''} needs {weight[1] * group}"
            + (f", and output channels that {group} divides" if group > 0 and weight[0] % group else "")
        )
    if len(operands) > 2 and operands[2] is not None and operands[2] != (weight[0],):  # 2
        raise ModelError(
            f"{describe_node(node)} has a bias of shape {list(operands[2])} for {weight[0]} output channels"
        )
    kernel = integers_attribute(node, "kernel_shape", list(weight[2:]))
    if tuple(kernel) != weight[2:]:  # 3
        raise ModelError(f"{describe_node(node)} has the kernel_shape {kernel}, but a weight of shape {list(weight)}")
    dilations = integers_attribute(node, "dilations", [1] * rank)
    pads = integers_attribute(node, "pads", [0] * (2 * rank))
    for axis in range(rank):
        extent, window = data[2 + axis] + pads[axis] + pads[rank + axis], (kernel[axis] - 1) * dilations[axis] + 1
        if window > extent:  # 4
            raise ModelError(f"{describe_node(node)} has a window of {window} on a padded image of {extent}")


def _check_weight(node: NodeProto, tensor: TensorProto) -> None:
    """Condition 5."""
    weight = numpy_helper.to_array(tensor)
    if weight.dtype.kind != "f" or not weight.size:
        return
    largest = float(np.max(np.abs(weight)))  # NaN, if there is one
    if math.isnan(largest) or largest >= math.sqrt(float(np.finfo(weight.dtype).max)):
        flat = np.abs(weight).reshape(-1)
        position = [int(index) for index in np.unravel_index(int(np.argmax(flat)), weight.shape)]
        raise ModelError(
            f"{describe_node(node)} has the weight {float(weight[tuple(position)]):.4g} at {position} of "
            f"{tensor.name!r}: no training leaves such a value, the file is damaged"
        )
