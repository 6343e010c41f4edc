"""Random graphs from ONNX's specification (:mod:`tests.conformance`): can their judge tell right from wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.conformance.generate import random_case
from tests.conformance.judge import Judge
from tests.conformance.plus import sets_of_plus, with_plus
from tests.conformance.sweep import main


def _model(nodes: list[onnx.NodeProto], shape: list[int], constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "judged",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _sign_of_sum() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=1),
        helper.make_node("Sign", ["sum"], ["y"], "sign"),
    ]
    return _model(nodes, [1, 3])


def test_the_sign_of_a_sum_of_integers_is_decided() -> None:
    """An exact zero has one sign, in any order of summation."""
    judge = Judge(_sign_of_sum())
    feed = {"x": np.array([[1, -2, 1]], np.float32)}
    assert judge.judge({"y": np.zeros((1, 1), np.float32)}, feed).wrong == []
    for other in (1.0, -1.0):
        assert judge.judge({"y": np.full((1, 1), other, np.float32)}, feed).wrong != []


def test_the_sign_of_a_sum_that_cancels_is_not() -> None:
    """0.1 + 0.2 - 0.3 is zero or not, as the order of summation has it."""
    judge = Judge(_sign_of_sum())
    feed = {"x": np.array([[0.1, 0.2, -0.3]], np.float32)}
    for sign in (-1.0, 0.0, 1.0):
        verdict = judge.judge({"y": np.full((1, 1), sign, np.float32)}, feed)
        assert verdict.wrong == []
    assert judge.judge({"y": np.full((1, 1), 50.0, np.float32)}, feed).wrong != []


def test_floats_may_round_but_not_differ() -> None:
    judge = Judge(_model([helper.make_node("Tanh", ["x"], ["y"], "tanh")], [1, 4]))
    feed = {"x": np.array([[-1, 0.3, 0.5, 2]], np.float32)}
    right = np.tanh(feed["x"])
    assert judge.judge({"y": np.nextafter(right, np.float32(1))}, feed).wrong == []
    assert judge.judge({"y": right + np.float32(1e-3)}, feed).wrong != []
    assert judge.judge({"y": right[:, :3]}, feed).wrong != []
    assert judge.judge({"y": np.full_like(right, np.nan)}, feed).wrong != []


def test_a_pool_with_nan_in_its_window_has_no_defined_maximum() -> None:
    judge = Judge(_model([helper.make_node("MaxPool", ["x"], ["y"], "pool", kernel_shape=[2])], [1, 1, 2]))
    feed = {"x": np.array([[[np.nan, 1]]], np.float32)}
    verdict = judge.judge({"y": np.full((1, 1, 1), 7, np.float32)}, feed)
    assert (verdict.wrong, verdict.undefined) == ([], 1)


def test_a_seed_is_a_graph() -> None:
    """The same in every run; several operators and outputs in most."""
    first, second = (random_case("seed:1").to_bytes() for _ in range(2))
    assert first == second
    graphs = [onnx.load_from_string(random_case(f"seed:{i}").model).graph for i in range(30)]
    assert len({node.op_type for graph in graphs for node in graph.node}) > 40
    assert sum(len(graph.output) > 1 for graph in graphs) > 15
    assert max(len(graph.node) for graph in graphs) >= 20


def test_random_graphs(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """What is wrong is in the captured output: one line for each finding, with the path of the shrunk model."""
    if not request.config.getoption("--conformance-graphs"):
        pytest.skip("--conformance-graphs says how many")
    seed = ["--seed-by-date"] if request.config.getoption("--conformance-seed-by-date") else ["--seed", "ci"]
    graphs = str(request.config.getoption("--conformance-graphs"))
    arguments = ["--graphs", graphs, "--largest", "10", "--processes", "2", "--findings", str(tmp_path)]
    assert main([*seed, *arguments, "--shrink-seconds", "30"]) == 0


def test_signs_in_front_of_a_layer_may_be_plus_one_at_zero() -> None:
    """The report names the layer; the signs behind it, and those in front of another, keep ONNX's zero."""
    nodes = [
        helper.make_node("Sign", ["x"], ["s"], "near"),
        helper.make_node("Add", ["s", "s"], ["t"], "add"),
        helper.make_node("MatMul", ["t", "w"], ["u"], "layer"),
        helper.make_node("Sign", ["u"], ["y"], "behind"),
    ]
    model = _model(nodes, [1, 2], {"w": np.ones((2, 2), np.float32)})
    assert list(sets_of_plus(model, {"layer"})) == [("near",)]
    assert list(sets_of_plus(model, {"behind"})) == [("behind",)]
    feed = {"x": np.zeros((1, 2), np.float32)}
    plus = Judge(with_plus(model, ("near",)))
    assert plus.judge({"y": np.ones((1, 2), np.float32)}, feed).wrong == []
    assert plus.judge({"y": np.zeros((1, 2), np.float32)}, feed).wrong != []
