"""A graph that is evaluated while it is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from .one_node import Array, OneNode, RejectedNodeError, make_model

LARGEST = 20_000
"""Elements of a tensor: small, because what goes wrong goes wrong on small shapes, and compiles faster."""

Predicate = Callable[["Tensor"], bool]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph and its value on the input that the graph was written with."""

    name: str
    value: Array
    constant: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.value.shape

    @property
    def rank(self) -> int:
        """The number of axes."""
        return self.value.ndim

    @property
    def kind(self) -> str:
        """NumPy's letter of the element type's kind: f, i, u or b."""
        return self.value.dtype.kind


@dataclass(frozen=True)
class Entry:
    """A node, and whether the compiled model, the reference, or both have it."""

    node: NodeProto
    in_model: bool = True
    in_reference: bool = True


class GraphBuilder:
    """Nodes so far. Every method that adds one raises ``RejectedNodeError`` where ONNX Runtime refuses it.

    Operators of other domains have a twin: standard nodes that only the reference holds (``standing_for``).
    """

    def __init__(self, random: Random, opset: int) -> None:
        """Start an empty graph of the operator set ``opset``."""
        self.random = random
        self.rng = np.random.default_rng(random.getrandbits(64))
        self.opset = opset
        self.entries: list[Entry] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[Tensor] = []
        self.pool: list[Tensor] = []
        self.domains: set[str] = set()
        self._names = 0
        self._hidden = False

    def name(self, stem: str) -> str:
        """A new name."""
        self._names += 1
        return f"{stem}_{self._names}"

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return self.random.random() < share

    def choose(self, *options: Any) -> Any:
        """One of the options."""
        return self.random.choice(options)

    def add_input(self, value: Array) -> Tensor:
        """A new input of the network."""
        tensor = Tensor(self.name("input"), value)
        self.inputs.append(tensor)
        self.pool.append(tensor)
        return tensor

    def constant(self, value: npt.ArrayLike, dtype: Any = None) -> Tensor:
        """A constant: an initialiser, one that is there already, or the output of a ``Constant`` node."""
        array = np.asarray(value, dtype)
        for name, other in self.constants.items():
            if other.dtype == array.dtype and other.shape == array.shape and np.array_equal(other, array):
                return Tensor(name, other, constant=True)
        if self.chance(0.1) and not self._hidden:
            name = self.name("constant")
            node = helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(array, name))
            self.entries.append(Entry(node))
        else:
            name = self.name("weight")
            self.constants[name] = array
        return Tensor(name, array, constant=True)

    def integers(self, *values: int) -> Tensor:
        """A constant list of int64."""
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, operands: Sequence[Tensor | None], **attributes: Any) -> Tensor:
        """Append a node of one output. Operands of None and attributes without a value are left out."""
        return self.add_several(op, operands, outputs=1, **attributes)[0]

    def add_several(
        self, op: str, operands: Sequence[Tensor | None], *, outputs: int, **attributes: Any
    ) -> list[Tensor]:
        """The same for any number of outputs."""
        while operands and operands[-1] is None:
            operands = operands[:-1]
        name = self.name(op)
        results = [self.name("t") for _ in range(outputs)]
        kept = {key: value for key, value in attributes.items() if value is not None and value != []}
        node = helper.make_node(op, [o.name if o else "" for o in operands], results, name, **kept)
        present = {operand.name: operand for operand in operands if operand is not None}
        return self._append(node, present)

    def add_node(self, node: NodeProto, operands: Sequence[Tensor]) -> Tensor:
        """Append a node that is written already, such as one with subgraphs."""
        return self._append(node, {operand.name: operand for operand in operands})[0]

    def _append(self, node: NodeProto, operands: dict[str, Tensor]) -> list[Tensor]:
        constants = {name: operand.value for name, operand in operands.items() if operand.constant}
        values = {name: operand.value for name, operand in operands.items()}
        results = OneNode(node, self.opset, values, constants)(values)
        if any(result.size > LARGEST or result.dtype.kind not in "fiub" for result in results):
            raise RejectedNodeError("too large")
        constant = bool(operands) and len(constants) == len(operands)
        self.entries.append(Entry(node, in_model=not self._hidden))
        tensors = [Tensor(name, value, constant) for name, value in zip(node.output, results, strict=True)]
        if not self._hidden and not constant:
            self.pool.extend(tensors)
        return tensors

    @contextlib.contextmanager
    def standing_for(
        self, op: str, operands: Sequence[Tensor], domain: str, **attributes: Any
    ) -> Iterator[list[Tensor]]:
        """Nodes added inside stand for one node of another domain; append their last result to the list given."""
        results: list[Tensor] = []
        self._hidden = True
        try:
            yield results
        finally:
            self._hidden = False
        name = self.name(op)
        names = [operand.name for operand in operands]
        node = helper.make_node(op, names, [results[-1].name], name, domain=domain, **attributes)
        self.entries.append(Entry(node, in_reference=False))
        self.domains.add(domain)
        self.pool.append(results[-1])

    def pick(self, kinds: str = "f", where: Predicate = lambda _: True) -> Tensor:
        """A tensor of these kinds, later ones more often.

        Raises:
            RejectedNodeError: there is none.
        """
        found = [tensor for tensor in self.pool if tensor.kind in kinds and where(tensor)]
        if not found:
            raise RejectedNodeError("no operand")
        return found[-1 - min(len(found) - 1, int(abs(self.random.gauss(0, 1)) * 2.5))]

    def pick_rank(self, *ranks: int, kinds: str = "f") -> Tensor:
        """A tensor of one of these ranks; reshaped where there is none, or at times although there is one."""
        with contextlib.suppress(RejectedNodeError):
            if not self.chance(0.05):
                return self.pick(kinds, lambda tensor: tensor.rank in ranks)
        return self.reshape(self.pick(kinds), self.random.choice(ranks))

    def reshape(self, tensor: Tensor, rank: int) -> Tensor:
        """The same elements in a random shape of this rank."""
        sizes = [1] * rank
        if rank == 0 or tensor.value.size == 0:
            sizes = [0 if tensor.value.size == 0 else 1] * rank
        else:
            for prime in _primes(tensor.value.size):
                sizes[self.random.randrange(rank)] *= prime
        return self.add("Reshape", [tensor, self.integers(*sizes)])

    def models(self, outputs: Sequence[Tensor], open_batch: bool) -> tuple[onnx.ModelProto, onnx.ModelProto]:
        """The model to compile and its reference, with a symbolic first dimension of the inputs if ``open_batch``."""
        infos = [_info(tensor, open_batch) for tensor in self.inputs]
        model_nodes = [entry.node for entry in self.entries if entry.in_model]
        reference_nodes = [entry.node for entry in self.entries if entry.in_reference]
        outer = [_info(tensor, False) for tensor in outputs]
        domains = sorted(self.domains)
        return (
            make_model(self._graph(model_nodes, infos, outer), self.opset, domains),
            make_model(self._graph(reference_nodes, infos, outer), self.opset),
        )

    def _graph(self, nodes: list[NodeProto], inputs: list[Any], outputs: list[Any]) -> onnx.GraphProto:
        used = {name for node in nodes for name in node.input} | {output.name for output in outputs}
        # Names that only a subgraph captures are tensors of the pool, never constants.
        tensors = [numpy_helper.from_array(value, name) for name, value in self.constants.items() if name in used]
        return helper.make_graph(nodes, "conformance", inputs, outputs, tensors)


def _info(tensor: Tensor, open_batch: bool) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(tensor.shape)
    if open_batch and shape:
        shape[0] = f"N{tensor.shape[0]}"  # inputs of other batches are other dimensions
    return helper.make_tensor_value_info(tensor.name, helper.np_dtype_to_tensor_dtype(tensor.value.dtype), shape)


def _primes(number: int) -> list[int]:
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors
