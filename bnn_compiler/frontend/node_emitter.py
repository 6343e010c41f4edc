"""Builds the standard nodes that take the place of one node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, TypeProto, numpy_helper

_Array = npt.NDArray[Any]


class NodeEmitter:
    """Collects ``nodes`` and ``initializers`` in place of ``node``; call it to emit an operator.

    ``constants`` and ``types`` are those of the graph so far. New tensors and nodes are named after the node's output,
    which is unique in its graph. Constants take the float type of the node's operands.
    """

    def __init__(
        self, node: NodeProto, opset: int, constants: Mapping[str, TensorProto], types: Mapping[str, TypeProto]
    ) -> None:
        """Start empty."""
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._node = node
        self._constants = constants
        self._types = types
        self.element_type = self._element_type()
        self.dtype: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(self.element_type)

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Emit one operator; the name of its result."""
        return self._emit(operator, inputs, f"{self._node.output[0]}/{operator}_{len(self.nodes)}", attributes)

    def result(self, operator: str, *inputs: str) -> None:
        """Emit the operator whose result is the replaced node's."""
        self._emit(operator, inputs, self._node.output[0], {})
        self.nodes[-1].name = self._node.name

    def clip(self, data: str, low: float, high: float) -> str:
        """``Clip``, whose bounds are attributes before operator set 11."""
        if self.opset < 11:
            return self("Clip", data, min=low, max=high)
        return self("Clip", data, self.scalar(low), self.scalar(high))

    def scalar(self, value: float) -> str:
        """The name of a constant of rank 0."""
        return self.constant(np.asarray(value))

    def constant(self, array: _Array) -> str:
        """The name of a constant, in the operands' type."""
        name = f"{self._node.output[0]}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array, self.dtype, order="C"), name))
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

    def rank(self, name: str) -> int | None:
        """The rank of an operand, where it is known."""
        if name in self._constants:
            return len(self._constants[name].dims)
        found = self._types.get(name)
        known = found is not None and found.tensor_type.HasField("shape")
        return len(found.tensor_type.shape.dim) if found is not None and known else None

    def _emit(self, operator: str, inputs: tuple[str, ...], output: str, attributes: dict[str, Any]) -> str:
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def _element_type(self) -> int:
        """The float type of the first operand that has a known one; float32 where none has."""
        for name in self._node.input:
            found = self._types.get(name)
            element_type = self._constants[name].data_type if name in self._constants else 0
            if found is not None:
                element_type = found.tensor_type.elem_type
            if element_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
                return int(element_type)
        return int(TensorProto.FLOAT)
