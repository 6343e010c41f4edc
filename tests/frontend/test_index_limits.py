"""Inputs that are indices, and the verification of networks that have such."""

from __future__ import annotations

import pytest

from bnn_compiler import compile_model
from bnn_compiler.frontend import import_onnx
from bnn_compiler.verification.reference import sample_feeds

from .onnx_text import parse

_TABLE = "<float[3,2] table = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}>"
_MOVED = "{ s = Cast<to = 7>(i) a = Constant<value_ints = [0]>() t = Unsqueeze(s, a) y = Gather(table, t) }"


@pytest.mark.parametrize(
    ("graph", "limit"),
    [
        (f"(int64[4] i) => (float[4,2] y) {_TABLE} {{ y = Gather(table, i) }}", 3),
        (f"(int64[4] i) => (float[3,4] y) {_TABLE} {{ y = Gather<axis = -1>(table, i) }}", 2),
        (f"(int32[4] i) => (float[1,4,2] y) {_TABLE} {_MOVED}", 3),
        ("(float[4,5] x, int64[4,1] i) => (float[4,1] y) { y = GatherElements<axis = 1>(x, i) }", 5),
        (f"(int64[4,1] i) => (float[4,2] y) {_TABLE} {{ y = GatherND(table, i) }}", 2),
        ("(int64[4] i) => (int64[4] y) { y = Abs(i) }", None),
    ],
)
def test_limits(graph: str, limit: int | None) -> None:
    spec = import_onnx(parse(f"g {graph}", opset=13)).inputs[-1]
    assert spec.limit == limit
    if limit is not None:
        values = sample_feeds([spec], 0, 0)[spec.name]
        assert values.min() >= 0
        assert values.max() < limit


def test_an_embedding_is_verified() -> None:
    """ONNX Runtime refuses to run on indices beyond the table."""
    compiled = compile_model(parse(f"g (int64[2,3] i) => (float[2,3,2] y) {_TABLE} {{ y = Gather(table, i) }}"))
    assert compiled.report["verification"] is not None
