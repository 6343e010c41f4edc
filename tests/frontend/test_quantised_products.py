"""Convolutions and matrix products of 8-bit integers against ONNX Runtime, bit for bit.

Weights of seven bits where the data are uint8 and the weights int8: ONNX Runtime saturates larger ones on processors
without VNNI.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import bnn_compiler
from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import run_onnx
from .small_models import ModelBuilder, small_model

F32 = np.float32
U8, I8 = np.uint8, np.int8
Integer = type[np.integer[Any]]
MICROSOFT = "com.microsoft"


def _conv(
    build: ModelBuilder,
    data: Integer,
    weight: Integer,
    *,
    channels: int = 4,
    group: int = 1,
    columns: bool = False,
    scale: float = 0.7,
) -> list[str]:
    """Operands of a ``QLinearConv`` of 6 outputs, with parameters per tensor or per output."""
    few = data is U8 and weight is I8
    filters = build.codes(weight, (6, channels // group, 3, 3), few=few)
    zero = 0 if columns or few else 100 if weight is U8 else 3
    return [
        build.feed(build.codes(data, (2, channels, 6, 5))),
        build.constant(0.03, F32),
        build.constant(9, data),
        build.constant(filters, weight),
        build.constant(build.rng.uniform(0.01, 0.03, 6) if columns else 0.02, F32),
        build.constant([zero] * 6 if columns else zero, weight),
        build.constant(scale, F32),
        build.constant(7, data),
    ]


@pytest.mark.parametrize("opset", [10, 21])
def test_convolutions(opset: int) -> None:
    """Types, groups, pads (which are the zero point), strides, biases; 0.03 * 0.02 / 0.0003 = 2 makes ties."""
    build = ModelBuilder()
    build.node("QLinearConv", _conv(build, U8, U8), TensorProto.UINT8)
    build.node("QLinearConv", _conv(build, I8, I8, columns=True), TensorProto.INT8, pads=[1, 0, 1, 2])
    operands = [*_conv(build, U8, I8, group=2), build.constant(build.rng.integers(-900, 900, 6), np.int32)]
    build.node("QLinearConv", operands, TensorProto.UINT8, group=2, strides=[2, 1], auto_pad="SAME_UPPER")
    operands = [*_conv(build, I8, I8, scale=0.0012), build.constant(build.rng.integers(-(2**30), 2**30, 6), np.int32)]
    build.node("QLinearConv", operands, TensorProto.INT8, dilations=[2, 1])
    build.node("ConvInteger", [_conv(build, U8, U8)[0], build.constant(build.codes(U8, (3, 4, 2, 2)), U8)], 6)
    build.check(opset)


def test_long_sums_are_cut() -> None:
    """2,000 products of up to 255 * 255 exceed what float32 adds exactly."""
    build = ModelBuilder()
    build.node("QLinearConv", _conv(build, U8, U8, channels=224, scale=5.0), TensorProto.UINT8)
    long = build.feed(build.codes(U8, (3, 2000)))
    weight = build.constant(build.codes(U8, (2000, 5)), U8)
    build.node("MatMulInteger", [long, weight], TensorProto.INT32)
    build.node("MatMulInteger", [long, build.feed(build.codes(U8, (2000, 2)))], TensorProto.INT32)
    found = build.check()
    assert found.count("Conv") > 1
    assert found.count("MatMul") > 4


def test_matrix_products() -> None:
    """Batches, zero points per row and per column, operands known at run time."""
    build = ModelBuilder()
    a, b = build.feed(build.codes(U8, (2, 3, 5))), build.constant(build.codes(U8, (5, 4)), U8)
    zero, columns = build.constant(9, U8), build.constant([1, 2, 3, 250], U8)
    build.node("MatMulInteger", [a, b, zero, columns], TensorProto.INT32)
    scale, column_scales = build.constant(0.02, F32), build.constant([0.1, 0.2, 0.3, 0.4], F32)
    out, out_zero = build.constant(0.5, F32), build.constant(128, U8)
    build.node("QLinearMatMul", [a, scale, zero, b, column_scales, columns, out, out_zero], TensorProto.UINT8)
    other = build.feed(build.codes(U8, (2, 5, 4)))
    build.node("QLinearMatMul", [a, scale, zero, other, scale, zero, out, out_zero], TensorProto.UINT8)
    c, d = build.feed(build.codes(I8, (3, 8))), build.constant(build.codes(I8, (8, 4)), I8)
    signed = [build.constant(-3, I8), build.constant(0.25, F32)]
    operands = [c, signed[1], signed[0], d, signed[1], build.constant(0, I8), build.constant(2, F32), signed[0]]
    build.node("QLinearMatMul", operands, TensorProto.INT8)  # 0.25 * 0.25 / 2 makes ties
    build.check()


def test_qgemm() -> None:
    build = ModelBuilder()
    a, b = build.feed(build.codes(U8, (5, 3))), build.constant(build.codes(U8, (4, 5)), U8)
    scale, zero = build.constant(0.02, F32), build.constant(9, U8)
    columns, column_zeros = build.constant([0.1, 0.2, 0.3, 0.4], F32), build.constant([1, 2, 3, 250], U8)
    bias = build.constant([5, -400, 3000, 2**29], np.int32)
    turned: dict[str, Any] = {"domain": MICROSOFT, "transA": 1, "transB": 1}
    operands = [a, scale, zero, b, columns, column_zeros, bias]
    result = [build.constant(0.5, F32), zero]
    build.node("QGemm", [*operands, *result], TensorProto.UINT8, alpha=0.75, **turned)
    build.node("QGemm", [*operands[:4], scale, zero, ""], TensorProto.FLOAT, **turned)
    build.check()


def test_a_compiled_network() -> None:
    """Verified against the file as it is; the results are ONNX Runtime's."""
    build = ModelBuilder()
    operands = _conv(build, U8, I8, columns=True)
    build.node("QLinearConv", operands, TensorProto.UINT8)
    back = ["y0", *operands[6:]]
    build.node("DequantizeLinear", back, TensorProto.FLOAT)
    model = small_model(build.nodes, build.feeds, build.outputs, build.constants, opset=13)
    compiled = bnn_compiler.compile_model(model)
    results = compiled.run(build.feeds)
    for name, expected in zip(build.outputs, run_onnx(model, build.feeds), strict=True):
        np.testing.assert_array_equal(results[name], expected)


def test_contradictions() -> None:
    build = ModelBuilder()
    operands = _conv(build, U8, U8)
    build.constants[operands[5]] = np.ones(5, U8)
    build.node("QLinearConv", operands, TensorProto.UINT8)
    model = small_model(build.nodes, build.feeds, build.outputs, build.constants, opset=13)
    with pytest.raises(ModelError, match=r"contradict|of shape \[5\]; one or 6 are expected"):
        import_onnx(model)


def test_sums_that_cannot_be_cut() -> None:
    build = ModelBuilder()
    data = build.feed(np.zeros((1, 1, 40, 40), U8))
    build.node("ConvInteger", [data, build.constant(np.full((1, 1, 40, 40), 255), U8)], TensorProto.INT32)
    model = small_model(build.nodes, build.feeds, build.outputs, build.constants, opset=13)
    with pytest.raises(UnsupportedOperatorError, match="ConvInteger node 'y0' sums so many products"):
        import_onnx(model)
