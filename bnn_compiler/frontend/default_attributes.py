"""Default attributes without which ONNX's shape inference (1.23) fails, or infers a shape of another default."""

from __future__ import annotations

import onnx

from .onnx_graph import ONNX_DOMAINS, all_nodes

_WRITTEN_OUT = {"MeanVarianceNormalization": "axes", "STFT": "onesided"}


def write_default_attributes(model: onnx.ModelProto, opset: int) -> None:
    """Write them out, in place, also in subgraphs."""
    for node in all_nodes(model.graph):
        name = _WRITTEN_OUT.get(node.op_type) if node.domain in ONNX_DOMAINS else None
        if name is not None and all(attribute.name != name for attribute in node.attribute):
            schema = onnx.defs.get_schema(node.op_type, opset, "")
            node.attribute.append(schema.attributes[name].default_value)
