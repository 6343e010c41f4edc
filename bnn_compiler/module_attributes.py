"""What a Relax module carries beside its functions: attributes whose values are JSON texts.

``bnnc.names``
    Relax variable name -> ``{"node", "op", "output"}``. ``output`` is the name of the ONNX tensor that the variable
    holds, or null for an inner result of the node: the ``conv2d`` of a ``Conv`` with bias, whose tensor is the ``add``.
    The names begin with ``onnx_`` from ``NameVariables`` on. ``LowerBinaryOps`` adds the variables of its kernels, with
    ``role``: ``product`` for the kernel that counts (``output`` is null where it gives bits), ``convert`` for others.
    Behind ``PlanLayouts`` also ``"axes"`` where the variable has the tensor's axes in this order, and ``"operand"``,
    the tensor that the node reads, where no variable holds it.
``bnnc.inputs``
    Relax parameter name -> ONNX input name, in order.
``bnnc.signs``
    The report's list of ``Sign`` operators, from ``DecideSignZeros`` on.
``bnnc.layers``
    The report's list of layers, from ``PartitionBinaryOps`` on.

The front end writes the first two; modules from elsewhere do not have them, and work the same.
"""

from __future__ import annotations

import json
from typing import Any

import tvm

NAMES_ATTRIBUTE = "bnnc.names"
INPUTS_ATTRIBUTE = "bnnc.inputs"
SIGNS_ATTRIBUTE = "bnnc.signs"
LAYERS_ATTRIBUTE = "bnnc.layers"


def read_attribute(module: tvm.IRModule, attribute: str) -> Any:
    """The value of ``attribute``, or None where the module has no such attribute."""
    attributes = module.attrs or {}
    return json.loads(str(attributes[attribute])) if attribute in attributes else None


def onnx_names(module: tvm.IRModule) -> dict[str, dict[str, Any]]:
    """ONNX node and tensor of each Relax variable, as the front end left them; empty for modules from elsewhere."""
    inputs = read_attribute(module, INPUTS_ATTRIBUTE) or {}
    names = read_attribute(module, NAMES_ATTRIBUTE) or {}
    return {parameter: {"output": tensor} for parameter, tensor in inputs.items()} | names
