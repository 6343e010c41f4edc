from __future__ import annotations

import time

import onnx
import pytest

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx, normalisation

from .onnx_text import operators, parse


def _computed_reshapes(count: int) -> onnx.ModelProto:
    """Layer after layer that computes its shape from the one before: each takes a round to settle."""
    body = " ".join(
        f"s{i} = Shape(t{i}) d{i} = Div(s{i}, one) r{i} = Reshape(t{i}, d{i}) t{i + 1} = Relu(r{i})"
        for i in range(count)
    )
    return parse(
        f"g (float[2,3] x) => (float[2,3] y) <int64[1] one = {{1}}> {{ t0 = Relu(x) {body} y = Identity(t{count}) }}"
    )


def test_a_chain_of_computed_shapes_settles() -> None:
    start = time.process_time()
    model = import_onnx(_computed_reshapes(60)).onnx_model
    assert operators(model) == ["Relu", *["Reshape", "Relu"] * 60]
    assert time.process_time() - start < 10


def test_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "MAX_VISITS", 100)
    with pytest.raises(ModelError, match="depend on each other in a chain that is not at its end"):
        import_onnx(_computed_reshapes(60))


def test_normalising_twice_changes_nothing() -> None:
    text = """g (float[N,4] x, bool c) => (float[N,4] y) <float[4] w = {1, 2, 3, 4}> {
        s = Shape(x) o = ConstantOfShape<value = float[1] {1}>(s) d = Dropout(x)
        i = If(c) <then_branch = a () => (float[N,4] p) { p = Add(d, w) },
                   else_branch = b () => (float[N,4] q) { q = Sub(d, o) }>
        y = Identity(i) }"""
    once = import_onnx(parse(text)).onnx_model
    assert operators(once) == ["Add", "Sub", "Where"]
    twice = import_onnx(once).onnx_model
    assert twice.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_every_node_has_a_name_of_its_own() -> None:
    model = parse("g (float[4] x) => (float[4] y) { [a] t = Abs(x) [a] u = Neg(t) v = Relu(u) [Relu_2] y = Sqrt(v) }")
    names = [node.name for node in import_onnx(model).onnx_model.graph.node]
    assert names == ["a", "a_1", "Relu_2_", "Relu_2"]
