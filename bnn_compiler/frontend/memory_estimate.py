"""Whether a network can fit into this machine's memory, before anything of its size is allocated.

The estimate is a lower bound of what compiling and verifying takes: the constants three times (the model, the Relax
constants, the compiled ones), and the activations that are alive together at the worst moment of the node order.
"""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from bnn_compiler.errors import ModelError
from bnn_compiler.limits import Limits, show_bytes

from .onnx_graph import describe_node, item_size, tensor_bytes, tensor_types

CONSTANT_COPIES = 3


def check_memory(model: onnx.ModelProto, limits: Limits) -> None:
    """Compare the activations with their limit, and all that is needed with what there is.

    Tensors of unknown shape count nothing.

    Raises:
        ModelError: the network needs more; the message names the node with the largest need.
    """
    available = available_bytes()
    needed, place = estimated_bytes(model)
    what = f"needs at least {show_bytes(needed)} of memory, the most at {place}"
    if available is not None and needed > available:
        raise ModelError(f"{what}, but only {show_bytes(available)} are available")
    # Constants that the file holds are its user's own wish.
    limits.require("memory", needed - CONSTANT_COPIES * constant_bytes(model), what)


def estimated_bytes(model: onnx.ModelProto) -> tuple[int, str]:
    """Bytes needed, and the place where the activations need most."""
    most, place = activation_bytes(model)
    return CONSTANT_COPIES * constant_bytes(model) + most, place


def constant_bytes(model: onnx.ModelProto) -> int:
    """What the initialisers take."""
    return sum(math.prod(tensor.dims) * item_size(tensor.data_type) for tensor in model.graph.initializer)


def activation_bytes(model: onnx.ModelProto) -> tuple[int, str]:
    """What activations that are alive together take where that is most, and the place."""
    graph = model.graph
    sizes = {name: tensor_bytes(type_proto) or 0 for name, type_proto in tensor_types(graph).items()}
    last_use: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        last_use.update(dict.fromkeys((name for name in (*node.input, *node.output) if name in sizes), index))
    last_use.update(dict.fromkeys((output.name for output in graph.output), len(graph.node)))
    ends: dict[int, list[str]] = {}
    for name, index in last_use.items():
        ends.setdefault(index, []).append(name)
    alive = sum(sizes[info.name] for info in graph.input if info.name in sizes)
    most, place = alive, None
    for index, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        if alive > most:
            most, place = alive, node
        alive -= sum(sizes.get(name, 0) for name in ends.get(index, []))
    return most, "the graph's inputs" if place is None else describe_node(place)


def available_bytes() -> int | None:
    """Memory that can still be had: the kernel's estimate, or what a container's limit leaves; ``None`` if unknown."""
    found = [value for value in (_meminfo_available(), _cgroup_left()) if value is not None]
    return min(found, default=None)


def _meminfo_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cgroup_left() -> int | None:
    """What is left under the limit of the control group (version 2), if there is one."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        current = (root / "memory.current").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return max(int(limit) - int(current), 0) if limit.isdigit() and current.isdigit() else None
