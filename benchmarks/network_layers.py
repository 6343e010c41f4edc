"""The float layers of a network as one-layer ONNX models, for ``float_layers.py --network``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto, helper, shape_inference
from onnx.utils import Extractor

from bnn_compiler.driver import inspect_model
from bnn_compiler.frontend import import_onnx

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class FloatLayer:
    """One layer: ``model`` has the float input of ``input_shape``; ``macs`` multiply-adds, 0 for a pool."""

    name: str
    model: onnx.ModelProto
    macs: int


def float_layers(path: Path) -> list[FloatLayer]:
    """Products that stay float and pools of the network, each form once.

    A convolution in front of a max-pool, alone or with a ReLU between, is listed alone and together with it.
    """
    # Which layers are binary does not depend on the kernels; popcount needs no channel trees.
    report = inspect_model(path, algorithm="popcount")
    macs = {layer["name"]: layer["macs"] for layer in report["layers"] if layer["status"] != "binary"}
    imported = import_onnx(path)
    model = shape_inference.infer_shapes(imported.onnx_model)
    shapes = _shapes(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    weights = {weight.name for weight in model.graph.initializer}
    extractor = Extractor(model)
    layers: dict[str, FloatLayer] = {}
    for node in model.graph.node:
        product = node.op_type in _PRODUCTS and node.name in macs
        inputs = [tensor for tensor in node.input if tensor and tensor not in weights]
        if (not product and node.op_type not in _POOLS) or len(inputs) != 1:
            continue
        chains = [[node]]
        if product and (pooled := _chain_to_pool(node, readers)):
            chains.append(pooled)
        for chain in chains:
            output = chain[-1].output[0]
            name = _describe(node, shapes) + "".join(f", {follower.op_type}" for follower in chain[1:])
            if name not in layers:
                layer = extractor.extract_model(inputs, [output])
                layers[name] = FloatLayer(name, layer, macs.get(node.name, 0))
    return list(layers.values())


def _chain_to_pool(node: NodeProto, readers: dict[str, list[NodeProto]]) -> list[NodeProto] | None:
    chain = [node]
    while len(following := readers.get(chain[-1].output[0], [])) == 1:
        chain.append(following[0])
        if following[0].op_type == "MaxPool":
            return chain
        if following[0].op_type != "Relu":
            return None
    return None


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    found = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
    return found | {weight.name: tuple(weight.dims) for weight in graph.initializer}


def _describe(node: NodeProto, shapes: dict[str, tuple[int, ...]]) -> str:
    """Name a layer by what it computes: two layers of one description are the same work."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    shape = shapes[node.input[0]]
    if node.op_type in ("Gemm", "MatMul"):
        return f"{node.op_type} {math.prod(shape[:-1])}x{shape[-1]}x{shapes[node.output[0]][-1]}"
    if node.op_type == "GlobalAveragePool":
        return f"{node.op_type} {shape[1]}@{'x'.join(map(str, shape[2:]))}"
    kernel = attributes.get("kernel_shape") or shapes[node.input[1]][2:]
    text = f"{node.op_type} {'x'.join(map(str, kernel))}"
    strides = attributes.get("strides", [1])
    if any(stride != 1 for stride in strides):
        text += f"/{strides[0]}"
    text += f" {shape[1]}"
    if node.op_type == "Conv":
        text += f"->{shapes[node.output[0]][1]}"
        if attributes.get("group", 1) > 1:
            text += f" in {attributes['group']} groups"
    text += f"@{'x'.join(map(str, shape[2:]))}"
    pads = attributes.get("pads", [0])
    return text + (f" pads {','.join(map(str, pads))}" if any(pads) else "")
