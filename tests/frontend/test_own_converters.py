"""Forms of operators that are converted here and not by TVM, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from bnn_compiler.constants import op_name
from bnn_compiler.driver import compile_model
from bnn_compiler.errors import UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx
from bnn_compiler.limits import Limits

from .onnx_text import parse, run_onnx, run_relax


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        ("y = Slice<starts = [1, -3], ends = [2, 9999], axes = [0, 1]>(x)", 9),
        ("y = Slice<starts = [0, 2], ends = [-1, 4]>(x)", 9),
        ("i = Constant<value = int64[3] {-1, 0, -5}>() y = Gather<axis = -1>(x, i)", 13),
        ("i = Constant<value = int64 {-2}>() y = Gather(x, i)", 13),
        ("i = Constant<value = int64[2, 1] {1, 0}>() y = Gather(x, i)", 13),
        ("n = Neg(x) z = Abs(x) y = Max(x, n, z)", 17),
        ("n = Neg(x) r = ReduceMean<axes = [0]>(x) y = Min(r, n)", 17),
        ("y = Max(x)", 17),
    ],
)
def test_equals_onnx_runtime(body: str, opset: int) -> None:
    model = parse(f"g (float[3,5] x) => (float y) {{ {body} }}", opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    data = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    [expected] = run_onnx(model, {"x": data})
    [actual] = run_relax(import_onnx(model).module, [data])
    # ReduceMean sums three numbers and divides: three roundings of numbers up to 3.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_computed_indices_are_clipped() -> None:
    """ONNX Runtime refuses such indices when it runs; TVM's default reads out of bounds."""
    model = parse("g (float[4] x, int64[5] i) => (float[5] y) { y = Gather(x, i) }")
    data, indices = np.arange(4, dtype=np.float32), np.asarray([0, -1, 2**40, -(2**40), 3])
    [actual] = run_relax(import_onnx(model).module, [data, indices])
    np.testing.assert_array_equal(actual, [0, 3, 3, 0, 3])


@pytest.mark.parametrize("index", [4, -5])
def test_constant_indices_out_of_range_are_refused(index: int) -> None:
    model = parse(f"g (float[4] x) => (float[1] y) <int64[1] i = {{{index}}}> {{ y = Gather(x, i) }}")
    with pytest.raises(UnsupportedOperatorError, match="an axis of 4"):
        import_onnx(model)


def test_maxima_are_element_wise() -> None:
    module = import_onnx(parse("g (float[2] x) => (float[2] y) { n = Neg(x) y = Max(x, n) }")).module
    main = module["main"]
    assert [op_name(binding.value) for binding in main.body.blocks[0].bindings][:2] == [
        "relax.negative", "relax.maximum",
    ]  # fmt: skip


BOUNDS = [-(2**63), -(2**31), -4, -3, -1, 0, 1, 2, 3, 2**31 - 1, 2**31, 2**63 - 1]
STEPS = [1, 2, 2**40, -1, -2, -(2**31), -(2**63) + 1]


def test_slices_with_any_bounds() -> None:
    """Bounds and steps of 32 and 64 bits, negative ones, too: exporters write the largest number for "to the end"."""
    data = np.arange(3, dtype=np.float32)
    cases = [
        (start, end, step) for start in BOUNDS for end in BOUNDS for step in STEPS if data[slice(start, end, step)].size
    ]
    constants, nodes = [], []
    for index, bounds in enumerate(cases):
        constants += [f"int64[1] c{index}_{i} = {{{value}}}" for i, value in enumerate(bounds)]
        nodes.append(f"y{index} = Slice(x, c{index}_0, c{index}_1, zero, c{index}_2)")
    outputs = ", ".join(f"float[{data[slice(*bounds)].size}] y{index}" for index, bounds in enumerate(cases))
    model = parse(
        f"g (float[3] x) => ({outputs}) <int64[1] zero = {{0}}, {', '.join(constants)}> {{ {' '.join(nodes)} }}"
    )
    expected = run_onnx(model, {"x": data})
    actual = run_relax(import_onnx(model, limits=Limits(outputs=1_000)).module, [data])
    for bounds, ours, theirs in zip(cases, actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=str(bounds))
        np.testing.assert_array_equal(ours, data[slice(*bounds)], err_msg=str(bounds))


