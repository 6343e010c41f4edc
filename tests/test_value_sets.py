"""Binarisers are found by what they compute: step functions, evaluated."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tvm import relax

from bnn_compiler.options import SignZero
from bnn_compiler.recognition.binarizers import Binarizer, plan_binarizer
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.value_sets import ValueSetAnalysis
from tests.element_chains import plus_signs

op = relax.op
Emit = Callable[[relax.Expr], relax.Expr]
Build = Callable[[relax.BlockBuilder, relax.Expr], relax.Expr]


def const(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


def plan(build: Callable[[Emit, relax.Expr], relax.Expr], sign_zero: SignZero = "plus") -> Binarizer | NotBinary:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4, 5, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit(build(builder.emit, x))
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    function = builder.get()["main"]
    bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
    activation = function.body.blocks[0].bindings[-1].var
    signs = plus_signs(bindings) if sign_zero == "plus" else set()
    return plan_binarizer(activation, ValueSetAnalysis(bindings, plus_signs=signs).of(activation), sign_zero)


def summary(build: Callable[[Emit, relax.Expr], relax.Expr]) -> tuple[str, float, float, float]:
    found = plan(build)
    assert isinstance(found, Binarizer), found
    return found.predicate, float(found.threshold), found.low, found.high


SPELLINGS: dict[str, tuple[Callable[[Emit, relax.Expr], relax.Expr], tuple[str, float, float, float]]] = {
    "sign": (lambda e, x: op.sign(x), ("ge", 0, -1, 1)),
    "larq": (lambda e, x: op.sign(e(op.add(e(op.sign(x)), const(0.1)))), ("ge", 0, -1, 1)),
    "where >=": (lambda e, x: op.where(e(op.greater_equal(x, const(0.5))), const(1), const(-1)), ("ge", 0.5, -1, 1)),
    "where >": (lambda e, x: op.where(e(op.greater(x, const(0.5))), const(1), const(-1)), ("gt", 0.5, -1, 1)),
    "where t <= x": (lambda e, x: op.where(e(op.less_equal(const(2), x)), const(1), const(-1)), ("ge", 2, -1, 1)),
    "flipped: x < 0 is +1": (lambda e, x: op.where(e(op.less(x, const(0))), const(1), const(-1)), ("lt", 0, -1, 1)),
    "not less, so NaN is +1": (lambda e, x: op.where(e(op.less(x, const(0))), const(-1), const(1)), ("nlt", 0, -1, 1)),
    "cast * 2 - 1": (
        lambda e, x: op.subtract(
            e(op.multiply(e(op.astype(e(op.greater(x, const(1))), "float32")), const(2))), const(1)
        ),
        ("gt", 1, -1, 1),
    ),
    "scaled": (lambda e, x: op.multiply(e(op.sign(x)), const(0.25)), ("ge", 0, -0.25, 0.25)),
    "zero or one": (lambda e, x: op.astype(e(op.greater(x, const(0))), "float32"), ("gt", 0, 0, 1)),
    "sign of relu": (lambda e, x: op.sign(e(op.nn.relu(x))), ("gt", 0, 0, 1)),
    "clip of a large multiple of sign": (
        lambda e, x: op.clip(e(op.multiply(e(op.sign(x)), const(9))), -1, 1),
        ("ge", 0, -1, 1),
    ),
    "negated": (
        lambda e, x: op.negative(e(op.where(e(op.greater(x, const(0))), const(1), const(-1)))),
        ("ngt", 0, -1, 1),
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    build, expected = SPELLINGS[name]
    assert summary(build) == expected


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda e, x: op.nn.relu(x), "activations_float"),
        (lambda e, x: op.add(e(op.sign(x)), x), "activations_float"),
        (lambda e, x: op.add(e(op.sign(x)), const(0.1)), "activations_not_two_valued"),
        (lambda e, x: op.add(e(op.sign(x)), e(op.sign(e(op.negative(x))))), "activations_not_two_valued"),
    ],
)
def test_near_misses(build: Callable[[Emit, relax.Expr], relax.Expr], reason: str) -> None:
    found = plan(build, "exact")
    assert isinstance(found, NotBinary), found
    assert found.reason == reason


def test_exact_zero_keeps_three_values() -> None:
    found = plan(lambda e, x: op.sign(x), "exact")
    assert isinstance(found, Binarizer)
    assert (found.predicate, found.alphabet) == ("ternary", "ternary")


def test_larqs_sign_says_itself_what_becomes_of_0() -> None:
    found = plan(lambda e, x: op.sign(e(op.add(e(op.sign(x)), const(0.1)))), "exact")
    assert isinstance(found, Binarizer)
    assert (found.predicate, found.alphabet) == ("ge", "bipolar")


def test_pad_before_a_sign_is_a_pad_after_it() -> None:
    for value, expected in ((0.0, 0.0), (-3.0, -1.0), (0.5, 1.0)):
        found = plan(lambda e, x, value=value: op.sign(e(op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 4], "constant", value))))  # type: ignore[misc]
        assert isinstance(found, Binarizer)
        assert found.base.name == "x"
        assert found.padding is not None
        assert (found.padding.widths, found.padding.value) == ((1, 3, 2, 4), expected)


def test_thresholds_per_channel() -> None:
    limits = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    found = plan(lambda e, x: op.where(e(op.greater(x, relax.const(limits))), const(1), const(-1)))
    assert isinstance(found, Binarizer)
    np.testing.assert_array_equal(found.threshold, limits)


def test_max_pool_of_signs_is_packed_as_it_is() -> None:
    found = plan(lambda e, x: op.nn.max_pool2d(e(op.sign(x)), (2, 2)))
    assert isinstance(found, Binarizer)
    assert found.base.name != "x"
    assert (found.predicate, found.low, found.high) == ("ge", -1, 1)


def test_sign_of_integers_has_three_values() -> None:
    x = relax.Var("x", relax.TensorType((1, 4), "int32"))
    sign = relax.Var("s", relax.TensorType((1, 4), "int32"))
    known = ValueSetAnalysis({sign: relax.BlockBuilder().normalize(op.sign(x))}).of(sign)
    assert known is not None
    assert known.values == {-1.0, 0.0, 1.0}


def test_batched_weights_are_not_counted_as_a_matrix() -> None:
    """[B, K, N] sums K products, not B: with K even, 0 is reached, and sign(0) may not be called impossible."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 2), "float32"))
    weights = relax.const(np.array([[[1, -1], [-1, 1]]], np.float32))
    with builder.function("main", [x]):
        with builder.dataflow():
            signs = builder.emit(op.where(op.greater(x, const(0)), const(1), const(-1)))
            product = builder.emit(op.matmul(signs, weights))
            result = builder.emit(op.sign(product))
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    bindings = {b.var: b.value for block in builder.get()["main"].body.blocks for b in block.bindings}
    known = ValueSetAnalysis(bindings).of(result)
    assert known is not None
    assert 0.0 in known.values


