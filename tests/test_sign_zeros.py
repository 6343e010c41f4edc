"""What becomes of ``Sign(0)``: kept where 0 is common, +1 where it is an accident; one rule for all its readers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnn_compiler
from bnn_compiler.errors import VerificationError
from bnn_compiler.verification.reference import Reference, take_zero_as_plus_one
from tests.frontend.onnx_text import Array, parse, run_onnx

RNG = np.random.default_rng(0)


def signs(*shape: int) -> Array:
    return RNG.choice(np.asarray([-1, 1], np.float32), shape)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS: Mapping[str, Array] = {
    "w": signs(4, 8, 3, 3),
    "v": signs(8, 8, 3, 3),
    "w5": signs(5, 7, 3, 3),
    "v7": signs(7, 7, 3, 3),
    "scaled": signs(8, 8, 3, 3) * np.float32(0.3),
    "real": normal(8, 8, 3, 3),
    "up": signs(8, 8, 2, 2),
    "up_real": normal(8, 8, 2, 2),
    "bias": normal(8, 1, 1),
    "half": np.asarray([0.5] * 8, np.float32).reshape(8, 1, 1),
    "gamma": np.abs(normal(8)) + np.float32(0.5),
    "beta": normal(8),
    "one_zero": np.where(np.arange(8) == 3, 0, normal(8)).astype(np.float32),
    "zeros": np.zeros(8, np.float32),
    "ones": np.ones(8, np.float32),
    "three": np.asarray(3, np.float32),
    "one": np.asarray(1, np.float32),
    "tenth": np.asarray(0.1, np.float32),
    "third": np.asarray(1 / 3, np.float32),
    "mask": RNG.integers(0, 2, (8, 1, 1)).astype(np.float32),
    "order": np.asarray([3, -1, 0, 2, 7, 1, 5, 0]),
    "ring": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    "channels": np.asarray([0, 0, 0, 0, 0, 2, 0, 0]),
    "few": np.asarray([0, 6], np.int64),
    "axis1": np.asarray([1], np.int64),
    "map_of_zeros": np.zeros((1, 2, 8, 8), np.float32),
    "zero_point": np.asarray(10, np.uint8),
    "by_rows": np.asarray([1, 8, 4, 9], np.int64),
    "doubled": np.asarray([1, 1, 2, 2], np.float32),
}
INPUT = "(float[1,8,8,8] x)"

KEPT = {
    "sum of signs": "a = Sign(x) g = Gather<axis = 1>(a, order) c = Add(a, g) s = Sign(c)",
    "difference of signs": "a = Sign(x) g = Gather<axis = 1>(a, order) c = Sub(a, g) s = Sign(c)",
    "mean of signs": "a = Sign(x) m = AveragePool<kernel_shape = [2, 2]>(a) s = Sign(m)",
    "binary convolution": "a = Sign(x) c = Conv(a, v) s = Sign(c)",
    "scaled binary convolution": "a = Sign(x) c = Conv(a, scaled) s = Sign(c)",
    "product of convolutions": "a = Sign(x) c = Conv(a, v) d = Conv(a, scaled) p = Mul(c, d) s = Sign(p)",
    "clipped": "a = Sign(x) c = Conv(a, v) d = Clip(c, lower, upper) s = Sign(d)",
    "reshaped": "a = Sign(x) c = Conv(a, v) d = Reshape(c, by_rows) s = Sign(d)",
    "leaky": "a = Sign(x) c = Conv(a, v) d = LeakyRelu<alpha = 0.1>(c) s = Sign(d)",
    "tanh": "a = Sign(x) c = Conv(a, v) d = Tanh(c) s = Sign(d)",
    "negated": "a = Sign(x) c = Conv(a, v) d = Neg(c) s = Sign(d)",
    "shifted by an integer": "a = Sign(x) c = Conv(a, v) d = Sub(c, half) e = Sub(d, half) g = Add(e, one) s = Sign(g)",
    "sum of convolutions": "a = Sign(x) c = Conv(a, v) d = Conv(a, v) e = Add(c, d) s = Sign(e)",
    "transposed convolution": "a = Sign(x) c = ConvTranspose<strides = [2, 2]>(a, up) s = Sign(c)",
    "holes of a transposed convolution": "c = ConvTranspose<strides = [3, 3]>(x, up_real) s = Sign(c)",
    "pad through max-pool": "p = Pad(x, ring) m = MaxPool<kernel_shape = [2, 2]>(p) s = Sign(m)",
    "pad through average": "p = Pad(x, wide) m = AveragePool<kernel_shape = [2, 2]>(p) s = Sign(m)",
    "pad through product": "p = Pad(x, ring) m = Mul(p, p) d = Mul(m, x10) s = Sign(d)",
    "channels of zeros": "p = Concat<axis = 1>(x6, map_of_zeros) s = Sign(p)",
    "padded channels": "p = Pad(x6, channels) c = Mul(p, three) s = Sign(c)",
    "difference of ReLUs": (
        "n = Neg(x) a = Relu(n) g = Gather<axis = 1>(x, order) b = Relu(g) d = Sub(a, "
        "b) s = Sign(d)"
    ),
    "masked": "m = Mul(x, mask) s = Sign(m)",
    "x minus its ReLU": "r = Relu(x) h = Mul(r, tenth) d = Sub(x, r) e = Add(d, h) g = Sub(e, h) s = Sign(g)",
    "x minus its maximum": (
        "m = MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x) d = Sub(x, m) n = Neg(d) e = Sub(n, "
        "m) g = Add(e, m) s = Sign(g)"
    ),
    "rounded": "r = Round(x) s = Sign(r)",
    "quantised": "q = QuantizeLinear(x, third, zero_point) d = DequantizeLinear(q, third, zero_point) s = Sign(d)",
    "batch-norm that moves nothing": (
        "a = Sign(x) c = Conv(a, v) r = Neg(c) b = BatchNormalization(r, gamma, zeros, zeros, "
        "ones) s = Sign(b)"
    ),
    "batch-norm with a dead channel": (
        "c = Conv(x, real) b = BatchNormalization(c, one_zero, one_zero, zeros, "
        "ones) s = Sign(b)"
    ),
}  # fmt: skip
CHECKED = {
    "an input": "s = Sign(x)",
    "an input less an integer": "d = Sub(x, one) s = Sign(d)",
    "an input scaled and moved": "t = Transpose<perm = [0, 1, 3, 2]>(x) d = Mul(t, three) s = Sign(d)",
    "pooled": "m = MaxPool<kernel_shape = [2, 2]>(x) s = Sign(m)",
    "averaged": "m = AveragePool<kernel_shape = [2, 2]>(x) s = Sign(m)",
    "in front of a chain": "a = Sign(x) c = Conv(a, v) d = Sub(c, one) s = Sign(d)",
    "in front of a scaled chain": "a = Sign(x) c = Conv(a, scaled) d = Sub(c, tenth) e = Relu(d) s = Sign(x)",
}
PLUS = {
    "float convolution": "c = Conv(x, real) s = Sign(c)",
    "batch-norm": "c = Conv(x, real) b = BatchNormalization(c, gamma, beta, zeros, ones) s = Sign(b)",
    "residual": "a = Sign(x) c = Conv<pads = [1, 1, 1, 1]>(a, v) d = Add(c, x) s = Sign(d)",
    "sum of floats": "c = Conv(x, real) r = Relu(c) d = Conv(x, v) e = Add(r, d) s = Sign(e)",
    "ReLU and bias": "r = Relu(x) d = Add(r, bias) s = Sign(d)",
    "real weights on signs": "a = Sign(x) c = Conv(a, real) s = Sign(c)",
}
NEVER = {
    "batch-norm of integers": (
        "a = Sign(x) c = Conv(a, v) b = BatchNormalization(c, gamma, beta, zeros, ones) s = Sign(b)"
    ),
    "odd sums": (
        "a = Greater(x7, tenth) b = Cast<to = 1>(a) c = Mul(b, two) d = Sub(c, one) e = Conv(d, v7) s = Sign(e)"
    ),
}


def _model(body: str, weights: str = "w", inputs: str = INPUT, outputs: str = "y") -> onnx.ModelProto:
    head = f"""g {inputs} => ({", ".join(f"float {name}" for name in outputs.split())})
        <float lower = {{-5}}, float upper = {{5}}, float two = {{2}}, float x10 = {{-10}},
         int64[8] wide = {{0, 0, 2, 2, 0, 0, 2, 2}},
         int64[1] start = {{0}}, int64[1] six = {{6}}, int64[1] seven = {{7}}> {{
        """
    if "x6" in body:
        body = f"x6 = Slice(x, start, six, axis1) {body}"
    if "x7" in body:
        body = f"x7 = Slice(x, start, seven, axis1) {body}"
    model = parse(f"{head} {body} y = Conv(s, {weights}) }}")
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in WEIGHTS.items() if n in used)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


def _decided(compiled: bnn_compiler.CompiledNetwork) -> str:
    """Of the last Sign that anything was decided about."""
    decisions = [entry for entry in compiled.report["signs"] if entry["output"] == "s"]
    return decisions[-1]["zero"] if decisions else "never"


def _with_zeros(seed: int) -> Array:
    """Small integers, zeros of both signs among them."""
    numbers = np.asarray([-2, -1, -0.0, 0, 1, 2], np.float32)
    return np.random.default_rng(seed).choice(numbers, (1, 8, 8, 8))


@pytest.mark.parametrize("name", [*KEPT, *PLUS, *NEVER])
def test_as_onnx_runtime_has_it(name: str) -> None:
    """On ordinary inputs the compiled network gives a stock ONNX Runtime's integers, bit for bit."""
    body = (KEPT | PLUS | NEVER)[name]
    model = _model(body, "w5" if name == "odd sums" else "w")
    compiled = bnn_compiler.compile_model(model)
    assert _decided(compiled) == ("kept" if name in KEPT else "plus" if name in PLUS else "never")
    status = compiled.report["layers"][-1]["status"]
    assert status == ("binary_weight" if name in KEPT else "binary")
    x = np.random.default_rng(1).standard_normal((1, 8, 8, 8)).astype(np.float32)
    [expected] = run_onnx(model, {"x": x})
    np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected)


@pytest.mark.parametrize("name", CHECKED)
def test_zeros_of_the_input_are_looked_for_in_each_run(name: str) -> None:
    """Binary for measured numbers; with ONNX's zeros where there are any. Chains end in the layer that reads ``s``."""
    model = _model(CHECKED[name])
    compiled = bnn_compiler.compile_model(model)
    assert "checked" in {entry["zero"] for entry in compiled.report["signs"]}
    assert {layer["status"] for layer in compiled.report["layers"]} == {"binary"}
    [note] = [note for note in compiled.report["notes"] if note["code"] == "sign_zero_checked"]
    assert "takes another form" in note["detail"]
    measured = np.random.default_rng(1).standard_normal((1, 8, 8, 8)).astype(np.float32)
    one_zero = measured.copy()
    one_zero[0, 3, 4, 5] = 0
    for x in (measured, _with_zeros(1), one_zero, np.zeros_like(measured), measured):
        [expected] = run_onnx(model, {"x": x})
        np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected)


