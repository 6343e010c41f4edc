"""The reference with the sums of its binary layers exact: ±α·Σ in place of Σ ±α.

Where α is folded into the weights, ONNX Runtime sums rounded products, and a sum that is zero, as every other sum of an
even number of signs may be, comes out as some 1e-8 of either sign. A ``Sign`` behind it, with nothing in between that
moves it away from zero, then shows rounding noise: one sign in a hundred, in networks that nobody has trained yet or
that have no batch-norm. A compiled layer has the exact sum. Splitting the weights W into sign(W) and α, per output
channel, lets ONNX Runtime have it, too; the network is the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from bnn_compiler.recognition.binary_weights import BinaryWeights, analyse_weights
from bnn_compiler.verification.reference import Array


def with_exact_sums(model: ModelProto, layers: Collection[str]) -> ModelProto:
    """Copy ``model`` so that the products named in ``layers`` sum whole numbers, as far as their form is known here.

    Known are ``Conv``, ``Gemm`` and ``MatMul`` whose second operand is a float32 initialiser of ±α per output channel.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes: list[NodeProto] = []
    for node in copy.graph.node:
        weights = None
        if node.name in layers and node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in constants:
            weights = numpy_helper.to_array(constants[node.input[1]])
        split = None if weights is None or weights.dtype != np.float32 else _split(node, weights)
        if split is None:
            nodes.append(node)
            continue
        signs, scale = split
        prefix = f"bnnc_exact_sum_{len(nodes)}"
        names = {"signs": f"{prefix}_signs", "scale": f"{prefix}_scale", "sum": f"{prefix}_sum"}
        for part, array in (("signs", signs), ("scale", scale)):
            copy.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), names[part]))
        nodes += _rewritten(node, names, weights.ndim if weights is not None else 0)
    rewritten = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(rewritten)
    return copy


def _split(node: NodeProto, weights: Array) -> tuple[Array, Array] | None:
    """sign(W) in W's layout, and α as it broadcasts over the product's result."""
    axis = 0
    if node.op_type != "Conv":
        if weights.ndim != 2:
            return None
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if transposed else 1
    found = analyse_weights(np.moveaxis(weights, axis, 0))
    if not isinstance(found, BinaryWeights):
        return None
    trailing = weights.ndim - 2 if node.op_type == "Conv" else 0
    scale = found.alpha.astype(np.float32).reshape(-1, *[1] * trailing)
    return np.sign(weights), scale


def _rewritten(node: NodeProto, names: dict[str, str], rank: int) -> list[NodeProto]:
    """The product of signs, then α, then the bias: each rounds once."""
    product = NodeProto()
    product.CopyFrom(node)
    output, bias = node.output[0], list(node.input[2:])
    product.input[:] = [node.input[0], names["signs"]]
    product.output[:] = [names["sum"]]
    factor, share = 1.0, 1.0
    for attribute in product.attribute:
        if attribute.name == "alpha":
            factor, attribute.f = attribute.f, 1.0
        elif attribute.name == "beta":
            share, attribute.f = attribute.f, 1.0
    if node.op_type == "Gemm" and bias:
        # Before operator set 11 a Gemm must have its third operand: it stays, times zero, and is added later.
        kept = [attribute for attribute in product.attribute if attribute.name != "beta"]
        del product.attribute[:]
        product.attribute.extend([*kept, helper.make_attribute("beta", 0.0)])
        product.input.append(bias[0])
    made = [product]

    def emit(operator: str, inputs: list[str], result: str) -> str:
        made.append(helper.make_node(operator, inputs, [result], name=f"{names['sum']}_{len(made)}"))
        return result

    def times(tensor: str, number: float, result: str) -> str:
        constant = f"{result}_factor"
        value = numpy_helper.from_array(np.asarray(number, np.float32))
        made.append(helper.make_node("Constant", [], [constant], name=constant, value=value))
        return emit("Mul", [tensor, constant], result)

    summed = names["sum"] if factor == 1 else times(names["sum"], factor, f"{names['sum']}_by_factor")
    if not bias or not bias[0]:
        emit("Mul", [summed, names["scale"]], output)
        return made
    scaled = emit("Mul", [summed, names["scale"]], f"{names['sum']}_scaled")
    addend = bias[0] if share == 1 else times(bias[0], share, f"{names['sum']}_addend")
    if node.op_type == "Conv" and rank > 2:
        shape = f"{names['sum']}_bias_shape"
        value = numpy_helper.from_array(np.asarray([-1, *[1] * (rank - 2)], np.int64))
        made.append(helper.make_node("Constant", [], [shape], name=shape, value=value))
        addend = emit("Reshape", [addend, shape], f"{names['sum']}_bias")
    emit("Add", [scaled, addend], output)
    return made
