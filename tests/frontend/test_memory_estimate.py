from __future__ import annotations

import pytest

from bnn_compiler.errors import ModelError
from bnn_compiler.frontend import import_onnx, memory_estimate
from bnn_compiler.frontend.memory_estimate import available_bytes, estimated_bytes

from .onnx_text import parse


def test_the_estimate_follows_what_is_alive() -> None:
    # 1 KiB tensors: x and a; then a and b; then b and c. Never three of them.
    model = parse("g (float[256] x) => (float[256] c) { [p] a = Abs(x) [q] b = Neg(a) [r] c = Relu(b) }")
    normalised = import_onnx(model).onnx_model
    assert estimated_bytes(normalised) == (2048, "Abs node 'p'")
    # x is read again by the last node, so that x, a and b are alive together.
    model = parse("g (float[256] x) => (float[256] c) { [p] a = Abs(x) [q] b = Neg(a) [r] c = Add(x, b) }")
    assert estimated_bytes(import_onnx(model).onnx_model) == (3072, "Neg node 'q'")


def test_constants_count_three_times() -> None:
    model = parse("g (float[1] x) => (float[1] y) <float[1] w = {2}> { y = Mul(x, w) }")
    normalised = import_onnx(model).onnx_model
    assert estimated_bytes(normalised)[0] == 3 * 4 + 2 * 4


def test_what_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse("g (float[256] x) => (float[256] y) { [p] y = Abs(x) }")
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda: 2048)
    import_onnx(model)
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda: 2047)
    with pytest.raises(
        ModelError, match=r"g: needs at least 0.0 MiB of memory, the most at Abs node 'p', but only 0.0 MiB"
    ):
        import_onnx(model)
    monkeypatch.setattr(memory_estimate, "available_bytes", lambda: None)
    import_onnx(model)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,1099511627776] x) => (float[M,N] y) { y = Relu(x) }",
        "g (float[4611686018427387904,4611686018427387904] x) => (float[M,N] y) { y = Relu(x) }",
        "g (float[1,4] x) => (float[M,N] y) <int64[2] t = {4611686018427387904, 4}> { y = Tile(x, t) }",
        "g (float[1,4] x) => (float[A,B,C] y) <int64[3] s = {1000000, 1000000, 4}> { y = Expand(x, s) }",
        "g (float[1] x) => (float[A] y) <int64[1] s = {1099511627776}> { c = ConstantOfShape(s) y = Add(c, x) }",
        "g (float[1,4] x) => (float[A,B] y) <int64[4] p = {0, 0, 0, 1099511627776}> { y = Pad(x, p) }",
    ],
)
def test_huge_tensors_from_tiny_files(text: str) -> None:
    model = parse(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match=r"needs at least [0-9.]+ GiB of memory, the most at "):
        import_onnx(model)


def test_this_machine_has_memory() -> None:
    available = available_bytes()
    assert available is None or 2**20 < available < 2**50
