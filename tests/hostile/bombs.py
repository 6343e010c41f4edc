"""Small files that ask for much, and files that contradict themselves.

``BOMBS`` lists them by name as functions that give the bytes of a file; nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from .scaled import WIDTH, chain, model, node, tensor

HUGE = 50_000_000
"""Characters of a huge name."""


def _bytes(built: onnx.ModelProto) -> bytes:
    return bytes(built.SerializeToString())


def _shaped(operator: str, shape: list[int], *more: object, opset: int = 17, **attributes: Any) -> bytes:
    """A result of a huge shape that a constant asks for, added to the input. ``more`` are further constants."""
    constants: dict[str, object] = {"shape": np.asarray(shape, np.int64)}
    constants |= {f"c{i}": array for i, array in enumerate(more)}
    names = ["shape"] if operator == "ConstantOfShape" else ["x", "shape"]
    nodes = [node(operator, [*names, *(f"c{i}" for i in range(len(more)))], "big", **attributes)]
    nodes += [node("ReduceMax", ["big"], "m", keepdims=0), node("Add", ["x", "m"], "y")]
    return _bytes(model(nodes, [tensor("x")], [tensor("y")], constants, opset=opset))


def _constant_expand(shape: list[int]) -> bytes:
    """The same of constants alone, so that folding meets it."""
    constants = {"shape": np.asarray(shape, np.int64), "one": np.ones(1, np.float32)}
    nodes = [
        node("Expand", ["one", "shape"], "big"),
        node("ReduceMax", ["big"], "m", keepdims=0),
        node("Add", ["x", "m"], "y"),
    ]
    return _bytes(model(nodes, [tensor("x")], [tensor("y")], constants))


def _doubling(count: int) -> bytes:
    """A constant concatenated with itself, again and again."""
    nodes = [node("Concat", [f"c{i}", f"c{i}"], f"c{i + 1}", axis=0) for i in range(count)]
    nodes += [node("ReduceMax", [f"c{count}"], "m", keepdims=0), node("Add", ["x", "m"], "y")]
    return _bytes(model(nodes, [tensor("x")], [tensor("y")], {"c0": np.ones(1024, np.float32)}))


def _kept_alive(count: int) -> bytes:
    """Constants of 400 MB each, all of which are needed at the end."""
    constants: dict[str, object] = {"shape": np.asarray([100_000_000], np.int64)}
    nodes = [node("ConstantOfShape", ["shape"], f"c{i}") for i in range(count)]
    nodes += [node("Sum", [f"c{i}" for i in range(count)], "s"), node("ReduceMax", ["s"], "m", keepdims=0)]
    return _bytes(model([*nodes, node("Add", ["x", "m"], "y")], [tensor("x")], [tensor("y")], constants))


def _range(limit: int) -> bytes:
    constants = {"start": np.int64(0), "limit": np.int64(limit), "step": np.int64(1)}
    nodes = [
        node("Range", ["start", "limit", "step"], "r"),
        node("Cast", ["r"], "f", to=TensorProto.FLOAT),
        node("ReduceMax", ["f"], "m", keepdims=0),
        node("Add", ["x", "m"], "y"),
    ]
    return _bytes(model(nodes, [tensor("x")], [tensor("y")], constants))


def _resize(scale: float) -> bytes:
    constants = {"scales": np.asarray([1, 1, scale, scale], np.float32)}
    nodes = [node("Resize", ["x", "", "scales"], "big"), node("ReduceMax", ["big"], "y", keepdims=1)]
    return _bytes(model(nodes, [tensor("x", (1, 1, 4, 4))], [tensor("y", (1, 1, 1, 1))], constants))


def _one_hot(depth: int) -> bytes:
    constants = {"depth": np.int64(depth), "values": np.asarray([0, 1], np.float32)}
    nodes = [node("OneHot", ["x", "depth", "values"], "big"), node("ReduceMax", ["big"], "y", keepdims=1)]
    return _bytes(model(nodes, [tensor("x", (1, 4), TensorProto.INT64)], [tensor("y", (1, 1, 1))], constants))


def _eye_like(size: int) -> bytes:
    constants = {"shape": np.asarray([size, size], np.int64)}
    nodes = [
        node("ConstantOfShape", ["shape"], "zeros"),
        node("EyeLike", ["zeros"], "big"),
        node("ReduceMax", ["big"], "m", keepdims=0),
        node("Add", ["x", "m"], "y"),
    ]
    return _bytes(model(nodes, [tensor("x")], [tensor("y")], constants))


def _sparse(size: int) -> bytes:
    built = model([node("MatMul", ["x", "w"], "y")], [tensor("x")], [tensor("y", (1, size))])
    sparse = built.graph.sparse_initializer.add(dims=[4, size])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "w_indices"))
    return _bytes(built)


def _window(kernel: int) -> bytes:
    """A pool whose pads are larger than any image."""
    pool = node("MaxPool", ["x"], "y", kernel_shape=[kernel, kernel], pads=[kernel - 1] * 4)
    return _bytes(model([pool], [tensor("x", (1, 1, 4, 4))], [tensor("y", (1, 1, kernel + 3, kernel + 3))]))


def _loop(trips: int, depth: int = 1) -> bytes:
    """Loops in loops."""
    truth = TensorProto.BOOL
    body: list[NodeProto] = [node("Neg", ["v0"], "r0")]
    for level in range(depth):
        graph = helper.make_graph(
            [*body, node("Identity", [f"go{level}"], f"on{level}")],
            f"body{level}",
            [tensor(f"i{level}", (), TensorProto.INT64), tensor(f"go{level}", (), truth), tensor(f"v{level}")],
            [tensor(f"on{level}", (), truth), tensor(f"r{level}")],
        )
        outer = f"v{level + 1}" if level + 1 < depth else "x"
        result = f"r{level + 1}" if level + 1 < depth else "y"
        body = [helper.make_node("Loop", ["trips", "true", outer], [result], body=graph)]
    constants = {"trips": np.int64(trips), "true": np.asarray(True)}
    return _bytes(model(body, [tensor("x")], [tensor("y")], constants))


def _branches(depth: int, *, both: bool) -> bytes:
    """An ``If`` in one branch of an ``If``, or in both."""
    count = 0

    def branch(level: int) -> onnx.GraphProto:
        nonlocal count
        count += 1
        result = f"b{count}"
        if level == 0:
            nodes = [node(("Neg", "Abs")[count % 2], ["x"], result)]
        else:
            then = branch(level - 1)
            other = branch(level - 1 if both else 0)
            nodes = [helper.make_node("If", ["c"], [result], then_branch=then, else_branch=other)]
        return helper.make_graph(nodes, f"g{result}", [], [tensor(result)])

    top = branch(depth)
    nodes = list(top.node)
    nodes.append(node("Relu", [top.output[0].name], "y"))
    return _bytes(model(nodes, [tensor("x"), tensor("c", (), TensorProto.BOOL)], [tensor("y")]))


def _calls(depth: int, *, width: int = 2, circle: bool = False) -> bytes:
    """Functions that call the next one ``width`` times each."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions: list[FunctionProto] = []
    for level in range(depth):
        last = level == depth - 1
        called = f"f{level + 1}" if not last else "f0"
        nodes = [node("Neg", ["a0"], "a1")]
        if not last or circle:
            nodes = [
                NodeProto(op_type=called, domain="own", input=[f"a{i}"], output=[f"a{i + 1}"]) for i in range(width)
            ]
        functions.append(helper.make_function("own", f"f{level}", ["a0"], [f"a{len(nodes)}"], nodes, opsets))
    built = model([NodeProto(op_type="f0", domain="own", input=["x"], output=["y"])], [tensor("x")], [tensor("y")])
    built.opset_import.append(opsets[1])
    built.functions.extend(functions)
    return _bytes(built)


