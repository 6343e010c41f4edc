"""What the front end hands to the rest of the compiler."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import tvm

from bnn_compiler.tensor_spec import TensorSpec


@dataclass(frozen=True)
class ImportedModel:
    """A network in Relax, and the ONNX model it stands for.

    ``module`` holds one function, ``main``: its parameters are the graph inputs in order, every ONNX node's result is
    a binding of its dataflow block, and it returns the graph outputs (a tuple when there are several). The module
    attributes ``bnnc.names`` and ``bnnc.inputs`` are JSON texts: see :mod:`bnn_compiler.module_attributes`.

    ``onnx_model`` is the normalised model: static shapes, opset and IR version as in the file, nodes named uniquely,
    constants folded. ONNX Runtime can run it, and its tensor names are those of ``bnnc.names``.

    ``notes`` are sentences for the user: decisions taken where the file left a choice.
    """

    name: str
    module: tvm.IRModule
    onnx_model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: tuple[str, ...]
