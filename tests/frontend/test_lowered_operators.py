"""Operators that become simpler standard ones, or are converted here, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, parse, run_onnx, run_relax

_X = "(float[2,3,4] x) => (float y)"


def _data(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _compare(text: str, opset: int, data: list[Array], *, atol: float = 0.0) -> None:
    model = parse(text, opset=opset)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    expected = run_onnx(model, {info.name: array for info, array in zip(model.graph.input, data, strict=True)})
    actual = run_relax(import_onnx(model).module, data)
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    "body",
    [
        "y = LpNormalization<axis = 1>(x)",
        "y = LpNormalization<p = 1>(x)",
        "y = MeanVarianceNormalization<axes = [0, 2]>(x)",
    ],
)
def test_normalisations(body: str, opset: int) -> None:
    data = _data((2, 3, 4))
    data[1, :, 2] = 0  # a norm of 0
    # Sums of a dozen squares of moderate numbers, and a division, in another order.
    _compare(f"g {_X} {{ {body} }}", opset, [data], atol=2e-6)


def test_mean_and_variance_far_from_zero() -> None:
    """mean(x²) - mean(x)² would lose all digits here."""
    # One rounding of the mean is 2^-12; the deviations are those of numbers that are spaced like that.
    _compare(f"g {_X} {{ y = MeanVarianceNormalization<axes = [2]>(x) }}", 13, [_data((2, 3, 4)) + 4096], atol=1e-3)


@pytest.mark.parametrize("axis", [1, -1])
def test_statistics_of_layer_normalization(axis: int) -> None:
    shape = [3, 4][axis if axis < 0 else axis - 1 :]
    text = f"g (float[2,3,4] x, float{shape} s, float{shape} b) => (float y, float m, float d)"
    data = [_data((2, 3, 4)), _data(tuple(shape)), _data(tuple(shape))]
    _compare(f"{text} {{ y, m, d = LayerNormalization<axis = {axis}>(x, s, b) }}", 17, data, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "y = OneHot(i, depth, values)",
        "y = OneHot<axis = 1>(i, depth, values)",
    ],
)
def test_one_hot(body: str) -> None:
    indices = np.asarray([[0, -1, 4], [5, -5, -6]])  # 5 and -6 are out of range: nowhere
    text = "g (int64[2,3] i) => (float y) <int64 depth = {5}, float[2] values = {2.0, 3.0}>"
    _compare(f"{text} {{ {body} }}", 13, [indices])


@pytest.mark.parametrize("attributes", ["", "<k = -2>", "<dtype = 7, k = 1>"])
def test_eye_like(attributes: str) -> None:
    kind = "int64" if "dtype" in attributes else "float"
    _compare(f"g (float[3,5] x) => ({kind} y) {{ y = EyeLike{attributes}(x) }}", 13, [_data((3, 5))])


@pytest.mark.parametrize("axis", ["", "<axis = 1>", "<axis = -1>"])
def test_compress(axis: str) -> None:
    text = f"g {_X} <bool[3] c = {{1, 0, 1}}> {{ y = Compress{axis}(x, c) }}"
    _compare(text, 13, [_data((2, 3, 4))])


@pytest.mark.parametrize(("mode", "first"), [("linear", [1, 3]), ("circular", [4, 3])])
def test_tensor_scatter(mode: str, first: list[int]) -> None:
    text = "g (float[2,2,5,3] past, float[2,2,2,3] new, int64[2] w) => (float y)"
    data = [_data((2, 2, 5, 3)), _data((2, 2, 2, 3)), np.asarray(first)]
    _compare(f'{text} {{ y = TensorScatter<mode = "{mode}">(past, new, w) }}', 24, data)


def test_mask_of_dropout() -> None:
    _compare("g (float[2,3] x) => (float y, bool m) { y, m = Dropout(x) }", 13, [_data((2, 3))])


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize(("inverse", "onesided"), [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("axis", [1, -2])
def test_dft(length: int, inverse: int, onesided: int, axis: int) -> None:
    parts = 1 if onesided and not inverse else 2
    shape = [2, length, 3, parts] if axis == 1 else [2, length, parts]
    text = f"g (float{shape} x) => (float y) <int64 axis = {{{axis}}}>"
    body = f'{{ y = DFT<inverse = {inverse}, onesided = {onesided}>(x, "", axis) }}'
    model = parse(f"{text} {body}", opset=20)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    data = _data(tuple(shape))
    complex_data = data[..., 0] + (1j * data[..., 1] if parts == 2 else 0)
    if onesided:
        values = np.fft.irfft(complex_data, axis=1) if inverse else np.fft.rfft(complex_data.real, axis=1)
    else:
        values = np.fft.ifft(complex_data, axis=1) if inverse else np.fft.fft(complex_data, axis=1)
    wanted = values[..., None] if inverse and onesided else np.stack([values.real, values.imag], -1)
    [actual] = run_relax(import_onnx(model).module, [data])
    # A sum of at most 18 products.
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5)


def test_stft() -> None:
    text = "g (float[2,20,1] x, float[8] w) => (float y) <int64 step = {4}> { y = STFT(x, step, w) }"
    _compare(text, 17, [_data((2, 20, 1)), _data((8,))], atol=1e-5)


@pytest.mark.parametrize("attributes", ["", "<strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 1]>"])
def test_col2im(attributes: str) -> None:
    text = "g (float[2,12,36] x) => (float y) <int64[2] image = {5, 10}, int64[2] block = {2, 2}>"
    # At most four numbers are added.
    _compare(f"{text} {{ y = Col2Im{attributes}(x, image, block) }}", 18, [_data((2, 12, 36))], atol=1e-6)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("attributes", ["strides = [2, 2]", "pads = [1, 1, 1, 1]", "dilations = [2, 1], ceil_mode = 1"])
def test_positions_of_a_max_pool(attributes: str, order: int) -> None:
    text = "g (float[2,2,6,5] x) => (float y, int64 i)"
    body = f"{{ y, i = MaxPool<kernel_shape = [3, 2], storage_order = {order}, {attributes}>(x) }}"
    _compare(f"{text} {body}", 12, [_data((2, 2, 6, 5))])


def test_max_unpool_in_a_given_shape() -> None:
    text = "g (float[1,1,2,2] x, int64[1,1,2,2] i) => (float y) <int64[4] shape = {1, 1, 5, 5}>"
    data = [_data((1, 1, 2, 2)), np.asarray([5, 7, 13, 15]).reshape(1, 1, 2, 2)]
    _compare(f"{text} {{ y = MaxUnpool<kernel_shape = [2, 2], strides = [2, 2]>(x, i, shape) }}", 11, data)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_determinants(size: int) -> None:
    # Up to 24 products of four moderate numbers.
    _compare(f"g (float[5,{size},{size}] x) => (float y) {{ y = Det(x) }}", 11, [_data((5, size, size))], atol=1e-4)


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("kind", ["uint8", "uint32", "uint64"])
def test_shifts_by_any_amount(direction: str, kind: str) -> None:
    bits = np.dtype(kind).itemsize * 8
    data = [np.full(6, np.iinfo(kind).max, kind), np.asarray([0, 1, bits - 1, bits, bits + 1, 200], kind)]
    text = f"g ({kind}[6] x, {kind}[6] n) => ({kind}[6] y)"
    model = parse(f'{text} {{ y = BitShift<direction = "{direction}">(x, n) }}', opset=11)
    [actual] = run_relax(import_onnx(model).module, data)
    shift = [
        (int(x) << int(n)) % 2**bits if direction == "LEFT" else int(x) >> int(n) for x, n in zip(*data, strict=True)
    ]
    np.testing.assert_array_equal(actual, np.asarray(shift, kind))


@pytest.mark.parametrize("kinds", ["float int64", "int32 float", "int64 int64", "float float"])
def test_powers(kinds: str) -> None:
    base, exponent = kinds.split()
    data = [np.asarray([1, 2, 3, 5]), np.asarray([4, 5, 6, 2])]
    typed = [
        array.astype("float32" if kind == "float" else kind) for array, kind in zip(data, kinds.split(), strict=True)
    ]
    _compare(f"g ({base}[4] x, {exponent}[4] e) => ({base} y) {{ y = Pow(x, e) }}", 15, typed)


@pytest.mark.parametrize("attributes", ["", "<reverse = 1>", "<exclusive = 1>", "<exclusive = 1, reverse = 1>"])
def test_cumulative_products(attributes: str) -> None:
    text = "g (float[3,4] x) => (float y) <int64 axis = {1}>"
    # Two roundings of a product of four moderate numbers.
    _compare(f"{text} {{ y = CumProd{attributes}(x, axis) }}", 26, [_data((3, 4))], atol=1e-5)


@pytest.mark.parametrize("attributes", ["", "<detect_negative = 0>", "<detect_positive = 0>"])
def test_is_inf(attributes: str) -> None:
    data = np.asarray([np.inf, -np.inf, np.nan, 0, 1], np.float32)
    _compare(f"g (float[5] x) => (bool y) {{ y = IsInf{attributes}(x) }}", 13, [data])


def test_cosh() -> None:
    data = np.asarray([0, 1e-3, -1, 20, -88, 89, 90, np.inf, np.nan], np.float32)
    [actual] = run_relax(import_onnx(parse("g (float[9] x) => (float[9] y) { y = Cosh(x) }")).module, [data])
    with np.errstate(over="ignore"):
        # exp is right to two roundings, and half of its error counts twice.
        np.testing.assert_allclose(actual, np.cosh(data), rtol=1e-6)


def test_bit_cast() -> None:
    data = np.asarray([1.5, -0.0, np.inf, 3e-45], np.float32)
    _compare("g (float[4] x) => (int32 y) { y = BitCast<to = 6>(x) }", 26, [data])


def test_tables_are_read_in_bounds() -> None:
    """ONNX Runtime refuses such indices when it runs; TVM's own conversion would read beyond the table."""
    model = parse("g (int64[3] i) => (float[3] y) <float[2] table = {5.0, 6.0}> { y = Gather(table, i) }")
    [actual] = run_relax(import_onnx(model).module, [np.asarray([2**40, -1, -(2**40)])])
    np.testing.assert_array_equal(actual, [6, 6, 5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(int64[2] i, int64 d) => (float[2,n] y) <float[2] v = {0.0, 1.0}> { y = OneHot(i, d, v) }", "depth"),
        ("(float[3] x, bool[3] c) => (float[2] y) { y = Compress(x, c) }", "condition is not a constant"),
        ("(int64[2] s) => (float[3,4] y) { y = ConstantOfShape(s) }", "depends on data|not known before run time"),
        ("(int64[1] s) => (float[0] y, int64[1] n) { y = ConstantOfShape(s) n = Neg(s) }", "has no elements"),
        ("(float[5,5] x) => (float y) { y = Det(x) }", "at most 4"),
    ],
)
def test_what_depends_on_data_is_refused(text: str, message: str) -> None:
    with pytest.raises(UnsupportedOperatorError, match=message):
        import_onnx(parse(f"g {text}", opset=13))