def _opset(*versions: int, domain: str = "") -> bytes:
    built = chain(3)
    del built.opset_import[:]
    built.opset_import.extend(onnx.OperatorSetIdProto(domain=domain, version=version) for version in versions)
    return _bytes(built)


def _changed(change: Callable[[onnx.ModelProto], object]) -> bytes:
    """A chain of three nodes after ``change``."""
    built = chain(3)
    change(built)
    return _bytes(built)


def _rename_tensor(built: onnx.ModelProto, name: str) -> None:
    built.graph.node[0].output[0] = built.graph.node[1].input[0] = name


def _rename_input(built: onnx.ModelProto, name: str) -> None:
    built.graph.input[0].name = built.graph.node[0].input[0] = name


def _attribute(kind: AttributeProto.AttributeType, **fields: Any) -> bytes:
    """A ``Concat`` whose axis is declared as one type and given as another."""
    attribute = AttributeProto(name="axis", type=kind, **fields)
    joined = NodeProto(op_type="Concat", input=["x", "x"], output=["y"], attribute=[attribute])
    return _bytes(model([joined], [tensor("x")], [tensor("y", (1, 8))]))


def _dimensions(*shape: int) -> bytes:
    return _bytes(model([node("Relu", ["x"], "y")], [tensor("x", shape)], [tensor("y", shape)]))


