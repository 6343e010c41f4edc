"""From a trained model to an ONNX file in which every binary layer is recognised.

Binary layers are exported in their frozen form (``frozen``): weights exactly ±1, stored as int8 behind a ``Cast`` (a
quarter of the size), α and K as multiplications behind the convolution. Nodes get the names of their PyTorch modules,
so that the compiler's reports speak of them.
"""

from __future__ import annotations

import ast
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bnn_compiler.atomic_file import atomic_write, check_writable
from bnn_compiler.errors import UsageError

from .frozen import freeze
from .layers import binary_layers

OPSET = 20
_SCOPES = "pkg.torch.onnx.name_scopes"


def export(
    model: nn.Module,
    path: str | Path,
    example: Tensor | None = None,
    *,
    input_name: str = "input",
    output_name: str = "output",
    dynamic_batch: bool = True,
) -> ModelProto:
    """Write ``model``, as it is in inference, to ``path``; returns what was written.

    Args:
        model: takes one float tensor, gives one; has binary layers. It stays as it is.
        path: the file; it appears whole or not at all.
        example: an input [N, …]; by default zeros of the model's attribute ``input_shape``, a shape without N.
        input_name: of the graph's input.
        output_name: of the graph's output.
        dynamic_batch: leave the first dimension open.

    Raises:
        UsageError: there is no binary layer, or no example and no ``input_shape``.
        ArtifactError: ``path`` cannot be written.
    """
    path = Path(path)
    binary_layers(model)
    check_writable(path)
    if example is None:
        shape = getattr(model, "input_shape", None)
        if shape is None:
            raise UsageError(f"{type(model).__name__} has no attribute input_shape: pass an example input to export")
        example = torch.zeros(2, *shape)
    if dynamic_batch and len(example) < 2:
        # torch.export takes a dimension of 1 for a constant.
        example = torch.cat([example, example])
    written = _to_onnx(freeze(model).cpu(), example.cpu(), input_name, output_name, dynamic_batch)
    onnx.checker.check_model(written, full_check=True)
    with atomic_write(path) as stream:
        stream.write(written.SerializeToString())
    return written


def _to_onnx(frozen: nn.Module, example: Tensor, input_name: str, output_name: str, dynamic: bool) -> ModelProto:
    # It reports that torchvision is missing, which nothing here needs.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter's own use of deprecated functions is nothing that a caller could change.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            frozen,
            (example,),
            input_names=[input_name],
            output_names=[output_name],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = onnx.load_from_string(program.model_proto.SerializeToString())
    _name_after_modules(model)
    _store_signs_as_bytes(model)
    _strip(model)
    return model


def _name_after_modules(model: ModelProto) -> None:
    """Node names ``module/Operator``, numbered where a module has several of an operator."""
    names = []
    for node in model.graph.node:
        scopes = [entry.value for entry in node.metadata_props if entry.key == _SCOPES]
        scope = [name for name in (ast.literal_eval(scopes[0]) if scopes else []) if name]
        names.append(f"{scope[-2] if len(scope) > 1 else 'main'}/{node.op_type}")
    seen: Counter[str] = Counter()
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _store_signs_as_bytes(model: ModelProto) -> None:
    casts = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim >= 2 and values.dtype == np.float32 and np.isin(values, (-1.0, 1.0)).all():
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.int8), f"{name}_int8"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _strip(model: ModelProto) -> None:
    """Drop what the exporter records of the machine and the source code: it is no part of the network."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:], model.metadata_props[:]
    parts: list[Any] = [*graph.node, *graph.input, *graph.output, *graph.initializer]
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""
    model.doc_string = graph.doc_string = ""
    graph.name = "network"
