"""NaN, infinities, zeros of both signs and subnormal numbers through every float operator, as in ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime
import pytest

import bnn_compiler

Array = npt.NDArray[Any]

_SPECIAL = (
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 0.5, -0.5),
    *(3.4e38, -3.4e38, 2.5, -2.5, 7.0, -7.0, 100.0, -100.0, 1e-7),
)
#: Every pair of special values, and a length that is no multiple of any vector.
_SHAPE = (len(_SPECIAL), len(_SPECIAL) + 1)
_TYPES = {"float32": "float", "float64": "double", "float16": "float16"}

_ELEMENTWISE = (
    *("Relu(x)", "Sign(x)", "Abs(x)", "Neg(x)", "Floor(x)", "Ceil(x)", "Round(x)", "Sqrt(x)", "Reciprocal(x)"),
    *("Exp(x)", "Log(x)", "Tanh(x)", "Sigmoid(x)", "Sin(x)", "Cos(x)", "Identity(x)"),
    *("Add(x, z)", "Sub(x, z)", "Mul(x, z)", "Div(x, z)", "Max(x, z)", "Min(x, z)", "Pow(x, z)", "Mod<fmod = 1>(x, z)"),
    *("Max(x, zero)", "Max(one, x)", "Min(x, one)", "Max(x, nan)", "Min(nan, x)", "Max(x, infinity)", "Max(x)"),
    *("Max(x, one, z)", "Min(one, z, x)", "Sum(x, z, x)", "Mean(x, z)"),
    *("Clip(x)", "Clip(x, zero)", "Clip(x, , one)", "Clip(x, zero, one)", "Clip(x, one, zero)", "Clip(x, nan, one)"),
    *("Clip(x, zero, nan)", "Pow(x, two)", "Pow(x, zero)", "Pow(two, x)", "Mul(x, zero)", "Div(x, zero)"),
    *("Sub(x, x)", "Div(x, x)", "Div(zero, x)", "Add(x, zero)", "Add(zero, x)", "Sub(x, zero)"),
)
_COMPARISONS = ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
#: ONNX Runtime has them in single precision alone.
_SINGLE = (
    *("Elu(x)", "Selu(x)", "LeakyRelu(x)", "ThresholdedRelu(x)", "ThresholdedRelu<alpha = -1.0>(x)", "HardSwish(x)"),
    *("HardSigmoid(x)", "Softsign(x)", "Erf(x)", "Shrink(x)", "PRelu(x, z)", "PRelu(x, infinity)", "PRelu(x, zero)"),
    *("Gelu(x)", 'Gelu<approximate = "tanh">(x)', "IsInf(x)", "IsNaN(x)"),
    *("Celu(x)", "Celu<alpha = 0.7>(x)", "Celu<alpha = -0.5>(x)"),
)
_RTOL = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3}


def _model(dtype: str, calls: tuple[str, ...], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A graph with one output per call, y0, y1 …, of inputs x and z."""
    type_name, size = _TYPES[dtype], ",".join(map(str, shape))
    results = [("bool" if call.startswith((*_COMPARISONS, "Is")) else type_name) for call in calls]
    outputs = ", ".join(f"{result}[{size}] y{i}" for i, result in enumerate(results))
    nodes = " ".join(f"y{i} = {call}" for i, call in enumerate(calls))
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g ({type_name}[{size}] x, {type_name}[{size}] z) => ({outputs}) {{ {nodes} }}"""
    )
    constants = {"zero": 0, "one": 1, "two": 2, "nan": np.nan, "infinity": np.inf}
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & constants.keys()):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(constants[name], dtype), name))
    return model


def _onnx_runtime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[dict[str, Array]]:
    """What it gives without and with its optimisations."""
    levels = onnxruntime.GraphOptimizationLevel
    results = []
    for level in (levels.ORT_DISABLE_ALL, levels.ORT_ENABLE_ALL):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results.append(dict(zip([output.name for output in model.graph.output], session.run(None, feeds), strict=True)))
    return results


def _is_same(actual: Array, expected: Array, dtype: str) -> Array:
    """Where both are NaN, equal, or nearly so: functions of the C library differ in the last bits.

    Absolute: GELU near −5 is what is left of 1 − 1, and float32 subnormals are flushed to 0 by the polynomials.
    """
    rtol = _RTOL[dtype]
    if actual.dtype == bool:
        return np.asarray(actual == expected)
    with np.errstate(all="ignore"):
        wide, other = actual.astype(np.float64), expected.astype(np.float64)
        near = np.abs(wide - other) <= rtol * np.abs(other) + rtol * 0.05
        return np.asarray((actual == expected) | (np.isnan(wide) & np.isnan(other)) | (np.isfinite(wide) & near))


@functools.cache
def _pairs(dtype: str) -> dict[str, Array]:
    with np.errstate(all="ignore"):
        x = np.resize(np.repeat(np.asarray(_SPECIAL), len(_SPECIAL)), _SHAPE).astype(dtype)
        z = np.resize(np.tile(np.asarray(_SPECIAL), len(_SPECIAL)), _SHAPE).astype(dtype)
    return {"x": x, "z": z}


def _check(dtype: str, calls: tuple[str, ...], target: str = "native") -> None:
    model, feeds = _model(dtype, calls, _SHAPE), _pairs(dtype)
    actual = bnn_compiler.compile_model(model, target=target, verify=False).run(feeds)
    plain, optimised = _onnx_runtime(model, feeds)
    wrong = {}
    for i, call in enumerate(calls):
        same = _is_same(actual[f"y{i}"], plain[f"y{i}"], dtype) | _is_same(actual[f"y{i}"], optimised[f"y{i}"], dtype)
        if not same.all():
            place = tuple(np.argwhere(~same)[0])
            wrong[call] = [float(array[place]) for array in (*feeds.values(), plain[f"y{i}"], actual[f"y{i}"])]
    assert not wrong, "x, z, ONNX Runtime, ours"


_CALLS = (*_ELEMENTWISE, *(f"{name}(x, z)" for name in _COMPARISONS), *_SINGLE)


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=x86-64", "llvm -mcpu=haswell"])
def test_single_precision(target: str) -> None:
    _check("float32", _CALLS, target)


def test_folded_in_a_chain() -> None:
    """Differences and quotients of a value that a kernel has just computed."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[20,21] x) =>
        (float[20,21] a, float[20,21] b, float[20,21] c) <float zero = {0.0}> {
        h = Relu(x) a = Sub(h, h) i = Neg(h) b = Div(zero, i) j = Floor(x) k = Add(j, zero)
        c = Reciprocal(k) }"""
    )
    x = _pairs("float32")["x"]
    actual, [expected, _] = (
        bnn_compiler.compile_model(model, verify=False).run({"x": x}),
        _onnx_runtime(model, {"x": x}),
    )
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value)


def test_double_precision() -> None:
    """ONNX Runtime has no mean of doubles."""
    _check("float64", tuple(call for call in _ELEMENTWISE if call != "Mean(x, z)"))


def test_half_precision() -> None:
    """Computed in single precision: an absent bound of Clip is float32's. ONNX Runtime's Sign makes 0 of NaN."""
    other = ("Mod", "Mean", "Sum", "Sign", "Clip(x)", "Clip(x, zero)", "Clip(x, , one)")
    _check("float16", tuple(call for call in _ELEMENTWISE if not call.startswith(other)))


_BLOCK = (5, 9, 12)


def _samples(shape: tuple[int, ...]) -> list[Array]:
    """Few and many NaN, infinities, both, and tensors of nothing else."""
    rng = np.random.default_rng(0)
    mixes = [((np.nan,), 0.1), ((np.nan,), 0.5), ((np.inf, -np.inf), 0.5), ((np.nan, np.inf, -np.inf, 0.0, -0.0), 0.4)]
    mixes += [((special,), 1.0) for special in (np.nan, -np.inf, np.inf)]
    samples = []
    for special, share in mixes:
        x = rng.standard_normal(shape).astype(np.float32)
        chosen = rng.random(shape) < share
        x[chosen] = rng.choice(special, np.count_nonzero(chosen))
        samples.append(x)
    return samples


def _of_x(nodes: str, shape: tuple[int, ...], outputs: str, constants: str = "") -> onnx.ModelProto:
    size = ",".join(map(str, shape))
    return onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[{size}] x) => ({outputs}) {f"<{constants}>" if constants else ""} {{ {nodes} }}"""
    )


