"""Make a finding small: fewer inputs, outputs, nodes, attributes and options, smaller shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, helper

from .generate import Case, Options
from .one_node import Array, RejectedNodeError, make_model, make_session, reads
from .rounding import RoundingModel

Still = Callable[[Case], bool]
"""Whether a case still shows the finding."""


def shrink(case: Case, still: Still, *, seconds: float) -> Case:
    """The smallest case found in this time."""
    deadline = time.monotonic() + seconds
    steps = (_fewer_feeds, _plainer_options, _one_output, _earlier_output, _later_inputs, _bypassed, _plainer_nodes,
             _smaller_shapes, _later_inputs, _bypassed)  # fmt: skip
    for step in steps:
        progressed = True
        while progressed:
            progressed = False
            for candidate in step(case):
                if time.monotonic() > deadline:
                    return case
                if still(candidate):
                    case, progressed = candidate, True
                    break
    return case


def _fewer_feeds(case: Case) -> Iterator[Case]:
    if len(case.feeds) > 1:
        for kind, feed in case.feeds.items():
            yield replace(case, feeds={kind: feed})


def _plainer_options(case: Case) -> Iterator[Case]:
    plain = Options()
    for field in ("threads", "target", "algorithm", "sign_zero"):
        if getattr(case.options, field) != getattr(plain, field):
            yield replace(case, options=replace(case.options, **{field: getattr(plain, field)}))


def _one_output(case: Case) -> Iterator[Case]:
    outputs = [output.name for output in onnx.load_from_string(case.model).graph.output]
    if len(outputs) > 1:
        for name in outputs:
            yield from _rebuilt(case, outputs=[name])
        for name in outputs:
            yield from _rebuilt(case, outputs=[other for other in outputs if other != name])


def _earlier_output(case: Case) -> Iterator[Case]:
    graph = onnx.load_from_string(case.model).graph
    if len(graph.output) == 1:
        for node in graph.node:
            for name in node.output:
                if name != graph.output[0].name:
                    yield from _rebuilt(case, outputs=[name])


def _later_inputs(case: Case) -> Iterator[Case]:
    """Later tensors become inputs of the network."""
    graph = onnx.load_from_string(case.model).graph
    outputs = {output.name for output in graph.output}
    for node in reversed(graph.node):
        names = [name for name in node.output if name and name not in outputs]
        if names:
            yield from _rebuilt(case, cut=names)


def _bypassed(case: Case) -> Iterator[Case]:
    """A node's result is replaced by one of its operands."""
    graph = onnx.load_from_string(case.model).graph
    outputs = {output.name for output in graph.output}
    for index, node in enumerate(graph.node):
        for operand in reads(node):
            if node.output[0] not in outputs:
                yield from _rebuilt(case, bypass=(index, operand))


def _plainer_nodes(case: Case) -> Iterator[Case]:
    """Nodes without one of their attributes."""
    graph = onnx.load_from_string(case.model).graph
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type != onnx.AttributeProto.GRAPH:
                yield from _rebuilt(case, drop=(index, attribute.name))