def _initializer(shape: list[int], kind: int = TensorProto.FLOAT) -> bytes:
    """A constant that says more of itself than it holds."""
    built = model([node("Add", ["x", "w"], "y")], [tensor("x")], [tensor("y")])
    built.graph.initializer.append(TensorProto(name="w", dims=shape, data_type=kind, raw_data=b"\0" * 16))
    return _bytes(built)


def _field(number: int, payload: bytes) -> bytes:
    """A field of a protobuf message, in its wire form."""

    def varint(value: int) -> bytes:
        digits = bytearray()
        while value > 127:
            digits.append(value & 127 | 128)
            value >>= 7
        return bytes([*digits, value])

    return varint(number << 3 | 2) + varint(len(payload)) + payload


def _deep_message(depth: int) -> bytes:
    """Graphs in attributes of nodes in graphs: messages in messages."""
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(5, _field(6, graph)))
    return b"\x08\x08" + _field(7, graph)


def _wide_attributes(count: int) -> bytes:
    """Attributes nobody asked for."""
    built = chain(3)
    built.graph.node[0].attribute.extend(
        AttributeProto(name=f"a{i}", type=AttributeProto.INT, i=i) for i in range(count)
    )
    return _bytes(built)


def _metadata(count: int) -> bytes:
    built = chain(3)
    for i in range(count):
        built.metadata_props.add(key=f"k{i}", value="v" * 20)
    return _bytes(built)