@pytest.mark.parametrize(
    ("nodes", "outputs", "constants"),
    [
        pytest.param(
            """a = ArgMax<axis = 1>(x) b = ArgMax<axis = 2, select_last_index = 1>(x) c = ArgMin<axis = 0>(x)
            d = ArgMin<axis = 1, select_last_index = 1, keepdims = 0>(x)""",
            "int64[5,1,12] a, int64[5,9,1] b, int64[1,9,12] c, int64[5,12] d",
            "",
            id="indices",
        ),
        pytest.param(
            "a, i = TopK(x, k) b, j = TopK<largest = 0, axis = 1>(x, k)",
            "float[5,9,4] a, int64[5,9,4] i, float[5,4,12] b, int64[5,4,12] j",
            "int64[1] k = {4}",
            id="sorts",
        ),
        pytest.param(
            "a = Softmax(x) b = Softmax<axis = 1>(x) c = LogSoftmax(x) d = LogSoftmax<axis = 0>(x)",
            "float[5,9,12] a, float[5,9,12] b, float[5,9,12] c, float[5,9,12] d",
            "",
            id="softmax",
        ),
        pytest.param(
            """a = ReduceMax(x, first) b = ReduceMin(x, first) c = ReduceSum(x, last) d = ReduceMean(x, last)
            e = ReduceL2(x, last) f = ReduceProd(x, last)""",
            "float[1,9,12] a, float[1,9,12] b, float[5,9,1] c, float[5,9,1] d, float[5,9,1] e, float[5,9,1] f",
            "int64[1] first = {0}, int64[1] last = {2}",
            id="reductions",
        ),
    ],
)
def test_along_an_axis(nodes: str, outputs: str, constants: str) -> None:
    model = _of_x(nodes, _BLOCK, outputs, constants)
    compiled = bnn_compiler.compile_model(model, verify=False)
    for x in _samples(_BLOCK):
        actual = compiled.run({"x": x})
        for expected in _onnx_runtime(model, {"x": x})[:1]:
            for name, value in expected.items():
                assert _is_same(actual[name], value, "float32").all(), (name, x[0, 0])