def test_products_of_one_axis_have_no_channels() -> None:
    """[K] times [K, N] is [N]: a constant per element of it varies along no axis 1."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((3,), "float32"))
    weights = relax.const(np.array([[1, -1], [-1, 1], [1, 1]], np.float32))
    with builder.function("main", [x]):
        with builder.dataflow():
            signs = builder.emit(op.where(op.greater(x, const(0)), const(1), const(-1)))
            product = builder.emit(op.matmul(signs, weights))
            shifted = builder.emit(op.add(product, relax.const(np.array([0, 1], np.float32))))
            result = builder.emit(op.sign(shifted))
            output = builder.emit_output(result)
        builder.emit_func_output(output)
    bindings = {b.var: b.value for block in builder.get()["main"].body.blocks for b in block.bindings}
    known = ValueSetAnalysis(bindings).of(result)
    assert known is not None
    assert 0.0 in known.values


@pytest.mark.parametrize("mask", ["computed", "constant"])
def test_zeros_of_a_mask_are_not_signs_of_zero(mask: str) -> None:
    """Sign(x) times a mask: 0 where the mask is 0, whatever Sign makes of 0."""

    def masked(e: Emit, x: relax.Expr) -> relax.Expr:
        other = e(op.add(x, const(1)))
        marks = np.array([1, 0, 1, -1], np.float32).reshape(1, 4, 1, 1)
        computed = e(op.astype(e(op.greater(other, const(0))), "float32"))
        return op.multiply(e(op.sign(x)), computed if mask == "computed" else relax.const(marks))

    found = plan(masked)
    assert isinstance(found, Binarizer)
    assert found.alphabet == "ternary"


@pytest.mark.parametrize(("mode", "is_selection"), [("asymmetric", True), ("tf_crop_and_resize", False)])
def test_resize_that_may_read_beyond_the_image(mode: str, is_selection: bool) -> None:
    def resized(e: Emit, x: relax.Expr) -> relax.Expr:
        signs = e(op.where(e(op.greater(x, const(0))), const(1), const(-1)))
        return op.image.resize2d(
            signs, (8, 8), layout="NCHW", method="nearest_neighbor", coordinate_transformation_mode=mode
        )

    assert isinstance(plan(resized), Binarizer) == is_selection
