"""The float64 network between discontinuities: numbers against NumPy, and where it is cut."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from bnn_compiler.verification.float64_model import SUFFIX, in_float64
from bnn_compiler.verification.reference import Array, Reference, expose
from tests.frontend.onnx_text import parse

RNG = np.random.default_rng(4)
CONSTANTS: dict[str, Array] = {
    "w": RNG.standard_normal((6, 4, 3, 3)).astype(np.float32),
    "g": RNG.standard_normal((6, 2, 3, 3)).astype(np.float32),
    "b": RNG.standard_normal(6).astype(np.float32),
    "slope": RNG.standard_normal((4, 1, 1)).astype(np.float32),
    "five": np.asarray(0.5, np.float32),
}
BODIES = {
    "conv": "t = Conv<pads = [1, 0, 1, 2], strides = [2, 1], dilations = [1, 2]>(x, w, b)",
    "grouped conv": "t = Conv<group = 2>(x, g)",
    "leaky relu": "t = LeakyRelu<alpha = 0.3>(x)",
    "prelu": "t = PRelu(x, slope)",
    "hard sigmoid": "t = HardSigmoid(x)",
    "mean of an image": "t = GlobalAveragePool(x)",
    "softmax": "a = Mul(x, five) t = Softmax<axis = 1>(a)",
    "behind a sign": "s = Sign(x) t = Conv(s, w, b)",
    "behind a comparison": "c = Greater(x, five) t = Where(c, x, five)",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("opset", [9, 17, 21])
def test_the_same_but_for_float32(name: str, opset: int) -> None:
    model = parse(f"g (float[2,4,7,9] x) => (float t) {{ {BODIES[name]} }}", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in CONSTANTS.items())
    network = in_float64(model, ["t"])
    assert bool(network.forced) == ("behind" in name)
    x = RNG.standard_normal((2, 4, 7, 9)).astype(np.float32)
    cut = [name for name in network.forced if name == "s"]
    values = {"x": x, **Reference(expose(model, cut), optimise=False).run({"x": x})}
    if "c" in network.forced:
        values["c"] = x > CONSTANTS["five"]
    wide = Reference(network.model, optimise=False).run({"x": x, **{name: values[name] for name in network.forced}})
    result = wide["t" + SUFFIX]
    assert result.dtype == np.float64
    # 36 products of a few units in float32; the float64 result is no rounded copy of it.
    error = np.abs(result - values["t"]).max()
    assert error < 36 * 8 * 2.0**-24
    assert error > 0 or "comparison" in name
    assert network.imprecise == frozenset()


def test_what_has_no_float64_kernel_is_named() -> None:
    model = parse(
        "g (float[1,4,8,8] x) => (float[1,4,4,4] t) {"
        "p = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x) t = Neg(p) }"
    )
    assert in_float64(model, ["t"]).imprecise == {"p", "t"}


def test_a_convolution_by_hand() -> None:
    model = parse("g (float[1,4,5,5] x) => (float[1,6,3,3] t) { t = Conv(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(CONSTANTS["w"], "w"))
    x = RNG.standard_normal((1, 4, 5, 5)).astype(np.float32)
    result = Reference(in_float64(model, ["t"]).model).run({"x": x})["t" + SUFFIX]
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), (2, 3))
    expected = np.einsum("ncyxij,ocij->noyx", windows, CONSTANTS["w"].astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=0, atol=36 * 16 * 2.0**-53)