def test_a_zero_in_any_input_counts(tmp_path: Path) -> None:
    """Two inputs, one of doubles, two outputs; exported and loaded, on two threads, by kernel."""
    body = "e = Cast<to = 1>(z) a = Sign(e) b = Sign(x) c = Conv(a, v) t = Conv(b, v) d = Add(c, t) s = Sign(d)"
    model = _model(body, inputs="(float[1,8,8,8] x, double[1,8,8,8] z)", outputs="t y")
    compiled = bnn_compiler.compile_model(model)
    compiled.export(tmp_path / "model.so")
    loaded = bnn_compiler.load(tmp_path / "model.so", threads=2)
    x, z = RNG.standard_normal((2, 1, 8, 8, 8))
    for number, feed in enumerate(({"x": x, "z": z}, {"x": x, "z": z * (z > 0)}, {"x": x * (x > 0), "z": z})):
        typed = {"x": feed["x"].astype(np.float32), "z": feed["z"]}
        expected = dict(zip(("t", "y"), run_onnx(model, typed), strict=True))
        for network in (compiled, loaded):
            actual = network.run(typed)
            for output, value in expected.items():
                np.testing.assert_array_equal(actual[output], value, err_msg=f"{output} of {number}")


def test_without_a_place_to_choose_zeros_are_kept() -> None:
    """A network that calls TVM's own functions is no straight line: it has the form that is right for all inputs."""
    body = "s = Sign(x) t = ScatterND(x, at, rows)"
    model = _model(body, outputs="t y")
    rows = numpy_helper.from_array(np.full((1, 8, 8, 8), 2, np.float32), "rows")
    model.graph.initializer.extend([numpy_helper.from_array(np.zeros((1, 1), np.int64), "at"), rows])
    compiled = bnn_compiler.compile_model(model)
    assert _decided(compiled) == "kept"
    x = _with_zeros(1)
    expected = dict(zip(("t", "y"), run_onnx(model, {"x": x}), strict=True))
    for output, value in compiled.run({"x": x}).items():
        np.testing.assert_array_equal(value, expected[output])