BOMBS: Mapping[str, Callable[[], bytes]] = {
    "ConstantOfShape 2^33": lambda: _shaped("ConstantOfShape", [2**33]),
    "ConstantOfShape 2^62": lambda: _shaped("ConstantOfShape", [2**31, 2**31]),
    "ConstantOfShape 2^64": lambda: _shaped("ConstantOfShape", [2**32, 2**32]),
    "ConstantOfShape 2^31": lambda: _shaped("ConstantOfShape", [2**31]),
    "ConstantOfShape 2^29": lambda: _shaped("ConstantOfShape", [2**29]),
    "ConstantOfShape -1": lambda: _shaped("ConstantOfShape", [-1]),
    "ConstantOfShape rank 10^5": lambda: _shaped("ConstantOfShape", [1] * 100_000),
    "Expand 2^33": lambda: _shaped("Expand", [2**31, 4]),
    "Expand 2^29": lambda: _shaped("Expand", [2**27, 4]),
    "Expand of a constant 2^31": lambda: _constant_expand([2**31]),
    "Expand of a constant 2^27": lambda: _constant_expand([2**27]),
    "Tile 2^33": lambda: _shaped("Tile", [2**31, 1]),
    "Tile 2^62": lambda: _shaped("Tile", [2**30, 2**30]),
    "Reshape 2^62": lambda: _shaped("Reshape", [2**31, 2**31]),
    "Pad 2^33": lambda: _shaped("Pad", [0, 0, 2**31, 0]),
    "Pad 2^62": lambda: _shaped("Pad", [2**30, 0, 2**30, 2**30]),
    "Pad -2^62": lambda: _shaped("Pad", [-(2**62), 0, 0, -(2**62)]),
    "Range 2^40": lambda: _range(2**40),
    "Range 2^30": lambda: _range(2**30),
    "Range 2^27": lambda: _range(2**27),
    "Resize 10^5": lambda: _resize(1e5),
    "Resize 10^30": lambda: _resize(1e30),
    "Resize NaN": lambda: _resize(float("nan")),
    "OneHot 2^40": lambda: _one_hot(2**40),
    "OneHot 2^28": lambda: _one_hot(2**28),
    "EyeLike 2^17": lambda: _eye_like(2**17),
    "EyeLike 2^13": lambda: _eye_like(2**13),
    "sparse 2^40": lambda: _sparse(2**40),
    "sparse 2^26": lambda: _sparse(2**26),
    "pool 2^15": lambda: _window(2**15),
    "pool 2^31": lambda: _window(2**31),
    "doubling 40": lambda: _doubling(40),
    "constants kept alive": lambda: _kept_alive(40),
    "Loop 2^62": lambda: _loop(2**62),
    "Loop 9000": lambda: _loop(3000),
    "Loop 100 in 12": lambda: _loop(100, 12),
    "Loop 2 in 13": lambda: _loop(2, 13),
    "If in one branch, 15": lambda: _branches(15, both=False),
    "If in one branch, 30": lambda: _branches(30, both=False),
    f"If in both branches, {WIDTH}": lambda: _branches(WIDTH, both=True),
    "functions 2^60": lambda: _calls(60),
    "functions 2^13": lambda: _calls(14),
    "functions in a circle": lambda: _calls(5, circle=True),
    "functions, 200 deep": lambda: _calls(200, width=1),
    "functions, 5000 deep": lambda: _calls(5000, width=1),
    "functions, 10^5 calls": lambda: _calls(2, width=100_000),
    "opset 999": lambda: _opset(999),
    "opset -1": lambda: _opset(-1),
    "opset 0": lambda: _opset(0),
    "opset missing": _opset,
    "opset twice": lambda: _opset(17, 17),
    "opset 17 and 18": lambda: _opset(17, 18),
    "opset 2^62": lambda: _opset(2**62),
    "opset -2^63": lambda: _opset(-(2**63)),
    "opset of another domain": lambda: _opset(17, domain="other"),
    "opsets 10^5": lambda: _opset(*range(100_000)),
    "IR version -1": lambda: _changed(lambda m: setattr(m, "ir_version", -1)),
    "IR version 2^62": lambda: _changed(lambda m: setattr(m, "ir_version", 2**62)),
    "huge operator": lambda: _changed(lambda m: setattr(m.graph.node[1], "op_type", "O" * HUGE)),
    "huge domain": lambda: _changed(lambda m: setattr(m.graph.node[1], "domain", "d" * HUGE)),
    "huge node": lambda: _changed(lambda m: setattr(m.graph.node[1], "name", "n" * HUGE)),
    "huge tensor": lambda: _changed(lambda m: _rename_tensor(m, "t" * HUGE)),
    "huge input": lambda: _changed(lambda m: _rename_input(m, "i" * HUGE)),
    "huge input of line breaks": lambda: _changed(lambda m: _rename_input(m, "\n" * HUGE)),
    "huge missing tensor": lambda: _changed(lambda m: m.graph.node[1].input.__setitem__(0, "m" * HUGE)),
    "huge graph": lambda: _changed(lambda m: setattr(m.graph, "name", "g" * HUGE)),
    "huge text": lambda: _changed(lambda m: setattr(m, "doc_string", "d" * HUGE)),
    "huge attribute": lambda: _changed(
        lambda m: m.graph.node[1].attribute.add(name="a", type=AttributeProto.STRING, s=b"s" * HUGE)
    ),
    "huge attribute name": lambda: _changed(lambda m: m.graph.node[1].attribute.add(name="a" * HUGE, type=2, i=1)),
    "dimension 2^62": lambda: _dimensions(2**62),
    "dimensions 2^62": lambda: _dimensions(2**62, 2**62),
    "dimensions 2^16": lambda: _dimensions(2**16, 2**16),
    "dimension -2^63": lambda: _dimensions(-(2**63)),
    "dimension 0": lambda: _dimensions(0),
    "rank 10^5": lambda: _dimensions(*([1] * 100_000)),
    "constant of 2^62": lambda: _initializer([2**62]),
    "constant of -2": lambda: _initializer([-2, -2]),
    "constant of rank 10^5": lambda: _initializer([1] * 100_000),
    "constant of type 10^6": lambda: _initializer([4], 10**6),
    "constant of text": lambda: _initializer([4], TensorProto.STRING),
    "cycle": lambda: _changed(lambda m: m.graph.node[0].input.__setitem__(0, "t3")),
    "own result": lambda: _changed(lambda m: m.graph.node[0].input.__setitem__(0, "t1")),
    "written twice": lambda: _changed(lambda m: m.graph.node[1].output.__setitem__(0, "t1")),
    "input twice": lambda: _changed(lambda m: m.graph.input.add().CopyFrom(m.graph.input[0])),
    "output twice": lambda: _changed(lambda m: m.graph.output.add().CopyFrom(m.graph.output[0])),
    "attribute as text": lambda: _attribute(AttributeProto.STRING, s=b"1"),
    "attribute as float": lambda: _attribute(AttributeProto.FLOAT, f=1.0),
    "attribute as list": lambda: _attribute(AttributeProto.INTS, ints=[1]),
    "attribute as tensor": lambda: _attribute(AttributeProto.TENSOR, t=TensorProto(dims=[1], data_type=1)),
    "attribute of no type": lambda: _attribute(AttributeProto.UNDEFINED, i=1),
    "attribute 2^62": lambda: _attribute(AttributeProto.INT, i=2**62),
    "attribute declared otherwise": lambda: _attribute(AttributeProto.INT, s=b"1"),
    "attributes 10^5": lambda: _wide_attributes(100_000),
    "metadata 10^5": lambda: _metadata(100_000),
    "messages 30 deep": lambda: _deep_message(30),
    "messages 10^4 deep": lambda: _deep_message(10_000),
    "no bytes": lambda: b"",
    "no message": lambda: b"\xff" * 1000,
    "no graph": lambda: b"\x08\x08",
}
"""By name."""
