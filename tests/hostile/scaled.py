"""Graphs of any size, each of a shape that some analysis could find hard: chains, fans, diamonds, borders of thousands.

All are valid ONNX of operators that are compiled; what may be refused is their size. ``SCALED`` lists them by name;
nothing of it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Graph = Callable[[int], onnx.ModelProto]

WIDTH = 13
"""Of meshes and nests: wide enough that the paths of a few levels cannot be counted out."""


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    """A node without a name; ``helper.make_node`` only where it has attributes, because it takes long."""
    if attributes:
        return helper.make_node(operator, list(inputs), [output], **attributes)
    return NodeProto(op_type=operator, input=inputs, output=[output])


def tensor(name: str, shape: Sequence[int | str] = (1, 4), kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """An input or an output."""
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Mapping[str, object] | None = None,
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of the standard operator set."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "hostile", list(inputs), list(outputs), initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(size: int) -> onnx.ModelProto:
    """One operator behind the other. They differ, so that nothing merges them."""
    operators = ("Relu", "Neg", "Abs")
    nodes = [node(operators[i % 3], [f"t{i}"], f"t{i + 1}") for i in range(size)]
    return model(nodes, [tensor("t0")], [tensor(f"t{size}")])


def sign_chain(size: int) -> onnx.ModelProto:
    """Signs, one behind the other, with a binary layer at the end that asks where its values come from."""
    nodes = [node(("Sign", "Neg")[i % 2], [f"t{i}"], f"t{i + 1}") for i in range(size)]
    nodes.append(node("MatMul", [f"t{size}", "w"], "y"))
    return model(nodes, [tensor("t0")], [tensor("y")], {"w": np.ones((4, 4), np.float32)})


def layers(size: int) -> onnx.ModelProto:
    """Binary layers, one behind the other: a sign and a matrix product each."""
    nodes: list[NodeProto] = []
    for i in range(size // 2):
        nodes += [node("Sign", [f"t{i}"], f"s{i}"), node("MatMul", [f"s{i}", f"w{i}"], f"t{i + 1}")]
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.choice([-1, 1], (8, 8)).astype(np.float32) for i in range(size // 2)}
    return model(nodes, [tensor("t0", (1, 8))], [tensor(f"t{size // 2}", (1, 8))], weights)


def added_up(names: list[str], prefix: str, result: str) -> list[NodeProto]:
    """A balanced tree of additions."""
    nodes: list[NodeProto] = []
    while len(names) > 1:
        level = []
        for i in range(0, len(names) - 1, 2):
            level.append(result if len(names) == 2 else f"{prefix}{len(nodes)}")
            nodes.append(node("Add", names[i : i + 2], level[-1]))
        names = level + names[len(level) * 2 :]
    return nodes


def fan(size: int) -> onnx.ModelProto:
    """One tensor that half of the nodes read; the others add their results up."""
    operators = ("Relu", "Neg", "Abs", "Sign")
    leaves = [f"r{i}" for i in range(max(size // 2, 2))]
    nodes = [node(operators[i % 4], ["x"], name) for i, name in enumerate(leaves)]
    return model([*nodes, *added_up(leaves, "a", "y")], [tensor("x")], [tensor("y")])


def diamonds(size: int) -> onnx.ModelProto:
    """Three nodes each, two of them side by side: 2^(size / 3) paths."""
    nodes = []
    for i in range(size // 3):
        nodes += [
            node("Relu", [f"t{i}"], f"l{i}"),
            node("Neg", [f"t{i}"], f"r{i}"),
            node("Add", [f"l{i}", f"r{i}"], f"t{i + 1}"),
        ]
    return model(nodes, [tensor("t0")], [tensor(f"t{size // 3}")])


def sign_diamonds(size: int) -> onnx.ModelProto:
    """Diamonds of signs and thresholds: what a value set, a residue or a monotone chain follows."""
    nodes = [node("Sign", ["x"], "t0")]
    for i in range(size // 3):
        nodes += [
            node("Neg", [f"t{i}"], f"l{i}"),
            node("Mul", [f"t{i}", "half"], f"r{i}"),
            node("Add", [f"l{i}", f"r{i}"], f"t{i + 1}"),
        ]
    nodes.append(node("MatMul", [f"t{size // 3}", "w"], "y"))
    constants = {"w": np.ones((4, 4), np.float32), "half": np.float32(2.0)}
    return model(nodes, [tensor("x")], [tensor("y")], constants)


def clip_diamonds(size: int) -> onnx.ModelProto:
    """Diamonds of bounded operators of an input, compared at the end."""
    nodes = [node("Clip", ["x", "low", "high"], "t0")]
    for i in range(size // 3):
        nodes += [
            node("Clip", [f"t{i}", "low", "high"], f"l{i}"),
            node("Mul", [f"t{i}", "half"], f"r{i}"),
            node("Add", [f"l{i}", f"r{i}"], f"t{i + 1}"),
        ]
    nodes += [node("Sign", [f"t{size // 3}"], "s"), node("MatMul", ["s", "w"], "y")]
    constants = {
        "w": np.ones((4, 4), np.float32),
        "half": np.float32(0.5),
        "low": np.float32(-1),
        "high": np.float32(1),
    }
    return model(nodes, [tensor("x")], [tensor("y")], constants)


def mesh(size: int) -> onnx.ModelProto:
    """Levels of ``WIDTH`` nodes, each of which reads all of the level before: ``WIDTH`` ^ levels paths."""
    level = [f"in{i}" for i in range(WIDTH)]
    nodes = [node(("Relu", "Neg", "Abs", "Sign")[i % 4], ["x"], name) for i, name in enumerate(level)]
    for depth in range(max(size // WIDTH - 1, 1)):
        nodes += [node(("Sum", "Max")[i % 2], level, f"m{depth}_{i}") for i in range(WIDTH)]
        level = [f"m{depth}_{i}" for i in range(WIDTH)]
    return model([*nodes, node("Sum", level, "y")], [tensor("x")], [tensor("y")])


def nest(size: int) -> onnx.ModelProto:
    """Sums of ``WIDTH`` times the sum before."""
    nodes = [node("Mean", [f"t{i}"] * WIDTH, f"t{i + 1}") for i in range(size)]
    return model(nodes, [tensor("t0")], [tensor(f"t{size}")])


def sum_of_signs(size: int) -> onnx.ModelProto:
    """A binary layer of the sum of the signs of different tensors: 3^size combinations."""
    nodes = [node("Sign", [f"x{i}"], f"s{i}") for i in range(size)]
    nodes += [node("Sum", [f"s{i}" for i in range(size)], "a"), node("MatMul", ["a", "w"], "y")]
    return model(nodes, [tensor(f"x{i}") for i in range(size)], [tensor("y")], {"w": np.ones((4, 4), np.float32)})


def many_inputs(size: int) -> onnx.ModelProto:
    """That many inputs, added up."""
    names = [f"x{i}" for i in range(size)]
    return model(added_up(names, "a", "y"), [tensor(name) for name in names], [tensor("y")])


def unused_inputs(size: int) -> onnx.ModelProto:
    """That many inputs, of which one is read."""
    return model([node("Relu", ["x0"], "y")], [tensor(f"x{i}") for i in range(size)], [tensor("y")])


def many_outputs(size: int) -> onnx.ModelProto:
    """That many results of one input."""
    nodes = [node(("Relu", "Neg", "Abs")[i % 3], ["x"], f"y{i}") for i in range(size)]
    return model(nodes, [tensor("x")], [tensor(f"y{i}") for i in range(size)])


def listed_outputs(size: int) -> onnx.ModelProto:
    """That many outputs that one ``Split`` gives."""
    names = [f"y{i}" for i in range(size)]
    split = NodeProto(op_type="Split", input=["x"], output=names, attribute=[helper.make_attribute("axis", 1)])
    return model([split], [tensor("x", (1, size))], [tensor(name, (1, 1)) for name in names])


def constants(size: int) -> onnx.ModelProto:
    """That many initialisers, added up: all is constant but the last addition."""
    arrays: dict[str, object] = {f"c{i}": np.full((1, 4), i, np.float32) for i in range(size)}
    nodes = [*added_up(list(arrays), "a", "c"), node("Add", ["x", "c"], "y")]
    return model(nodes, [tensor("x")], [tensor("y")], arrays)


def unused_constants(size: int) -> onnx.ModelProto:
    """That many initialisers that nothing reads."""
    arrays: dict[str, object] = {f"c{i}": np.full((1, 4), i, np.float32) for i in range(size)}
    return model([node("Relu", ["x"], "y")], [tensor("x")], [tensor("y")], arrays)


def constant_nodes(size: int) -> onnx.ModelProto:
    """That many ``Constant`` nodes, each added to the data."""
    nodes = []
    for i in range(size // 2):
        value = numpy_helper.from_array(np.full((1, 4), i % 7 - 3, np.float32))
        nodes += [node("Constant", [], f"c{i}", value=value), node("Add", [f"t{i}", f"c{i}"], f"t{i + 1}")]
    return model(nodes, [tensor("t0")], [tensor(f"t{size // 2}")])


def shapes(size: int) -> onnx.ModelProto:
    """Reshapes by computed shapes, each of which waits for the one before to be known."""
    nodes = []
    for i in range(size // 3):
        nodes += [
            node("Shape", [f"t{i}"], f"n{i}"),
            node("Concat", [f"n{i}", "one"], f"m{i}", axis=0) if i == 0 else node("Identity", [f"n{i}"], f"m{i}"),
            node("Reshape", [f"t{i}", f"m{i}"], f"t{i + 1}"),
        ]
    return model(nodes, [tensor("t0")], [tensor(f"t{size // 3}", (1, 4, 1))], {"one": np.ones(1, np.int64)})


def _of_one_tensor(operator: str, shape: Sequence[int], **attributes: Any) -> Graph:
    def build(size: int) -> onnx.ModelProto:
        result = [1, 4 * size] if operator == "Concat" else shape
        return model([node(operator, ["x"] * size, "y", **attributes)], [tensor("x")], [tensor("y", result)])

    build.__doc__ = f"One ``{operator}`` that reads one tensor that many times."
    return build


def wide_concat_of_parts(size: int) -> onnx.ModelProto:
    """A ``Split`` into that many parts, and a ``Concat`` of them."""
    parts = [f"p{i}" for i in range(size)]
    split = NodeProto(op_type="Split", input=["x"], output=parts, attribute=[helper.make_attribute("axis", 1)])
    joined = node("Concat", parts[::-1], "y", axis=1)
    return model([split, joined], [tensor("x", (1, size))], [tensor("y", (1, size))])


def casts(size: int) -> onnx.ModelProto:
    """Codes through casts to integers and back, again and again."""
    nodes = []
    for i in range(size // 4):
        nodes += [
            node("Clip", [f"t{i}", "low", "high"], f"c{i}"),
            node("Round", [f"c{i}"], f"r{i}"),
            node("Cast", [f"r{i}"], f"i{i}", to=TensorProto.INT8),
            node("Cast", [f"i{i}"], f"t{i + 1}", to=TensorProto.FLOAT),
        ]
    limits = {"low": np.float32(-3), "high": np.float32(3)}
    return model(nodes, [tensor("t0")], [tensor(f"t{size // 4}")], limits)


def halves(size: int) -> onnx.ModelProto:
    """That many inputs in half precision."""
    names = [f"x{i}" for i in range(size)]
    half = TensorProto.FLOAT16
    return model(added_up(names, "a", "y"), [tensor(n, (1, 4), half) for n in names], [tensor("y", (1, 4), half)])


def transposes(size: int) -> onnx.ModelProto:
    """Transposes around element-wise operators, for the planning of layouts to choose from."""
    nodes = []
    for i in range(size // 2):
        perm = [(0, 2, 3, 1), (0, 3, 1, 2)][i % 2]
        nodes += [node("Transpose", [f"t{i}"], f"p{i}", perm=perm), node("Relu", [f"p{i}"], f"t{i + 1}")]
    last = (1, 2, 3, 4) if size // 2 % 2 == 0 else (1, 3, 4, 2)
    return model(nodes, [tensor("t0", (1, 2, 3, 4))], [tensor(f"t{size // 2}", last)])


def backwards(size: int) -> onnx.ModelProto:
    """A chain whose nodes are listed from the last to the first."""
    built = chain(size)
    nodes = list(built.graph.node)[::-1]
    del built.graph.node[:]
    built.graph.node.extend(nodes)
    return built


def symbols(size: int) -> onnx.ModelProto:
    """That many inputs, each with an open batch dimension of its own."""
    names = [f"x{i}" for i in range(size)]
    inputs = [tensor(name, (f"N{i}", 4)) for i, name in enumerate(names)]
    return model(added_up(names, "a", "y"), inputs, [tensor("y", ("N", 4))])


SCALED: Mapping[str, Graph] = {
    "chain": chain,
    "sign chain": sign_chain,
    "layers": layers,
    "fan": fan,
    "diamonds": diamonds,
    "sign diamonds": sign_diamonds,
    "clip diamonds": clip_diamonds,
    "mesh": mesh,
    "nest": nest,
    "sum of signs": sum_of_signs,
    "inputs": many_inputs,
    "unused inputs": unused_inputs,
    "outputs": many_outputs,
    "outputs of a split": listed_outputs,
    "constants": constants,
    "unused constants": unused_constants,
    "constant nodes": constant_nodes,
    "shapes": shapes,
    "concat": _of_one_tensor("Concat", (1, 4), axis=1),
    "concat of parts": wide_concat_of_parts,
    "sum": _of_one_tensor("Sum", (1, 4)),
    "max": _of_one_tensor("Max", (1, 4)),
    "casts": casts,
    "half inputs": halves,
    "transposes": transposes,
    "backwards": backwards,
    "symbols": symbols,
}
"""By name; the argument is about the number of nodes, inputs, outputs, initialisers or operands."""