def test_scales_that_onnx_runtime_moves_into_a_convolution() -> None:
    """Sums of integers that cancel are then no longer 0 there, but rounding noise: float64 says that both are right."""
    generator = np.random.default_rng(3)
    model = parse(
        "g (float[1,8,12,12] x) => (float[1,4,10,10] y) <float scale = {0.333}> "
        "{ c = Conv(x, v) b = Mul(c, scale) s = Sign(b) y = Conv(s, w) }"
    )
    for name, shape in (("w", (4, 8, 3, 3)), ("v", (8, 8, 1, 1))):
        values = generator.choice(np.asarray([-1, 1], np.float32), shape)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    verification = bnn_compiler.compile_model(model).report["verification"]
    assert verification is not None and verification["decided_in_float64"] is not None


def test_nan_in_front_of_a_sign_is_no_bug(tmp_path: Path) -> None:
    """Of the inputs that verification draws half are negative."""
    model = _model("a = Sqrt(x) d = Sub(a, tenth) s = Sign(d)")
    with pytest.raises(VerificationError, match="ONNX Runtime has NaN there, which a bit cannot hold"):
        bnn_compiler.compile_model(model)


def test_the_report_says_where_zero_comes_from() -> None:
    compiled = bnn_compiler.compile_model(_model(KEPT["masked"]))
    [entry] = compiled.report["signs"]
    assert (entry["input"], entry["zero"], entry["source"], entry["source_op"]) == ("m", "kept", "m", "Mul")
    [note] = compiled.report["notes"]
    assert note["code"] == "sign_zero_kept"
    assert "0 is common in 'm'" in note["detail"]
    assert "keeps 0, which is common in 'm' (Mul)" in compiled.report["layers"][-1]["detail"]