def _smaller_shapes(case: Case) -> Iterator[Case]:
    """Inputs with one axis cut to one element or half."""
    for name, array in next(iter(case.feeds.values())).items():
        for axis, size in enumerate(array.shape):
            for smaller in sorted({1, size // 2, size - 1}):
                if 0 < smaller < size:
                    cut = tuple(slice(smaller) if i == axis else slice(None) for i in range(array.ndim))
                    feeds = {
                        kind: {
                            key: np.ascontiguousarray(value[cut]) if key == name else value
                            for key, value in feed.items()
                        }
                        for kind, feed in case.feeds.items()
                    }
                    yield from _rebuilt(replace(case, feeds=feeds))


def _rebuilt(
    case: Case,
    *,
    outputs: Sequence[str] | None = None,
    cut: Sequence[str] = (),
    bypass: tuple[int, str] | None = None,
    drop: tuple[int, str] | None = None,
) -> Iterator[Case]:
    """The changed case, if ONNX Runtime runs it."""
    model, reference = onnx.load_from_string(case.model), onnx.load_from_string(case.reference)
    nodes = list(model.graph.node)
    if drop is not None:
        kept = [attribute for attribute in nodes[drop[0]].attribute if attribute.name != drop[1]]
        del nodes[drop[0]].attribute[:]
        nodes[drop[0]].attribute.extend(kept)
    wanted = list(outputs) if outputs is not None else [output.name for output in model.graph.output]
    if bypass is not None:
        nodes = _without(nodes, *bypass)
    nodes = _needed([node for node in nodes if node.output[0] not in cut], wanted)
    try:
        feeds = {kind: _feed_of(reference, feed, cut) for kind, feed in case.feeds.items()}
        yield _case_of(case, nodes, wanted, feeds, model, reference)
    except RejectedNodeError:
        return


def _without(nodes: list[NodeProto], index: int, operand: str) -> list[NodeProto]:
    gone = nodes[index].output[0]
    changed = []
    for node in nodes[:index] + nodes[index + 1 :]:
        copy = NodeProto.FromString(node.SerializeToString())
        for position, name in enumerate(copy.input):
            if name == gone:
                copy.input[position] = operand
        changed.append(copy)
    return changed


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(reads(node))
    return kept[::-1]


def _feed_of(reference: onnx.ModelProto, feed: dict[str, Array], cut: Sequence[str]) -> dict[str, Array]:
    if not cut:
        return feed
    values = RoundingModel(reference).evaluate(feed, None).values
    return {**feed, **{name: values[name] for name in cut if name in values}}


def _case_of(
    case: Case,
    nodes: list[NodeProto],
    outputs: list[str],
    feeds: dict[str, dict[str, Array]],
    model: onnx.ModelProto,
    reference: onnx.ModelProto,
) -> Case:
    """A case of these nodes; custom ones are replaced in the reference by what they were there."""
    twins = _twins(nodes, model, reference)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    read = {name for node in [*nodes, *twins] for name in reads(node)} | set(outputs)
    tensors = {tensor.name: tensor for tensor in [*model.graph.initializer, *reference.graph.initializer]}
    tensors = {name: tensor for name, tensor in tensors.items() if name in read}
    feeds = {kind: {name: value for name, value in feed.items() if name in read} for kind, feed in feeds.items()}
    feed = next(iter(feeds.values()))
    if not feed:
        raise RejectedNodeError("no input left")
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    loose = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(twins, "conformance", inputs, loose, list(tensors.values()))
    try:
        session = make_session(make_model(graph, opset).SerializeToString(), optimise=False)
        results = [np.asarray(value) for value in session.run(outputs, feed)]
    except Exception as error:
        raise RejectedNodeError(str(error)) from error
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(outputs, results, strict=True)
    ]
    domains = sorted({node.domain for node in nodes} - {""})
    graphs = [
        helper.make_graph(
            list(part), "conformance", inputs, infos,
            [tensor for name, tensor in tensors.items() if name in _read_by(part, outputs)],
        )
        for part in (nodes, twins)
    ]  # fmt: skip
    changed = replace(case, feeds=feeds)
    return changed.with_models(make_model(graphs[0], opset, domains), make_model(graphs[1], opset))


def _read_by(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> set[str]:
    return {name for node in nodes for name in reads(node)} | set(outputs)


def _twins(nodes: Sequence[NodeProto], model: onnx.ModelProto, reference: onnx.ModelProto) -> list[NodeProto]:
    """``nodes`` with the reference's standard nodes in place of those of other domains."""
    shared = {name for node in model.graph.node if not node.domain for name in node.output}
    makers = {name: node for node in reference.graph.node for name in node.output if name not in shared}
    twins: list[NodeProto] = []
    for node in nodes:
        if node.domain:
            hidden: list[NodeProto] = []
            pending = [node.output[0]]
            while pending:
                maker = makers.get(pending.pop())
                if maker is not None and maker not in hidden and maker not in twins:
                    hidden.append(maker)
                    pending += [name for name in reads(maker) if name not in node.input]
            order = [entry for entry in reference.graph.node if entry in hidden]
            twins += order
        else:
            twins.append(node)
    return twins