def test_a_slice_backwards_behind_a_reshape() -> None:
    """TVM fuses both; what it made of the falling indices read 7 elements in front of the right ones."""
    text = """g (float[1,4,1,2,4] x) => (float[1,32] y, float[2,5] z)
        <int64[1] last = {31}, int64[1] end = {-2147483648}, int64[1] axis = {-1}, int64[1] step = {-1},
         int64[2] lasts = {-1, -2}, int64[2] ends = {-9, -16}, int64[2] steps = {-1, -3},
         int64[2] axes = {0, 1}, int64[2] two = {2, -1}> {
        f = Flatten(x)  y = Slice(f, last, end, axis, step)
        r = Reshape(x, two)  z = Slice(r, lasts, ends, axes, steps)
    }"""
    model = parse(text)
    data = np.arange(32, dtype=np.float32).reshape(1, 4, 1, 2, 4)
    expected = run_onnx(model, {"x": data})
    compiled = compile_model(model).run(data)
    for ours, theirs in zip(compiled.values(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("node", ["ReduceMean<axes = [0]>", "ReduceMean<keepdims = 0>", "ReduceMean<axes = [-1]>"])
def test_means_of_integers_are_cut(node: str, dtype: str) -> None:
    data = np.asarray([[-3, 5, 7], [2, -4, 0]], dtype)
    model = parse(f"g ({dtype}[2,3] x) => ({dtype} y) {{ y = {node}(x) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    [expected] = run_onnx(model, {"x": data})
    [actual] = run_relax(import_onnx(model).module, [data])
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8"])
def test_signs_of_unsigned_integers(dtype: str) -> None:
    data = np.asarray([0, 1, 100, np.iinfo(dtype).max], dtype)
    model = parse(f"g ({dtype}[4] x) => ({dtype}[4] y) {{ y = Sign(x) }}")
    [expected] = run_onnx(model, {"x": data})
    [actual] = run_relax(import_onnx(model).module, [data])
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("base", ["int32", "int64", "float", "double"])
@pytest.mark.parametrize("exponent", ["int32", "int64", "float", "double"])
@pytest.mark.parametrize("constant", [True, False])
def test_powers_of_any_types(base: str, exponent: str, constant: bool) -> None:
    dtypes = {"float": "float32", "double": "float64"}
    data = np.asarray([-3, -1, 1, 2, 5], dtypes.get(base, base))
    powers = np.asarray([3, 2, 0, 10, 4], dtypes.get(exponent, exponent))
    declared = f"<{exponent}[5] p = {{3, 2, 0, 10, 4}}>" if constant else ""
    given = "" if constant else f", {exponent}[5] p"
    model = parse(f"g ({base}[5] x{given}) => ({base}[5] y) {declared} {{ y = Pow(x, p) }}")
    feeds = {"x": data} if constant else {"x": data, "p": powers}
    [expected] = run_onnx(model, feeds)
    [actual] = run_relax(import_onnx(model).module, list(feeds.values()))
    np.testing.assert_array_equal(actual, expected)


def test_prelu_of_a_scalar() -> None:
    model = parse("g (float x) => (float y) <float slope = {0.5}> { y = PRelu(x, slope) }")
    [actual] = run_relax(import_onnx(model).module, [np.asarray(-3, np.float32)])
    np.testing.assert_array_equal(actual, np.float32(-1.5))


@pytest.mark.parametrize("operator", ["Scatter", "ScatterElements"])
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
@pytest.mark.parametrize(
    ("axis", "part"), [(0, (5, 3, 2)), (1, (3, 2, 4)), (-1, (2, 3, 6)), (0, (1, 1, 1)), (1, (3, 5, 5))]
)
def test_indices_of_a_scatter_may_cover_a_part(operator: str, reduction: str, axis: int, part: tuple[int, ...]) -> None:
    if operator == "Scatter" and reduction != "none":
        pytest.skip("Scatter has no reductions")
    shape, generator = (3, 4, 5), np.random.default_rng(0)
    shown = ",".join(map(str, part))
    attribute = "" if reduction == "none" else f', reduction = "{reduction}"'
    model = parse(
        f"g (float[3,4,5] x, int64[{shown}] i, float[{shown}] u) => (float[3,4,5] y) "
        f"{{ y = {operator}<axis = {axis}{attribute}>(x, i, u) }}",
        opset=10 if operator == "Scatter" else 18,
    )
    data, updates = generator.standard_normal(shape).astype("f"), generator.standard_normal(part).astype("f")
    indices = generator.integers(-shape[axis], shape[axis], part)
    [expected] = run_onnx(model, {"x": data, "i": indices, "u": updates})
    [actual] = run_relax(import_onnx(model).module, [data, indices, updates])
    np.testing.assert_array_equal(actual, expected)
