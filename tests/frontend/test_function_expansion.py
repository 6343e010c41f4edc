"""Operators that are compiled by the bodies of ONNX's functions, against ONNX Runtime or formulas."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.frontend.function_expansion import EXPANDED_OPERATORS

from .onnx_text import Array, operators, parse, run_onnx, run_relax


def _random(shape: tuple[int, ...], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("graph", "opset"),
    [
        (
            "(float[2,6,3,5] x, float[6] s, float[6] b) => (float[2,6,3,5] y)"
            "{ y = GroupNormalization<num_groups = 3>(x, s, b) }",
            21,
        ),
        (
            "(float[2,6,4] x, float[6] s, float[6] b) => (float[2,6,4] y)"
            "{ y = GroupNormalization<num_groups = 2, epsilon = 0.01>(x, s, b) }",
            22,
        ),
        (
            "(float[4,5,6] x) => (float[2,5,9] y) <int64[2] shape = {2, 9}>"
            "{ y = CenterCropPad<axes = [0, -1]>(x, shape) }",
            18,
        ),
        (
            "(float[2,4,3,8] q, float[2,2,5,8] k, float[2,2,5,6] v) => (float[2,4,3,6] y)"
            "{ y = Attention<is_causal = 1>(q, k, v) }",
            23,
        ),
        (
            "(float[2,3,12] q, float[2,5,12] k, float[2,5,12] v, float[3,5] m) => (float[2,3,12] y)"
            "{ y = Attention<q_num_heads = 3, kv_num_heads = 3, softcap = 2.0>(q, k, v, m) }",
            23,
        ),
        (
            "(float[1,2,3,4] q, float[1,2,1,4] k, float[1,2,1,4] v, float[1,2,2,4] p, float[1,2,2,4] w)"
            "=> (float[1,2,3,4] y, float[1,2,3,4] a, float[1,2,3,4] b)"
            '{ y, a, b = Attention(q, k, v, "", p, w) }',
            23,
        ),
        (
            "(float[2,3,4,8] x, float[2,4,4] c, float[2,4,4] s) => (float[2,3,4,8] y) { y = RotaryEmbedding(x, c, s) }",
            23,
        ),
    ],
)
def test_equals_onnx_runtime(graph: str, opset: int) -> None:
    model = parse(f"g {graph}", opset=opset)
    shapes = [tuple(d.dim_value for d in info.type.tensor_type.shape.dim) for info in model.graph.input]
    data = [_random(shape, seed) for seed, shape in enumerate(shapes)]
    expected = run_onnx(model, {info.name: array for info, array in zip(model.graph.input, data, strict=True)})
    actual = run_relax(import_onnx(model).module, data)
    for ours, theirs in zip(actual, expected, strict=True):
        # Sums of at most 30 numbers of moderate size, and a square root or an exponential, in another order.
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_swish(alpha: float) -> None:
    attribute = "" if alpha == 1 else f"<alpha = {alpha}>"
    model = parse(f"g (float[3,4] x) => (float[3,4] y) {{ y = Swish{attribute}(x) }}", opset=24)
    data = _random((3, 4), 0)
    [actual] = run_relax(import_onnx(model).module, [data])
    np.testing.assert_allclose(actual, data / (1 + np.exp(-alpha * data)), rtol=1e-6)


@pytest.mark.parametrize(("ignored", "reduction"), [(-1, "mean"), (2, "sum"), (1, "none")])
def test_cross_entropy(ignored: int, reduction: str) -> None:
    shape = "[4]" if reduction == "none" else ""
    attributes = f'reduction = "{reduction}"' + ("" if ignored < 0 else f", ignore_index = {ignored}")
    model = parse(
        f"g (float[4,3] x, int64[4] t) => (float{shape} y) {{ y = SoftmaxCrossEntropyLoss<{attributes}>(x, t) }}"
    )
    data, labels = _random((4, 3), 0), np.asarray([0, 2, 1, 2])
    loss = np.log(np.exp(data.astype(np.float64)).sum(1)) - data[range(4), labels]
    kept = labels != ignored
    wanted = {"mean": loss[kept].mean(), "sum": loss[kept].sum(), "none": np.where(kept, loss, 0)}[reduction]
    [actual] = run_relax(import_onnx(model).module, [data, labels])
    np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_cast_like_becomes_cast() -> None:
    model = parse("g (float[2] x, int64[3] like) => (int64[2] y) { y = CastLike(x, like) }")
    imported = import_onnx(model)
    assert operators(imported.onnx_model) == ["Cast"]


def test_several_calls_have_names_of_their_own() -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { h = Swish(x) y = Swish(h) }", opset=24)
    graph = import_onnx(model).onnx_model.graph
    names = [name for node in graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert not {node.op_type for node in graph.node} & set(EXPANDED_OPERATORS)


def test_a_shape_that_depends_on_data_is_refused() -> None:
    model = parse("g (float[4,5] x, int64[2] s) => (float[n,m] y) { y = CenterCropPad(x, s) }", opset=18)
    with pytest.raises(UnsupportedOperatorError, match=r"node .* the shape of its output .* depends on data"):
        import_onnx(model)


def test_parts_without_elements_vanish() -> None:
    """A head that is rotated as a whole keeps a rest of size 0 in the definition."""
    model = parse(
        "g (float[2,3,4,8] x, float[2,4,4] c, float[2,4,4] s) => (float[2,3,4,8] y) { y = RotaryEmbedding(x, c, s) }",
        opset=23,
    )
    graph = import_onnx(model).onnx_model.graph
    assert all(0 not in tensor.dims for tensor in graph.initializer)
    assert all(len(node.input) > 1 for node in graph.node if node.op_type == "Concat")
