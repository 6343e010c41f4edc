from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import constant_folding, import_onnx
from bnn_compiler.frontend.constant_folding import FOLDED_PER_STORED, FREE_SHARE
from bnn_compiler.limits import Limits

from .onnx_text import constants, operators, parse, random_feeds, run_onnx


def _folded(text: str, *, opset: int = 17) -> onnx.ModelProto:
    """The normalised model, after a check that it still computes the same."""
    model = parse(text, opset=opset)
    imported = import_onnx(model)
    feeds = random_feeds([(spec.name, spec.shape) for spec in imported.inputs])
    for found, expected in zip(run_onnx(imported.onnx_model, feeds), run_onnx(model, feeds), strict=True):
        np.testing.assert_array_equal(found, expected)
    return imported.onnx_model


def test_a_chain_of_shape_operators_becomes_one_constant() -> None:
    text = """g (float[2,3] x) => (float[2,3] y) <float z = {0.25}> {
        s = Shape(x) ones = ConstantOfShape<value = float[1] {1}>(s) minus = Neg(ones)
        positive = Greater(x, z) y = Where(positive, ones, minus) }"""
    model = _folded(text)
    assert operators(model) == ["Greater", "Where"]
    folded = constants(model)
    np.testing.assert_array_equal(folded["ones"], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(folded["minus"], -np.ones((2, 3), np.float32))


def test_scalars_stay_scalars() -> None:
    text = """g (float[1,4,2] x) => (float[A,B] y) <int64 first = {0}> {
        s = Shape(x) n = Gather(s, first)
        zero = Constant<value = int64[1] {0}>() rest = Constant<value = int64[1] {-1}>()
        u = Unsqueeze(n, zero) shape = Concat<axis = 0>(u, rest) y = Reshape(x, shape) }"""
    model = _folded(text)
    assert operators(model) == ["Reshape"]
    np.testing.assert_array_equal(constants(model)["shape"], [1, -1])
    assert [dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == [1, 8]


def test_shapes_are_those_that_the_user_gives() -> None:
    text = """g (float[N,C] x) => (float[N,C] y) { s = Shape<start = 1>(x) f = Cast<to = 1>(s) y = Add(x, f) }"""
    model = import_onnx(parse(text), input_shapes={"x": (2, 5)}).onnx_model
    assert operators(model) == ["Add"]
    np.testing.assert_array_equal(constants(model)["f"], np.array([5], np.float32))


def test_weights_are_folded_as_the_reference_computes_them() -> None:
    text = """g (float[1,4] x) => (float[1,2] y) <float[4,2] w = {0.3, -0.1, 0.7, 0.2, -0.9, 0.5, 0.11, -0.13}> {
        s = Sign(w) c = Clip(w) d = Sub(s, c) binary = Add(d, c) y = MatMul(x, binary) }"""
    model = _folded(text)
    assert operators(model) == ["MatMul"]
    assert list(constants(model)) == ["binary"]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("value = float[2] {1.5, 2}", np.array([1.5, 2], np.float32)),
        ("value_float = 1.5", np.array(1.5, np.float32)),
        ("value_floats = [1.5, 2.0]", np.array([1.5, 2], np.float32)),
    ],
)
def test_constant_nodes(attribute: str, expected: np.ndarray) -> None:
    model = _folded(f"g (float[1,2] x) => (float[1,2] y) {{ c = Constant<{attribute}>() y = Add(x, c) }}")
    np.testing.assert_array_equal(constants(model)["c"], expected)
    assert constants(model)["c"].shape == expected.shape


def test_constant_nodes_without_numbers() -> None:
    with pytest.raises(ModelError, match="'c' holds no numeric value"):
        import_onnx(parse('g (float[1] x) => (float y) { [c] c = Constant<value_string = "a">() y = Cast<to = 1>(c) }'))


def _sparse(indices: list[int] | list[list[int]], values: int = 2) -> onnx.ModelProto:
    array = np.array(indices, np.int64)
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("c", TensorProto.FLOAT, [values], [5.0, 7.0][:values]),
        helper.make_tensor("i", TensorProto.INT64, array.shape, array.reshape(-1)),
        [2, 3],
    )
    model = parse("g (float[2,3] x) => (float[2,3] y) { c = Constant<value_float = 0.0>() y = Add(x, c) }")
    del model.graph.node[0]
    model.graph.sparse_initializer.append(sparse)
    return model


@pytest.mark.parametrize("indices", [[1, 5], [[0, 1], [1, 2]]])
@pytest.mark.parametrize("as_node", [False, True])
def test_sparse_tensors_become_dense(indices: list[int] | list[list[int]], as_node: bool) -> None:
    model = _sparse(indices)
    if as_node:
        sparse = model.graph.sparse_initializer.pop()
        model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    np.testing.assert_array_equal(constants(import_onnx(model).onnx_model)["c"], [[0, 5, 0], [0, 0, 7]])


@pytest.mark.parametrize("indices", [[1, 6], [-1, 2], [[0, 1], [2, 0]], [[0, 1], [0, -1]]])
def test_sparse_indices_outside_are_refused(indices: list[int] | list[list[int]]) -> None:
    with pytest.raises(ModelError, match=r"not a valid ONNX model: Sparse tensor .*out of range"):
        import_onnx(_sparse(indices))


