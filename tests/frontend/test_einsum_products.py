from __future__ import annotations

import numpy as np
import pytest

import bnn_compiler
from bnn_compiler.frontend import import_onnx

from .onnx_text import operators, parse, random_feeds, run_onnx, run_relax

SIZES = dict(zip("abhkmnst", (2, 3, 2, 5, 4, 6, 3, 2), strict=True))


def _shape(labels: str) -> tuple[int, ...]:
    return tuple(SIZES[label] for label in labels)


@pytest.mark.parametrize(
    "equation",
    [
        "bk,nk->bn",
        "bk,kn->bn",
        "bk,kn->nb",
        "bk,kn",
        "kb,kn->bn",
        "bsk,kn->bsn",
        "bshk,nhk->bsn",
        "bms,bns->bmn",
        "bhms,bhsn->bmhn",
        "abk,bkn->nba",
        "m,n->mn",
        "k,k->",
        "bn,bn->bn",
    ],
)
def test_products_match_onnx_runtime(equation: str) -> None:
    a, b = equation.split("->", maxsplit=1)[0].split(",")
    border = ", ".join(f"float[{','.join(map(str, _shape(labels)))}] {name}" for name, labels in (("x", a), ("w", b)))
    model = parse(f'g ({border}) => (float y) {{ [e] y = Einsum<equation = "{equation}">(x, w) }}')
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = random_feeds([("x", _shape(a)), ("w", _shape(b))])
    imported = import_onnx(model)
    assert "MatMul" in operators(imported.onnx_model)
    assert "Einsum" not in operators(imported.onnx_model)
    [expected] = run_onnx(model, feeds)
    # At most ten products of values around 1 are summed, in another order.
    for found in (run_onnx(imported.onnx_model, feeds)[0], run_relax(imported.module, list(feeds.values()))[0]):
        np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("equation", ["aab,bn->an", "ab,cb->a", "...b,bn->...n"])
def test_other_equations_are_left_alone(equation: str) -> None:
    first, second = equation.split("->", maxsplit=1)[0].split(",")
    shapes = [",".join("2" * len(labels.replace("...", "x"))) for labels in (first, second)]
    model = parse(
        f'g (float[{shapes[0]}] x, float[{shapes[1]}] w) => (float y) {{ y = Einsum<equation = "{equation}">(x, w) }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    try:
        imported = import_onnx(model)
    except bnn_compiler.BnncError as error:
        assert "Einsum" in str(error)  # TVM does not take repeated labels
    else:
        assert operators(imported.onnx_model) == ["Einsum"]


def test_a_dense_layer_is_found() -> None:
    weights = ", ".join("1" if bit else "-1" for bit in np.random.default_rng(0).integers(0, 2, 8 * 16))
    model = parse(
        f"""g (float[2,3,16] x) => (float[2,3,8] y) <float[8,16] w = {{{weights}}}> {{
        s = Sign(x) [dense] y = Einsum<equation = "bsk,nk->bsn">(s, w) }}"""
    )
    compiled = bnn_compiler.compile_model(model)
    [layer] = compiled.report["layers"]
    assert (layer["name"], layer["status"]) == ("dense", "binary")
    feeds = random_feeds([("x", (2, 3, 16))])
    np.testing.assert_array_equal(compiled.run(feeds)["y"], run_onnx(model, feeds)[0])