def test_extremes_begin_with_the_first_element() -> None:
    """By any axes: NaN where the first element is, else the extreme of the numbers; ONNX Runtime's own rule varies."""
    axes = {"a": (2,), "b": (1,), "c": (0, 1, 2), "d": (1, 2)}
    nodes = " ".join(f"{name} = ReduceMax(x, {name}x) {name}n = ReduceMin(x, {name}x)" for name in axes)
    shapes = {name: tuple(1 if i in over else size for i, size in enumerate(_BLOCK)) for name, over in axes.items()}
    outputs = ", ".join(f"float[{','.join(map(str, s))}] {n}{k}" for n, s in shapes.items() for k in ("", "n"))
    constants = ", ".join(f"int64[{len(over)}] {n}x = {{{','.join(map(str, over))}}}" for n, over in axes.items())
    compiled = bnn_compiler.compile_model(_of_x(nodes, _BLOCK, outputs, constants), verify=False)
    for x in _samples(_BLOCK):
        actual = compiled.run({"x": x})
        for name, over in axes.items():
            start = x[tuple(slice(0, 1) if i in over else slice(None) for i in range(3))]
            for extreme, fill, key in ((np.max, -np.inf, name), (np.min, np.inf, f"{name}n")):
                numbers = extreme(np.where(np.isnan(x), fill, x), axis=over, keepdims=True)
                np.testing.assert_array_equal(actual[key], np.where(np.isnan(start), start, numbers))


def test_log_sum_exp_of_infinities() -> None:
    model = _of_x(
        "a = ReduceLogSumExp(x, last) b = ReduceLogSumExp(x, two) c = ReduceLogSumExp<keepdims = 0>(x)",
        _BLOCK,
        "float[5,9,1] a, float[1,9,1] b, float c",
        "int64[1] last = {2}, int64[2] two = {0, 2}",
    )
    compiled = bnn_compiler.compile_model(model, verify=False)
    for x in _samples(_BLOCK):
        if np.isnan(x).any() and np.isinf(x).any():
            continue  # ONNX Runtime gives an infinite maximum, whatever else there is; or NaN, by its place
        actual, (expected, _) = compiled.run({"x": x}), _onnx_runtime(model, {"x": x})
        for name, value in expected.items():
            assert _is_same(actual[name], value, "float32").all(), name


