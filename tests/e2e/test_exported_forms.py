"""Forms that exporters write around one binary layer: found to be binary, and equal to ONNX Runtime bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

import bnn_compiler
from tests.frontend.onnx_text import Array, run_onnx

RNG = np.random.default_rng(0)
F32 = np.float32
KERNEL = RNG.choice([-1, 1], (8, 16, 3, 3)).astype(F32)
MATRIX = RNG.choice([-1, 1], (16, 8)).astype(F32)
IMAGE = RNG.standard_normal((1, 16, 8, 8)).astype(F32)
CONV = "y = Conv<pads = [1, 1, 1, 1]>(s, w)"


def _model(text: str, constants: dict[str, Any], opset: int = 17) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def _check(model: onnx.ModelProto, feeds: dict[str, Array], statuses: list[str], *, exact: bool = True) -> None:
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == statuses
    found = compiled.run(feeds)
    for output, expected in zip(model.graph.output, run_onnx(model, feeds), strict=True):
        # Where floats are summed: at most 144 products of values up to 4, in another order: 144 * 4 * 2^-24.
        tolerance = 0 if exact else 4e-5
        np.testing.assert_allclose(found[output.name], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("opset", range(9, 22))
def test_operator_sets(opset: int) -> None:
    model = _model(f"(float[1,16,8,8] x) => (float[1,8,8,8] y) {{ s = Sign(x) {CONV} }}", {"w": KERNEL}, opset)
    _check(model, {"x": IMAGE}, ["binary"])


FORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "a sign that is an output": (
        f"(float[1,16,8,8] x) => (float[1,16,8,8] s, float[1,8,8,8] y) {{ s = Sign(x) {CONV} }}", {"w": KERNEL}, 17
    ),
    "pads computed at run time": (
        """(float[1,16,8,8] x) => (float[1,8,8,8] y) {
        sign = Sign(x) shape = Shape(x) h = Gather(shape, two) t = Sub(ten, h) half = Div(t, two) z = Sub(half, half)
        p = Concat<axis = 0>(z, z, half, half, z, z, half, half) s = Pad(sign, p, minus) y = Conv(s, w) }""",
        {"w": KERNEL, "two": [2], "ten": [10], "minus": F32(-1)}, 17
    ),
    "doubled channels": (
        f"(float[1,8,8,8] x) => (float[1,8,8,8] y) {{ a = Sign(x) s = Concat<axis = 1>(a, a) {CONV} }}",
        {"w": KERNEL}, 17
    ),
    "half of a split": (
        f"(float[1,32,8,8] x) => (float[1,8,8,8] y) {{ a = Sign(x) b, s = Split<axis = 1>(a, k) {CONV} }}",
        {"w": KERNEL, "k": [16, 16]}, 17
    ),
    "a clip with attributes": (
        f"(float[1,16,8,8] x) => (float[1,8,8,8] y) {{ c = Clip<min = -1.0, max = 1.0>(x) s = Sign(c) {CONV} }}",
        {"w": KERNEL}, 9
    ),
    "a nearest resize": (
        f'(float[1,16,4,4] x) => (float[1,8,8,8] y) {{ c = Resize<mode = "nearest">(x, , r) s = Sign(c) {CONV} }}',
        {"w": KERNEL, "r": np.array([1, 1, 2, 2], F32)}, 13
    ),
    "a 3-D matrix product": (
        "(float[2,5,16] x) => (float[2,5,8] y) { s = Sign(x) y = MatMul(s, w) }", {"w": MATRIX}, 17
    ),
    "float32 inside float64": (
        f"""(double[1,16,8,8] x) => (double[1,8,8,8] z) {{
        d = Sign(x) s = Cast<to = 1>(d) {CONV} z = Cast<to = 11>(y) }}""", {"w": KERNEL}, 17
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    text, constants, opset = FORMS[form]
    model = _model(text, constants, opset)
    declared = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value for dim in declared.shape.dim]
    data = np.random.default_rng(1).standard_normal(shape)
    _check(model, {"x": data.astype(helper.tensor_dtype_to_np_dtype(declared.elem_type))}, ["binary"])


def test_all_attributes_of_gemm() -> None:
    text = "(float[16,5] x) => (float[5,8] y) { s = Sign(x) y = Gemm<transA = 1, alpha = 0.5, beta = 0.25>(s, w, b) }"
    model = _model(text, {"w": MATRIX, "b": np.arange(5, dtype=F32).reshape(5, 1)})
    _check(model, {"x": RNG.standard_normal((16, 5)).astype(F32)}, ["binary"])


def test_a_sparse_initializer() -> None:
    model = _model(f"(float[1,16,8,8] x) => (float[1,8,8,8] y) {{ s = Sign(x) {CONV} }}", {})
    values, indices = (
        numpy_helper.from_array(array, name) for array, name in ((KERNEL.reshape(-1), "w"), (np.arange(1152), "i"))
    )
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, KERNEL.shape))
    _check(model, {"x": IMAGE}, ["binary"])


def test_weights_behind_dequantise() -> None:
    model = _model(
        f"(float[1,16,8,8] x) => (float[1,8,8,8] y) {{ w = DequantizeLinear<axis = 0>(q, a, z) s = Sign(x) {CONV} }}",
        {"q": KERNEL.astype(np.int8), "a": np.linspace(0.1, 2, 8, dtype=F32), "z": np.zeros(8, np.int8)},
    )
    _check(model, {"x": IMAGE}, ["binary"], exact=False)


def test_quantised_data() -> None:
    """An offset of half a step, so that no value is exactly zero."""
    model = _model(
        f"""(float[1,16,8,8] x) => (float[1,8,8,8] y) {{
        q = QuantizeLinear(x, a, z) d = DequantizeLinear(q, a, z) m = Add(d, h) s = Sign(m) {CONV} }}""",
        {"w": KERNEL, "a": F32(0.125), "z": np.int8(3), "h": F32(0.0625)},
    )
    _check(model, {"x": IMAGE}, ["binary"])


@pytest.mark.parametrize(
    ("attributes", "shape", "weight"),
    [
        ("strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]", "1,16,8,8", (16, 8, 3, 3)),
        ("group = 2, dilations = [2, 1]", "1,16,8,8", (16, 8, 3, 3)),
        ("strides = [2]", "1,16,8", (16, 8, 3)),
    ],
)
def test_transposed_convolutions_stay_float(attributes: str, shape: str, weight: tuple[int, ...]) -> None:
    model = _model(f"(float[{shape}] x) => (float y) {{ y = ConvTranspose<{attributes}>(x, w) }}", {
        "w": np.random.default_rng(0).standard_normal(weight).astype(F32)
    })  # fmt: skip
    model.graph.output[0].type.tensor_type.ClearField("shape")
    data = IMAGE if shape.count(",") == 3 else np.ascontiguousarray(IMAGE[:, :, 0])
    _check(model, {"x": data}, ["float"], exact=False)


@pytest.mark.parametrize("product", ["MatMul(s, w)", "Gemm(s, w, b)"])
@pytest.mark.parametrize(("scale", "lowered"), [(1.0, True), (-0.25, True), (0.3, False)])
def test_double_precision_is_exact(product: str, scale: float, lowered: bool) -> None:
    """Integers, and powers of two times them, are the same in single precision; 0.3 is not."""
    model = _model(
        f"(double[2,16] x) => (double[2,8] y) {{ s = Sign(x) y = {product} }}",
        {"w": MATRIX.astype(np.float64) * scale, "b": np.linspace(0.1, 3, 8)},
    )
    x = np.random.default_rng(0).standard_normal((2, 16))
    compiled = bnn_compiler.compile_model(model)
    assert [layer["algorithm"] != "float" for layer in compiled.report["layers"]] == [lowered]
    # Where products are rounded: 16 terms in another order, of 1e-16 relative each.
    tolerance = 0 if lowered else 1e-14
    np.testing.assert_allclose(compiled.run({"x": x})["y"], run_onnx(model, {"x": x})[0], rtol=0, atol=tolerance)


def test_batch_norm_in_double_precision_keeps_its_type() -> None:
    model = _model(
        "(double[1,16,8,8] x) => (double[1,16,8,8] y) { y = BatchNormalization(x, p, p, p, p) }",
        {"p": np.linspace(0.1, 3, 16)},
    )
    compiled = bnn_compiler.compile_model(model)
    data = IMAGE.astype(np.float64)
    [expected] = run_onnx(model, {"x": data})
    # Constants in float32 would leave errors of 1e-7. What is left is epsilon: its default is 1e-5 in float64 here, and
    # the nearest float32 there, a difference of 2.5e-13.
    np.testing.assert_allclose(compiled.run({"x": data})["y"], expected, rtol=0, atol=1e-11)