def test_plus_and_exact_overrule() -> None:
    """One rule for all Signs that layers read, whatever the analysis says."""
    for mode, zeros, status in (("plus", {"plus"}, "binary"), ("exact", {"kept"}, "binary_weight")):
        compiled = bnn_compiler.compile_model(_model(KEPT["binary convolution"]), sign_zero=mode)
        assert {entry["zero"] for entry in compiled.report["signs"]} == zeros
        assert {layer["status"] for layer in compiled.report["layers"]} == {status}


def test_a_sign_of_accidental_zeros_is_binary_for_what_follows() -> None:
    """±1 of 72 products, less 1, is odd: so is every later sum, and no Sign of them is ever 0."""
    body = "a = Sign(x) c = Conv(a, v) d = Sub(c, one) b = Sign(d) e = Conv(b, v) g = Sub(e, one) s = Sign(g)"
    compiled = bnn_compiler.compile_model(_model(body))
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"] * 3


GRAPHS = {
    "another sign of the same tensor": ("t y", "s = Sign(x) t = Sign(x)"),
    "an output, too": ("s y", "s = Sign(x)"),
    "behind a max-pool": ("y", "a = Sign(x) s = MaxPool<kernel_shape = [2, 2]>(a)"),
    "negated, permuted": ("y", "a = Sign(x) n = Neg(a) s = Gather<axis = 1>(n, order)"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_all_readers_see_the_same_sign(name: str) -> None:
    outputs, body = GRAPHS[name]
    model = _model(body, outputs=outputs)
    compiled = bnn_compiler.compile_model(model, sign_zero="plus")
    assert {note["code"] for note in compiled.report["notes"]} == {"sign_zero_taken_as_plus_one"}
    data = {"x": _with_zeros(1)}
    taken = [node.input[0] for node in model.graph.node if node.op_type == "Sign"]
    expected = Reference(take_zero_as_plus_one(model, taken)).run(data)
    actual = compiled.run(data)
    for output in expected:
        np.testing.assert_array_equal(actual[output], expected[output])


MOVES = ["s = Identity(p)", "s = Gather<axis = 1>(p, order)", "s = Transpose<perm = [0, 1, 3, 2]>(p)"]


@pytest.mark.parametrize(
    "body", [*(f"a = Sign(x) p = Pad(a, ring) {m}" for m in MOVES), "p = Pad(x, ring) s = Sign(p)"]
)
def test_zeros_of_a_pad_stay_zeros(body: str) -> None:
    model = _model(body)
    data = {"x": RNG.standard_normal((1, 8, 8, 8)).astype(np.float32)}
    [expected] = run_onnx(model, data)
    compiled = bnn_compiler.compile_model(model)
    # Gathered behind the pad, the frame is no layer's own: its zeros are a third value.
    assert compiled.report["layers"][-1]["status"] == ("binary_weight" if "Gather" in body else "binary")
    np.testing.assert_array_equal(compiled.run(data)["y"], expected)