def _windows(x: Array, kernel: int, stride: int, pad: int) -> Array:
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=np.finfo(np.float32).min)
    views = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))
    return np.asarray(views[:, :, ::stride, ::stride])


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=x86-64"])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad"),
    [(37, 3, 2, 1), (16, 2, 2, 0), (14, 3, 1, 1), (19, 3, 3, 1), (5, 3, 1, 1), (40, 5, 1, 2), (9, 4, 2, 1)],
)
def test_max_pools_keep_nan(size: int, kernel: int, stride: int, pad: int, target: str) -> None:
    """A window that holds NaN gives NaN; ONNX Runtime's only by its place, but from no other window."""
    shape = (2, 3, size, size)
    out = (size + 2 * pad - kernel) // stride + 1
    pool = (
        f"MaxPool<kernel_shape = [{kernel},{kernel}], strides = [{stride},{stride}], pads = [{pad},{pad},{pad},{pad}]>"
    )
    model = _of_x(f"y = {pool}(x)", shape, f"float[2,3,{out},{out}] y")
    compiled = bnn_compiler.compile_model(model, target=target, verify=False)
    for x in _samples(shape):
        actual, (expected, _) = compiled.run({"x": x})["y"], _onnx_runtime(model, {"x": x})
        windows = _windows(x, kernel, stride, pad)
        holds_nan = np.isnan(windows).any(axis=(-1, -2))
        assert np.isnan(actual[holds_nan]).all()
        # Of −∞ alone, both give −∞ or what they pad with, by the kernel.
        lowest = np.finfo(np.float32).min
        ours, theirs = (np.maximum(result[~holds_nan], lowest) for result in (actual, expected["y"]))
        np.testing.assert_array_equal(ours, np.maximum(windows.max(axis=(-1, -2))[~holds_nan], lowest))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "operator", ["Relu(s)", "Clip(s, low, high)", "Max(s, low)", "Min(high, s)", "PRelu(s, slope)"]
)
def test_residuals_keep_nan(operator: str) -> None:
    """Behind a binary convolution, in its kernel; the residual holds NaN, infinities and zeros of both signs."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[1,64,6,6] x, float[1,64,6,6] r) => (float[1,64,6,6] y) <float low = {{0}}, float high = {{6}}> {{
            b = Sign(x) c = Conv<pads = [1,1,1,1]>(b, w) s = Add(c, r) y = {operator} }}"""
    )
    weight = rng.choice(np.asarray([-1, 1], np.float32), (64, 64, 3, 3))
    slope = rng.standard_normal((64, 1, 1)).astype(np.float32)
    for name, value in {"w": weight, "slope": slope}.items():
        if name in {read for node in model.graph.node for read in node.input}:
            model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    compiled = bnn_compiler.compile_model(model)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    x = rng.standard_normal((1, 64, 6, 6)).astype(np.float32)
    for r in _samples((1, 64, 6, 6)):
        (expected, _) = _onnx_runtime(model, {"x": x, "r": r})
        np.testing.assert_array_equal(compiled.run({"x": x, "r": r})["y"], expected["y"])


@pytest.mark.parametrize("target", ["native", "llvm -mcpu=x86-64", "llvm -mcpu=haswell"])
def test_a_bit_takes_nan_as_minus_one(target: str) -> None:
    """What the README says of Sign, where ONNX Runtime would make NaN of the whole window."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 17]> g (float[1,70,5,13] x) => (float[1,9,5,13] y) {
            b = Sign(x) y = Conv<pads = [1,1,1,1]>(b, w) }"""
    )
    rng = np.random.default_rng(0)
    weight = rng.choice(np.asarray([-1, 1], np.float32), (9, 70, 3, 3))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compiled = bnn_compiler.compile_model(model, target=target)
    assert [layer["status"] for layer in compiled.report["layers"]] == ["binary"]
    for x in _samples((1, 70, 5, 13)):
        x[x == 0] = 1
        replaced = np.where(np.isnan(x), np.float32(-1), x)
        np.testing.assert_array_equal(compiled.run({"x": x})["y"], compiled.run({"x": replaced})["y"])
        (expected, _) = _onnx_runtime(model, {"x": replaced})
        np.testing.assert_array_equal(compiled.run({"x": x})["y"], expected["y"])
