"""Heads of few outputs behind a float product: the kernel's tile of columns is wider than the result."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import parse


@pytest.mark.parametrize("columns", [1, 2, 9])
@pytest.mark.parametrize("function", ["Tanh", "Sigmoid", "Exp"])
def test_more_than_one_operator_behind_few_columns(function: str, columns: int) -> None:
    weights = np.random.default_rng(0).standard_normal((16, columns)).astype(np.float32) / 8
    model = parse(
        f"""g (float[2,16] x) => (float[2,{columns}] y) <float k = {{0.5}}> {{
        g = MatMul(x, w) t = {function}(g) u = Mul(t, k) y = Add(u, k) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    verification = bnn_compiler.compile_model(model).report["verification"]
    assert verification is not None
    assert verification["passed"]


def test_functions_of_functions() -> None:
    body = "t = Tanh(x) s = Sigmoid(t) e = Exp(s) u = Tanh(e) y = Mul(u, t)"
    verification = bnn_compiler.compile_model(parse(f"g (float[2,33] x) => (float[2,33] y) {{ {body} }}")).report[
        "verification"
    ]
    assert verification is not None
    assert verification["passed"]
