"""Element-wise operators and pools that ONNX Runtime's quantiser writes, bit for bit over all pairs of codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array
from .small_models import ModelBuilder, small_model

F32 = np.float32
U8, I8 = np.uint8, np.int8
DOMAIN: dict[str, Any] = {"domain": "com.microsoft"}


def _all(dtype: type[np.integer[Any]]) -> Array:
    limits = np.iinfo(dtype)
    return np.arange(limits.min, limits.max + 1).astype(dtype)


@pytest.mark.parametrize("dtype", [U8, I8])
def test_sums_and_products(dtype: type[np.integer[Any]]) -> None:
    """All pairs; scales whose ratios are dyadic make ties. Both shapes of the second operand."""
    build = ModelBuilder()
    kind = TensorProto.UINT8 if dtype is U8 else TensorProto.INT8
    left, right = build.feed(np.repeat(_all(dtype), 256)), build.feed(np.tile(_all(dtype), 256))
    column, row = build.feed(_all(dtype).reshape(256, 1)), build.feed(_all(dtype))
    for scales, zeros in (
        ((0.02, 0.03, 0.04), (3, 100, 7)),
        ((0.25, 0.5, 1.0), (0, 1, 2)),
        ((0.1, 0.1, 0.2), (0, 0, 0)),
    ):
        s, z = [build.constant(scale, F32) for scale in scales], [build.constant(zero, dtype) for zero in zeros]
        for operator in ("QLinearAdd", "QLinearMul"):
            for a, b in ((left, right), (column, row), (row, column)):
                build.node(operator, [a, s[0], z[0], b, s[1], z[1], s[2], z[2]], kind, **DOMAIN)
    build.check()


def test_tables_moves_and_pools() -> None:
    build = ModelBuilder()
    for dtype, kind in ((U8, TensorProto.UINT8), (I8, TensorProto.INT8)):
        codes = build.feed(_all(dtype).reshape(2, 4, 8, 4))
        other = build.feed(build.codes(dtype, (2, 4, 8, 4)))
        s, z = build.constant(0.1, F32), build.constant(5, dtype)
        t, w = build.constant(0.07, F32), build.constant(20, dtype)
        build.node("QLinearLeakyRelu", [codes, s, z, t, w], kind, alpha=0.3, **DOMAIN)
        build.node("QLinearSigmoid", [codes, s, z, build.constant(1 / 256, F32), z], kind, **DOMAIN)
        build.node("QLinearConcat", [t, w, codes, s, z, other, t, w], kind, axis=1, **DOMAIN)
        build.node("QLinearGlobalAveragePool", [codes, s, z, t, w], kind, **DOMAIN)
        mask = build.feed(build.rng.integers(0, 2, (2, 4, 8, 4)).astype(bool))
        build.node("QLinearWhere", [mask, codes, s, z, other, t, w, s, w], kind, **DOMAIN)
    build.check()


def test_what_is_refused() -> None:
    """Other operators of the domain, by name; parameters that must be constants."""
    build = ModelBuilder()
    s, z = build.constant(0.1, F32), build.constant(5, U8)
    build.node("QLinearSoftmax", [build.feed(_all(U8)), s, z, s, z], TensorProto.UINT8, axis=0, opset=13, **DOMAIN)
    model = small_model(build.nodes, build.feeds, build.outputs, build.constants, opset=13)
    with pytest.raises(UnsupportedOperatorError, match=r"com\.microsoft.*except QGemm, QLinearAdd"):
        import_onnx(model)
    build = ModelBuilder()
    z = build.constant(5, U8)
    s = build.feed(np.asarray(0.1, F32))
    build.node("QLinearSigmoid", [build.feed(_all(U8)), s, z, s, z], TensorProto.UINT8, **DOMAIN)
    model = small_model(build.nodes, build.feeds, build.outputs, build.constants, opset=13)
    with pytest.raises(UnsupportedOperatorError, match="its scales and zero points are not constants"):
        import_onnx(model)