def test_sinh() -> None:
    data = np.asarray([0, 1e-3, -1e-20, 0.99, 1.01, -3, 20, -88, 89, 90, -np.inf, np.nan], np.float32)
    [actual] = run_relax(import_onnx(parse("g (float[12] x) => (float[12] y) { y = Sinh(x) }")).module, [data])
    with np.errstate(over="ignore"):
        # As for cosh; the difference is at least half of its first term where it is taken.
        np.testing.assert_allclose(actual, np.sinh(data), rtol=2e-6)


@pytest.mark.parametrize("values", [(5.0, 3.0), (-5.0, 3.0), (5.0, -3.0), (2.0, -np.inf), (-2.0, np.inf), (0.0, -1.0)])
def test_remainders_of_floats(values: tuple[float, float]) -> None:
    model = parse("g (float[1] x, float[1] d) => (float[1] y) { y = Mod(x, d) }", opset=28)
    data = [np.asarray([value], np.float32) for value in values]
    [actual] = run_relax(import_onnx(model).module, data)
    np.testing.assert_array_equal(actual, np.asarray([values[0] % values[1]], np.float32))


def test_space_to_depth_with_channels_first() -> None:
    model = parse(
        'g (float[2,3,4,6] x) => (float[2,12,2,3] y) { y = SpaceToDepth<blocksize = 2, mode = "CRD">(x) }', opset=28
    )
    data = _data((2, 3, 4, 6))
    [actual] = run_relax(import_onnx(model).module, [data])
    wanted = data.reshape(2, 3, 2, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("axes", [True, False])
def test_reductions_of_booleans(operator: str, axes: bool) -> None:
    data = np.asarray([[True, False, True], [True, False, False]])
    given = "<int64[1] axes = {0}>" if axes else ""
    call = f"{operator}<keepdims = 0>(x{', axes' if axes else ''})"
    _compare(f"g (bool[2,3] x) => (bool y) {given} {{ y = {call} }}", 20, [data])


def test_equal_numbers_have_no_variance() -> None:
    _compare(
        "g (float[2,3] x) => (float y) { y = MeanVarianceNormalization<axes = [1]>(x) }",
        13,
        [np.ones((2, 3), np.float32)],
    )


@pytest.mark.parametrize("call", ["NonZero(x)", "Unique(x)"])
def test_shapes_that_depend_on_data(call: str) -> None:
    kind = "int64" if "NonZero" in call else "float"
    with pytest.raises(UnsupportedOperatorError, match="the shape of its output depends on data"):
        import_onnx(parse(f"g (float[4] x) => ({kind}[n] y) {{ y = {call} }}", opset=13))


@pytest.mark.parametrize(
    ("attributes", "mask"),
    [("pads = [1, 0, 1, 2], strides = [2, 1]", False), ("dilations = [1, 2], offset_group = 2, group = 2", True)],
)
def test_deformable_convolutions(attributes: str, mask: bool) -> None:
    groups = 2 if mask else 1
    spans = (4, 4) if mask else (3, 7)
    shapes = [(2, 4, 5, 6), (6, 4 // groups, 2, 2), (2, groups * 8, *spans), (6,), (2, groups * 4, *spans)]
    names = ["x", "w", "o", "b", "m"][: 5 if mask else 4]
    operands = ", ".join(f"float{list(shape)} {name}" for name, shape in zip(names, shapes, strict=False))
    text = f"({operands}) => (float y) {{ y = DeformConv<{attributes}>({', '.join(names)}) }}"
    data = [_data(shape) * (2 if name == "o" else 1) for name, shape in zip(names, shapes, strict=False)]
    # Sums of at most 16 products of four factors.
    _compare(f"g {text}", 19, data, atol=2e-5)
