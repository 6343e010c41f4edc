"""ONNX Runtime's own time per node, with all its graph optimisations, by its own profiler.

The optimisations fuse, rename and add nodes; without them ONNX Runtime is slower than any user would run it. So the
network is profiled as it is fastest, and each node that ran is led back to a node of the model:

1. Its name without what the optimisations append is the name of a node, or of a tensor: then the tensor's producer.
2. A fused node is named after its last part. If it is a convolution or a matrix product and that part is none, it
   belongs to the nearest producer before it that is one and has no other.
3. What is left has no counterpart: conversions of layout (ReorderInput, ReorderOutput) above all.

The profiler counts whole microseconds, so times are means, over the faster half of the runs.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto

from bnn_compiler.bench import time_in_turn
from bnn_compiler.scratch_folder import scratch_folder
from bnn_compiler.verification.reference import Array, Reference

RUNS = 20
WARM_UP = 3
_EVENT = "_kernel_time"
_ADDED = re.compile(r"_nchwc$|_token_\d+$|/(?:MatMul|Gemm|Conv)\w*Fusion\w*/?$|^fused |_bn$")
_PRODUCT = re.compile(r"Conv|Gemm|MatMul")


@dataclass(frozen=True)
class NodeTimes:
    """Seconds by the name of the model's node; ``unmatched``: of what has no counterpart in the model, all together.

    ``run`` is the fastest whole run, in a session that does not profile.
    """

    seconds: Mapping[str, float]
    unmatched: float
    run: float


def time_nodes(model: ModelProto, feeds: Mapping[str, Array], threads: int = 1, runs: int = RUNS) -> NodeTimes:
    """Profile ``model`` in ONNX Runtime on ``feeds``.

    Raises:
        ModelError: ONNX Runtime refuses the model.
    """
    with scratch_folder() as directory:
        reference = Reference(model, threads=threads, profile=str(directory / "profile"))
        for _ in range(WARM_UP + runs):
            reference.run(feeds)
        events = json.loads(Path(reference.end_profiling()).read_text(encoding="utf-8"))
    times: dict[str, list[float]] = {}
    operators: dict[str, str] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            name = name.removesuffix(_EVENT)
            operators[name] = str(event["args"].get("op_name", ""))
            times.setdefault(name, []).append(event["dur"] * 1e-6)
    sources = match_nodes(operators, model)
    seconds: dict[str, float] = {}
    unmatched = 0.0
    for name, durations in times.items():
        mean = _mean_of_faster_half(durations, runs)
        source = sources.get(name)
        if source is None:
            unmatched += mean
        else:
            seconds[source] = seconds.get(source, 0.0) + mean
    plain = Reference(model, threads=threads)
    [run_seconds] = time_in_turn([lambda: plain.run(feeds)], runs, round_seconds=0)
    return NodeTimes(seconds, unmatched, min(run_seconds))


def match_nodes(operators: Mapping[str, str], model: ModelProto) -> dict[str, str]:
    """The model's node for each node that ran (``operators``: its operator by its name), where there is one."""
    nodes = {node.name: node for node in model.graph.node}
    producers = {output: node for node in model.graph.node for output in node.output if output}
    found: dict[str, str] = {}
    for name in operators:
        source = _by_name(name, nodes, producers)
        if source is not None:
            found[name] = source
    taken = {name for name in found.values() if _PRODUCT.search(nodes[name].op_type)}
    for name, source in found.items():
        if _PRODUCT.search(operators[name]) and not _PRODUCT.search(nodes[source].op_type):
            product = _nearest_product(nodes[source], producers, taken)
            if product is not None:
                found[name] = product
                taken.add(product)
    return found


def _by_name(name: str, nodes: Mapping[str, NodeProto], producers: Mapping[str, NodeProto]) -> str | None:
    """Rule 1."""
    while True:
        if name in nodes:
            return name
        if name in producers:
            return str(producers[name].name)
        shorter = _ADDED.sub("", name)
        if shorter == name:
            return None
        name = shorter


def _nearest_product(start: NodeProto, producers: Mapping[str, NodeProto], taken: set[str]) -> str | None:
    """Rule 2: breadth first through producers."""
    pending = deque([start])
    seen = {start.name}
    while pending:
        node = pending.popleft()
        if _PRODUCT.search(node.op_type):
            if node.name not in taken:
                return str(node.name)
            continue  # what lies behind another product is not part of this node
        for tensor in node.input:
            producer = producers.get(tensor)
            if producer is not None and producer.name not in seen:
                seen.add(producer.name)
                pending.append(producer)
    return None


def _mean_of_faster_half(durations: Sequence[float], runs: int) -> float:
    measured = sorted(durations[-runs:])
    half = measured[: (len(measured) + 1) // 2]
    return sum(half) / len(half)
