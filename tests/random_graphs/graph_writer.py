"""Writes ONNX graphs node by node, in the form that an operator has in a given operator set.

Every tensor carries what is known of its values, so that a test knows which results have one right answer:

- *exact*: all values are multiples of ``step`` and at most ``bound`` in magnitude, with ``bound / step`` small enough
  that sums and products of them are representable, in any order;
- *rounded*: computed from exact tensors by element-wise operators, each of which rounds once, the same everywhere;
- *approximate*: sums of rounded numbers, or functions whose last bit differs between libraries.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Exactness(enum.IntEnum):
    """How far a tensor's values may differ between two correct implementations."""

    EXACT = 0
    ROUNDED = 1
    APPROXIMATE = 2


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; ``signs`` is s where the values are known to be ±s, by construction."""

    name: str
    shape: tuple[int, ...]
    exactness: Exactness
    bound: float
    step: float
    signs: float | None = None
    may_be_zero: bool = True


@dataclass
class GraphWriter:
    """Collects the nodes of one chain; names start with ``prefix``, so that chains can share a model.

    A ``dyadic`` chain has only constants that keep sums exact.
    """

    random: Random
    prefix: str
    opset: int
    dtype: np.dtype[Any]
    dyadic: bool = False
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    count: int = 0

    @property
    def precision(self) -> float:
        """Integers up to this are exact in the chain's dtype; float64 products are no wider than float32's here."""
        return 2.0**11 if self.dtype == np.float16 else 2.0**24

    @property
    def element_type(self) -> int:
        """The dtype as ONNX numbers it."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    @property
    def is_double(self) -> bool:
        """Whether the chain is one of float64, for which ONNX Runtime lacks kernels of many operators."""
        return bool(self.dtype == np.float64)

    def fresh(self) -> str:
        """A new name."""
        self.count += 1
        return f"{self.prefix}_{self.count}"

    def input(self, shape: Sequence[int]) -> Tensor:
        """A graph input whose samples are odd multiples of 1/16 up to 4: never zero, and exact."""
        name = self.fresh()
        self.inputs.append(helper.make_tensor_value_info(name, self.element_type, list(shape)))
        return Tensor(name, tuple(shape), Exactness.EXACT, 4.0, 1 / 16, may_be_zero=False)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of an initialiser or of a ``Constant`` node, in the chain's dtype unless another is given."""
        array = np.asarray(value, self.dtype if dtype is None else dtype)
        name = self.fresh()
        if self.random.randrange(8) == 0:
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.constants[name] = array
        return name

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Emit a node; the name of its first output (the others are numbered behind it)."""
        names = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, name=f"node_{names[0]}", **attributes))
        return names[0]

    def axes_node(self, operator: str, data: str, axes: Sequence[int], *, since: int, **attributes: Any) -> str:
        """An operator whose ``axes`` became an operand in operator set ``since``."""
        if self.opset < since:
            return self.node(operator, data, axes=list(axes), **attributes)
        return self.node(operator, data, self.constant(list(axes), np.int64), **attributes)

    def clip(self, data: str, low: float, high: float) -> str:
        """``Clip``, or ``Max`` and ``Min``."""
        if self.is_double or self.random.randrange(4) == 0:
            return self.node("Min", self.node("Max", data, self.constant(low)), self.constant(high))
        if self.opset < 11:
            return self.node("Clip", data, min=float(low), max=float(high))
        return self.node("Clip", data, self.constant(low), self.constant(high))

    def pad(self, data: str, widths: Sequence[int], value: float, mode: str) -> str:
        """``Pad`` by ``widths`` (all begins, then all ends)."""
        if self.opset < 11:
            return self.node("Pad", data, pads=list(widths), value=float(value), mode=mode)
        fill = [self.constant(value)] if mode == "constant" else []
        return self.node("Pad", data, self.constant(list(widths), np.int64), *fill, mode=mode)

    def compare(self, data: str, limit: str) -> tuple[str, str]:
        """A comparison that splits ``data`` at ``limit``: the boolean tensor, and the operator's name."""
        names = ["Greater", "Less"] + (["GreaterOrEqual", "LessOrEqual"] if self.opset >= 12 else [])
        name = self.random.choice(names)
        operands = (data, limit) if self.random.randrange(3) else (limit, data)
        return self.node(name, *operands), name


def exact(tensor: Tensor, name: str, writer: GraphWriter, *, bound: float, step: float, **changes: Any) -> Tensor:
    """The result of an operator on ``tensor`` with these values; approximate where they need too many digits."""
    fits = tensor.exactness == Exactness.EXACT and step > 0 and bound / step < writer.precision
    level = Exactness.EXACT if fits else max(tensor.exactness, Exactness.APPROXIMATE)
    changes = {"signs": None, "may_be_zero": True, **changes}
    return replace(tensor, name=name, exactness=level, bound=bound, step=step, **changes)


def rounded(tensor: Tensor, name: str, *, bound: float) -> Tensor:
    """The result of an element-wise operator that rounds."""
    level = max(tensor.exactness, Exactness.ROUNDED)
    return replace(tensor, name=name, exactness=level, bound=bound, step=0.0, signs=None, may_be_zero=True)


def approximate(tensor: Tensor, name: str, *, bound: float) -> Tensor:
    """The result of an operator that sums rounded numbers."""
    return replace(rounded(tensor, name, bound=bound), exactness=Exactness.APPROXIMATE)


def value_info(name: str, element_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    """An output whose shape is left to inference."""
    return helper.make_tensor_value_info(name, element_type, None)


def make_model(writers: Sequence[GraphWriter], outputs: Sequence[tuple[str, int]], opset: int) -> onnx.ModelProto:
    """One model of several chains."""
    graph = helper.make_graph(
        [node for writer in writers for node in writer.nodes],
        "random",
        [info for writer in writers for info in writer.inputs],
        [value_info(name, element_type) for name, element_type in outputs],
        [numpy_helper.from_array(array, name) for writer in writers for name, array in writer.constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 21 else 10)
