"""Builds the standard nodes that take the place of one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, TypeProto, numpy_helper

from .onnx_graph import static_shape

_Array = npt.NDArray[Any]


class NodeEmitter:
    """Collects ``nodes`` and ``initializers`` in place of ``node``; call it to emit an operator.

    ``constants`` and ``types`` are those of the graph so far. New tensors and nodes are named after the node's first
    output, which is unique in its graph. Constants take the float type of the node's operands where no other is asked.
    """

    def __init__(
        self, node: NodeProto, opset: int, constants: Mapping[str, TensorProto], types: Mapping[str, TypeProto]
    ) -> None:
        """Start empty."""
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._node = node
        self._prefix = next((name for name in node.output if name), node.name)
        self._constants = constants
        self._types = types
        self.element_type = self._element_type()
        self.dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(self.element_type)

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Emit one operator; the name of its result."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, count: int, *inputs: str, **attributes: Any) -> list[str]:
        """Emit one operator of ``count`` results; their names."""
        name = f"{self._prefix}/{operator}_{len(self.nodes)}"
        outputs = [name, *(f"{name}/{index}" for index in range(1, count))]
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return outputs

    def result(self, operator: str, *inputs: str, index: int = 0, **attributes: Any) -> None:
        """Emit the operator whose result is the replaced node's output number ``index``, unless nothing asks for it."""
        if index >= len(self._node.output) or not self._node.output[index]:
            return
        output = self._node.output[index]
        name = self._node.name if index == 0 else f"{self._node.name}/{index}"
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes))

    def clip(self, data: str, low: float, high: float) -> str:
        """``Clip``, whose bounds are attributes before operator set 11."""
        if self.opset < 11:
            return self("Clip", data, min=low, max=high)
        return self("Clip", data, self.scalar(low), self.scalar(high))

    def scalar(self, value: float, dtype: npt.DTypeLike | None = None) -> str:
        """The name of a constant of rank 0."""
        return self.constant(np.asarray(value), dtype)

    def integers(self, values: Sequence[int]) -> str:
        """The name of a constant list of int64 numbers: a shape, axes, bounds of slices."""
        return self.constant(np.asarray(values, np.int64), np.int64)

    def constant(self, array: _Array, dtype: npt.DTypeLike | None = None) -> str:
        """The name of a constant, in the operands' type or ``dtype``."""
        name = f"{self._prefix}/constant_{len(self.initializers)}"
        array = np.asarray(array, self.dtype if dtype is None else dtype, order="C")
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def constant_value(self, name: str) -> _Array | None:
        """The value of an operand that is a constant."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def is_scalar(self, name: str, value: float) -> bool:
        """Whether an operand is the constant ``value`` of rank 0, so that it broadcasts to nothing larger."""
        array = self.constant_value(name) if name in self._constants else None
        own = next((tensor for tensor in self.initializers if tensor.name == name), None)
        array = numpy_helper.to_array(own) if own is not None else array
        return array is not None and array.ndim == 0 and array.item() == value

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of an operand, where it is known."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        return static_shape(self._types[name]) if name in self._types else None

    def rank(self, name: str) -> int | None:
        """The rank of an operand, where it is known."""
        if name in self._constants:
            return len(self._constants[name].dims)
        found = self._types.get(name)
        known = found is not None and found.tensor_type.HasField("shape")
        return len(found.tensor_type.shape.dim) if found is not None and known else None

    def element_type_of(self, name: str) -> int:
        """The ONNX element type of an operand; 0 (undefined) where it is not known."""
        if name in self._constants:
            return int(self._constants[name].data_type)
        return int(self._types[name].tensor_type.elem_type) if name in self._types else 0

    def _element_type(self) -> int:
        """The float type of the first operand that has a known one; float32 where none has."""
        for name in self._node.input:
            element_type = self.element_type_of(name)
            if element_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
                return element_type
        return int(TensorProto.FLOAT)


Lowering = Callable[[NodeProto, NodeEmitter], "str | None"]
"""Emits the nodes that replace a node; a reason where it cannot, or not yet (a shape that is not inferred so far)."""
