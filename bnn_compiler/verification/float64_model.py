"""A network in float64 between its discontinuities, as a referee of two float32 results.

A sign, a rounding or a comparison makes two evaluations that differ by rounding differ by much. So the float64 network
is cut there: what such a node gives is an input, to be fed from the float32 evaluation. Both then have the same signs
and codes, and the difference of any other tensor is nothing but the rounding of float32 between two cuts. Where a
tensor is exact in float32 (sums of signs), the difference is 0.

Cut is every node that takes float32 and gives another type than a float (comparisons, casts to integers, arg-max,
quantisation), the operators in ``_JUMPS``, and those with subgraphs. Operators without a float64 kernel in ONNX Runtime
are taken apart (:mod:`.float64_nodes`) or run in float32, and what depends on those is named in ``imprecise``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes
from onnxruntime.capi import _pybind_state

from bnn_compiler.verification.float64_nodes import LOWERINGS, Emitter
from bnn_compiler.verification.reference import Array

_SINGLE, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
_FLOATS = (_SINGLE, _DOUBLE)
_JUMPS = frozenset({"Sign", "Round", "Floor", "Ceil", "Mod", "Shrink", "ThresholdedRelu", "Hardmax"})
_TYPE_ATTRIBUTES = frozenset({"to", "dtype", "output_dtype"})
SUFFIX = "/float64"


@dataclass(frozen=True)
class Float64Network:
    """``model`` gives ``tensors`` under their names with ``SUFFIX``; it takes the network's inputs and ``forced``.

    ``watched`` are those tensors. ``jumps`` are the float32 tensors that cut nodes read; ``imprecise`` are tensors that
    some float32 node computed.
    """

    model: ModelProto
    forced: tuple[str, ...]
    jumps: tuple[str, ...]
    imprecise: frozenset[str]
    watched: frozenset[str]


class _Types:
    """Element types, shapes and constants of a model's tensors."""

    def __init__(self, model: ModelProto) -> None:
        inferred = infer_shapes(model).graph
        self.types: dict[str, int] = {tensor.name: tensor.data_type for tensor in inferred.initializer}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for info in (*inferred.value_info, *inferred.input, *inferred.output):
            self.types[info.name] = info.type.tensor_type.elem_type
            if info.type.tensor_type.HasField("shape"):
                dims = info.type.tensor_type.shape.dim
                self.shapes[info.name] = tuple(int(dim.dim_value) for dim in dims)
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in inferred.initializer}

    def is_single(self, name: str) -> bool:
        return self.types.get(name) == _SINGLE

    def is_cut(self, node: NodeProto) -> bool:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return True
        if not any(map(self.is_single, node.input)):
            return False
        others = [name for name in node.output if name and self.types.get(name) not in _FLOATS]
        return node.op_type in _JUMPS or (bool(others) and node.op_type not in ("Shape", "Size"))


