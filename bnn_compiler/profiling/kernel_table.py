"""Which ONNX nodes each kernel call of a compiled network computes: part of the library's manifest.

``bnnc.names`` knows the tensor that a call's variable holds. A call computes the nodes between that tensor and those
that were there before: the producer of the tensor, its producers and so on, up to nodes that an earlier call computed.
So each node belongs to one call, the first that needs it; but a binary layer's node always to the call that counts for
it. A call whose variable is unknown lists no nodes: they are
listed with the next call that reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, Literal, TypedDict

import tvm
from onnx import ModelProto, NodeProto
from tvm import relax

from bnn_compiler.module_attributes import NAMES_ATTRIBUTE, read_attribute
from bnn_compiler.report import LayerReport

Kind = Literal["binary", "float", "glue"]


class KernelEntry(TypedDict):
    """One kernel call of ``main``.

    ``kernel`` is the function's name in the library, ``nodes`` are names of ONNX nodes in the order of the graph,
    ``layer`` is the ``name`` of the report's layer that the call works for (empty: none). ``kind``: ``binary`` counts
    bits, ``float`` computes a layer with floats, ``glue`` is everything else, packing included. ``results`` is the
    number of tensors that it writes, its last arguments.
    """

    kernel: str
    nodes: list[str]
    layer: str
    kind: Kind
    results: int


def kernel_table(module: tvm.IRModule, model: ModelProto, layers: Sequence[LayerReport]) -> list[KernelEntry]:
    """The kernel calls of ``main`` in order; ``module`` is lowered, ``model`` the one it was imported from."""
    names: Mapping[str, Mapping[str, Any]] = read_attribute(module, NAMES_ATTRIBUTE) or {}
    calls = list(_kernel_calls(module["main"]))
    found = [names[variable] for variable, _, _ in calls if variable in names]
    slices = _Slices(model, {entry["node"] for entry in found if entry.get("role") == "product"})
    algorithms = {layer["name"]: layer["algorithm"] for layer in layers}
    table: list[KernelEntry] = []
    for variable, kernel, results in calls:
        entry = names.get(variable)
        if entry is None:
            table.append({"kernel": kernel, "nodes": [], "layer": "", "kind": "glue", "results": results})
            continue
        convert = entry.get("role") == "convert"
        own = entry["node"] if entry.get("role") == "product" else None
        nodes = [] if convert else slices.take(entry["output"], entry["node"], own)
        named = [node for node in (entry["node"], *nodes) if node in algorithms and (convert or node in nodes)]
        layer = named[0] if named else ""
        kind: Kind = "glue"
        if layer and not convert:
            kind = "float" if algorithms[layer] == "float" else "binary"
        table.append({"kernel": kernel, "nodes": nodes, "layer": layer, "kind": kind, "results": results})
    return table


def _kernel_calls(main: relax.Function) -> Iterator[tuple[str, str, int]]:
    """Variable, kernel and number of results of every ``call_tir``."""
    call_tir = tvm.ir.Op.get("relax.call_tir")
    for block in main.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call) and binding.value.op == call_tir:
                results = len(binding.var.ty.fields) if isinstance(binding.var.ty, relax.TupleType) else 1
                yield str(binding.var.name), str(binding.value.args[0].name_hint), results


class _Slices:
    """Parts of an ONNX graph, each node given out once; ``reserved`` nodes only to who owns them."""

    def __init__(self, model: ModelProto, reserved: Set[str]) -> None:
        self._position = {node.name: index for index, node in enumerate(model.graph.node)}
        self._nodes = {node.name: node for node in model.graph.node}
        self._producers = {output: node for node in model.graph.node for output in node.output if output}
        self._reserved = reserved
        self._taken: set[str] = set()

    def take(self, tensor: str | None, node: str, own: str | None) -> list[str]:
        """The nodes not yet given out that ``tensor`` (``node`` where it has no name) and ``own`` need."""
        starts = [self._producers.get(tensor) if tensor else self._nodes.get(node)]
        starts.append(self._nodes.get(own) if own else None)
        found: list[str] = []
        pending: list[NodeProto] = [start for start in starts if start is not None]
        while pending:
            current = pending.pop()
            if current.name not in self._taken and (current.name not in self._reserved or current.name == own):
                self._taken.add(current.name)
                found.append(current.name)
                pending += [self._producers[name] for name in current.input if name in self._producers]
        return sorted(found, key=self._position.__getitem__)
