"""Signs of sums of ±α: rounding noise in ONNX Runtime, exact in the compiled network and in the second reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnn_compiler
from bnn_compiler.verification.exact_sums import with_exact_sums
from tests.frontend.onnx_text import Array, parse, run_onnx

RNG = np.random.default_rng(0)


def _signs(*shape: int) -> Array:
    return RNG.choice(np.asarray([-1, 1], np.float32), shape)


SCALE = np.linspace(0.05, 1.3, 6, dtype=np.float32)
PRODUCTS: dict[str, tuple[str, str, dict[str, Array]]] = {
    "conv": ("1,4,5,5", "y = Conv<pads = [1, 1, 1, 1]>(s, w)", {"w": _signs(6, 4, 3, 3) * SCALE[:, None, None, None]}),
    "grouped conv with bias": (
        "1,4,5,5",
        "y = Conv<group = 2>(s, w, b)",
        {"w": -_signs(6, 2, 3, 3) * SCALE[:, None, None, None], "b": SCALE},
    ),
    "conv1d with bias": ("1,4,7", "y = Conv(s, w, b)", {"w": _signs(6, 4, 3) * SCALE[:, None, None], "b": SCALE}),
    "gemm": (
        "3,8",
        "y = Gemm<transB = 1, alpha = 0.3, beta = 0.7>(s, w, b)",
        {"w": _signs(6, 8) * SCALE[:, None], "b": SCALE},
    ),
    "gemm without alpha and beta": ("3,8", "y = Gemm(s, w, b)", {"w": _signs(8, 6) * SCALE, "b": SCALE}),
    "matmul": ("3,8", "y = MatMul(s, w)", {"w": _signs(8, 6) * SCALE}),
    "matmul in batches": ("2,3,8", "y = MatMul(s, w)", {"w": _signs(8, 6) * SCALE}),
    "not binary": ("3,8", "y = MatMul(s, w)", {"w": RNG.standard_normal((8, 6)).astype(np.float32)}),
}


def _model(shape: str, product: str, constants: dict[str, Array], opset: int = 17) -> onnx.ModelProto:
    model = parse(f"g (float[{shape}] x) => (float y) {{ s = Sign(x) {product} }}", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.node[-1].name = "product"
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("opset", [9, 10, 11, 17])
def test_the_same_but_for_rounding(name: str, opset: int) -> None:
    """Before operator set 11 a Gemm had three operands, always."""
    shape, product, constants = PRODUCTS[name]
    model = _model(shape, product, constants, opset)
    changed = with_exact_sums(model, ["product"])
    assert ("Mul" in {node.op_type for node in changed.graph.node}) == (name != "not binary")
    x = RNG.standard_normal([int(extent) for extent in shape.split(",")]).astype(np.float32)
    (expected,), (actual,) = (run_onnx(each, {"x": x}) for each in (model, changed))
    # At most 36 terms of up to 1.3: 38 roundings of sums below 48.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=38 * 48 * 2.0**-24)


def test_other_nodes_stay() -> None:
    model = _model(*PRODUCTS["conv"])
    assert with_exact_sums(model, ["another"]) == model


def test_signs_of_sums_that_cancel() -> None:
    """An untrained network: no batch-norm moves the sums away from 0, where every eighth of them is."""
    weights = {"v": _signs(16, 4, 3, 3) * np.float32(0.1), "w": _signs(8, 16, 3, 3) * np.float32(0.3)}
    model = parse(
        """g (float[1,4,12,12] x) => (float[1,8,8,8] y) <float zero = {0}, float one = {1}, float minus = {-1}> {
        a = Sign(x) c = Conv(a, v) l = Less(c, zero) s = Where(l, minus, one) y = Conv(s, w) }"""
    )
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    verification = bnn_compiler.compile_model(model).report["verification"]
    assert verification is not None
    assert verification["passed"]
    assert verification["exact_sums"]
    assert verification["sign_flips"] == 0