def in_float64(model: ModelProto, tensors: Collection[str]) -> Float64Network:
    """The float64 network of ``model``, whose shapes must be static, with ``tensors`` and all that cut nodes read."""
    types = _Types(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    producers = {output for node in model.graph.node for output in node.output if output}
    inputs = [info for info in model.graph.input if info.name not in types.constants]
    forced: list[str] = []
    jumps: dict[str, None] = {}
    nodes: list[NodeProto] = [_to_double(info.name) for info in inputs if types.is_single(info.name)]
    constants: list[TensorProto] = []
    for tensor in model.graph.initializer:
        constants.append(tensor)
        if types.is_single(tensor.name):
            wide = types.constants[tensor.name].astype(np.float64)
            constants.append(numpy_helper.from_array(wide, tensor.name + SUFFIX))
    imprecise: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if types.is_cut(node):
            given = [name for name in node.output if name]
            forced += given
            nodes += [_to_double(name) for name in given if types.is_single(name)]
            jumps |= dict.fromkeys(name for name in node.input if types.is_single(name) and name not in types.constants)
            continue
        made, more, precise = _widened(node, types, opset, number)
        nodes += made
        constants += more
        if not precise or not imprecise.isdisjoint(node.input):
            imprecise.update(node.output)
    wanted = dict.fromkeys((*tensors, *jumps))
    given_names = {info.name for info in inputs}
    watched = [name for name in wanted if types.is_single(name) and (name in producers or name in given_names)]
    outputs = [helper.make_tensor_value_info(name + SUFFIX, _DOUBLE, None) for name in watched]
    for name in forced:
        inputs.append(helper.make_tensor_value_info(name, types.types[name], types.shapes.get(name)))
    graph = helper.make_graph(nodes, "float64", inputs, outputs, constants)
    wide_model = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    return Float64Network(wide_model, tuple(forced), tuple(jumps), frozenset(imprecise), frozenset(watched))


def static_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's tensors, as far as they are known."""
    return _Types(model).shapes


def _to_double(name: str) -> NodeProto:
    return helper.make_node("Cast", [name], [name + SUFFIX], name=name + SUFFIX, to=_DOUBLE)


def _widened(
    node: NodeProto, types: _Types, opset: int, number: int
) -> tuple[list[NodeProto], list[TensorProto], bool]:
    """``node`` in float64, with new constants, and whether every operation of it is."""
    single = [name for name in (*node.input, *node.output) if types.is_single(name)]
    wide = NodeProto()
    wide.CopyFrom(node)
    if not single:
        return [wide], [], True
    wide.input[:] = [name + SUFFIX if types.is_single(name) else name for name in node.input]
    wide.output[:] = [name + SUFFIX if types.is_single(name) else name for name in node.output]
    if node.op_type in LOWERINGS:
        known = {name + SUFFIX: value for name, value in types.constants.items()}
        shapes = {name + SUFFIX: shape for name, shape in types.shapes.items()}
        emitter = Emitter(f"float64_{number}", opset, known, shapes)
        if LOWERINGS[node.op_type](wide, emitter):
            return emitter.nodes, emitter.initializers, True
    if node.domain in ("", "ai.onnx") and _has_float64(node.op_type, opset):
        for attribute in wide.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == _SINGLE:
                attribute.i = _DOUBLE
            if attribute.HasField("t") and attribute.t.data_type == _SINGLE:
                value: Array = numpy_helper.to_array(attribute.t).astype(np.float64)
                attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
            elif attribute.name in ("value_float", "value_floats"):
                return _in_single(node, types, number)
        return [wide], [], True
    return _in_single(node, types, number)


def _in_single(node: NodeProto, types: _Types, number: int) -> tuple[list[NodeProto], list[TensorProto], bool]:
    """``node`` in float32, between casts; exact only for a constant."""
    plain = NodeProto()
    plain.CopyFrom(node)
    prefix = f"float32_{number}"
    before, after = [], []
    for index, name in enumerate(node.input):
        if types.is_single(name):
            plain.input[index] = f"{prefix}/{index}"
            cast = helper.make_node("Cast", [name + SUFFIX], [plain.input[index]], name=plain.input[index], to=_SINGLE)
            before.append(cast)
    for index, name in enumerate(node.output):
        if types.is_single(name):
            plain.output[index] = f"{prefix}/result{index}"
            after.append(helper.make_node("Cast", [plain.output[index]], [name + SUFFIX], name=name, to=_DOUBLE))
    return [*before, plain, *after], [], node.op_type == "Constant"


@functools.cache
def _kernels() -> dict[str, list[tuple[int, int]]]:
    """The versions of ONNX's operators for which ONNX Runtime has a float64 kernel."""
    found: dict[str, list[tuple[int, int]]] = {}
    for kernel in _pybind_state.get_all_opkernel_def():
        takes = any("tensor(double)" in types for types in kernel.type_constraints.values())
        if kernel.domain in ("", "ai.onnx") and kernel.provider == "CPUExecutionProvider" and takes:
            found.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))
    return found


def _has_float64(operator: str, opset: int) -> bool:
    # Shapes, casts and constants take every type.
    return operator in ("Cast", "Constant") or any(
        first <= opset <= last for first, last in _kernels().get(operator, [])
    )