def test_a_huge_sparse_tensor_is_not_expanded() -> None:
    model = _sparse([1, 5])
    model.graph.sparse_initializer[0].dims[:] = [2**20, 2**20]
    with pytest.raises(ModelError, match="too large"):
        import_onnx(model)


def test_what_is_random_or_huge_is_not_folded() -> None:
    text = """g (float[1,2] x) => (float[1,2] y) <float[1,1] c = {1}, int64[2] times = {30000, 40000}> {
        t = Tile(c, times) m = ReduceMax(t) y = Add(x, m) }"""
    limits = Limits(memory=16 << 30)
    assert operators(import_onnx(parse(text), limits=limits).onnx_model) == ["Tile", "ReduceMax", "Add"]


def test_a_product_of_large_constants_is_not_folded() -> None:
    text = """g (float[1] x) => (float[1] y) <float[1,1] c = {1}, int64[2] times = {3000, 3000}> {
        t = Tile(c, times) p = MatMul(t, t) m = ReduceMax<keepdims = 0>(p) y = Add(x, m) }"""
    assert operators(import_onnx(parse(text)).onnx_model) == ["MatMul", "ReduceMax", "Add"]


def test_all_results_of_a_pass_together_are_bounded() -> None:
    tiles = " ".join(f"t{i} = Tile(c, times) m{i} = ReduceMax<keepdims = 0>(t{i})" for i in range(3))
    text = f"""g (float[1] x) => (float[1] y) <float[1,1] c = {{1}}, int64[2] times = {{10, 10}}> {{
        {tiles} s0 = Add(x, m0) s1 = Add(s0, m1) y = Add(s1, m2) }}"""
    model = import_onnx(parse(text)).onnx_model
    assert operators(model) == ["Add"] * 3
    # Of 400 bytes each, one fits into a pass, and is dropped once its maximum is known. The file stores 20 bytes.
    enough = 400 - FOLDED_PER_STORED * 20
    fits, does_not = Limits(memory=enough * FREE_SHARE), Limits(memory=enough * FREE_SHARE - 1)
    assert operators(import_onnx(parse(text), limits=fits).onnx_model) == ["Add"] * 3
    assert operators(import_onnx(parse(text), limits=does_not).onnx_model).count("Tile") == 3


def test_many_nodes_are_evaluated_though_some_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found among the others, once; what reads them stays, and all else is folded."""
    tried: list[int] = []
    evaluate = constant_folding.evaluate_nodes

    def without_divisions(
        model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
    ) -> Any:
        tried.append(len(nodes))
        return None if any(node.op_type == "Div" for node in nodes) else evaluate(model, nodes, known)

    monkeypatch.setattr(constant_folding, "evaluate_nodes", without_divisions)
    operations = ["Div" if i in (3, 77, 78) else "Add" for i in range(90)]
    parts = " ".join(f"n{i} = {operation}(a, a) m{i} = Neg(n{i})" for i, operation in enumerate(operations))
    joined = ", ".join(f"m{i}" for i in range(90))
    text = f"""g (float[2] x) => (float[2] y) <float[2] a = {{1, 2}}> {{
        {parts} c = Concat<axis = 0>({joined}) r = ReduceMax(c) y = Add(x, r) }}"""
    left = import_onnx(parse(text)).onnx_model
    assert operators(left) == ["Div", "Neg"] * 3 + ["Concat", "ReduceMax", "Add"]
    np.testing.assert_array_equal(constants(left)["m4"], [-2, -4])
    assert len(tried) < 60


def test_half_precision_weights_that_are_cast() -> None:
    text = "g (float[1,2] x) => (float[1,2] y) <float[2] w = {0}> { c = Cast<to = 1>(w) y = Mul(x, c) }"
    model = parse(text)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array([0.5, -3], np.float16), "w"))
    np.testing.assert_array_equal(constants(import_onnx(model).onnx_model)["c"], np.array([0.5, -3], np.float32))


def test_division_by_a_constant_zero_does_not_end_the_process() -> None:
    text = (
        "g (int64[2] x) => (int64[2] y) <int64[2] a = {1, 2}, int64[2] b = {0, 0}> { [d] c = Div(a, b) y = Add(x, c) }"
    )
    with pytest.raises(UnsupportedOperatorError, match=r"'d'.*divisor value 0"):
        import_onnx(parse(text))


def test_listed_initializers_are_constants() -> None:
    model = parse("g (float[1,4] x, float[4] c) => (float[1,4] y) <float[4] c = {1, 2, 3, 4}> { y = Add(x, c) }")
    model.ir_version = 3
    imported = import_onnx(model)
    assert [spec.name for spec in imported.inputs] == ["x"]
    model.graph.node[0].input[0] = "c"
    del model.graph.input[0]
    with pytest.raises(ModelError, match="has no inputs: all of its results are constants"):
        import_onnx(model)


def test_folding_is_idempotent() -> None:
    text = "g (float[2,3] x) => (float[2,3] y) { s = Shape(x) o = ConstantOfShape(s) y = Add(x, o) }"
    once = import_onnx(parse(text)).onnx_model
    twice = import_onnx(once).onnx_model
    assert twice.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
