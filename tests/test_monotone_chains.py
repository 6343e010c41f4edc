"""Thresholds of chains equal the chains, on every float that matters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.ir import Var

from bnn_compiler.constants import Array, ConstantEvaluator
from bnn_compiler.recognition.monotone_chains import Levels, MonotoneChains

op = relax.op
CHANNELS = 3
Emit = Callable[[relax.Expr], relax.Expr]
Build = Callable[[Emit, Var], relax.Expr]


def const(value: float | Sequence[float]) -> relax.Expr:
    array = np.asarray(value, np.float32)
    return relax.const(array.reshape(-1, 1, 1) if array.ndim else array)


def chains_of(build: Build) -> tuple[MonotoneChains, Var, Var]:
    """The analysis of a function of x [2, 3, 4, 5], its result and x."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, CHANNELS, 4, 5), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit(build(builder.emit, x)))
        builder.emit_func_output(output)
    bindings = {b.var: b.value for block in builder.get()["main"].body.blocks for b in block.bindings}
    result = builder.get()["main"].body.blocks[0].bindings[-1].var
    return MonotoneChains(bindings, ConstantEvaluator(bindings)), result, builder.get()["main"].params[0]


def levels_of(build: Build, most: int = 16) -> Levels | None:
    chains, result, x = chains_of(build)
    assert chains.of(result).base.same_as(x)
    return chains.levels(result, x, most)


def apply_levels(levels: Levels, x: Array) -> Array:
    """What a kernel makes of x [N, C]."""
    directed = x * levels.direction.astype(np.float32)
    codes = (directed[None] >= levels.thresholds[:, None]).sum(axis=0)
    return np.asarray(np.asarray(levels.values, np.float32)[codes])


def dorefa(e: Emit, x: relax.Expr, top: float) -> relax.Expr:
    clipped = op.clip(x, 0, 1)
    return e(op.divide(e(op.round(e(op.multiply(e(clipped), const(top))))), const(top)))


@pytest.mark.parametrize("top", [1.0, 3.0, 7.0, 15.0])
def test_dorefa_thresholds(top: float) -> None:
    levels = levels_of(lambda e, x: dorefa(e, x, top))
    assert levels is not None
    assert len(levels.values) == top + 1
    x = np.sort(np.concatenate([levels.thresholds.ravel(), np.linspace(-1, 2, 4001, dtype=np.float32)]))
    x = np.concatenate([x, np.nextafter(x, np.float32(-9)), np.nextafter(x, np.float32(9))]).astype(np.float32)
    expected = (np.round(np.clip(x, 0, 1) * np.float32(top)) / np.float32(top)).astype(np.float32)
    np.testing.assert_array_equal(apply_levels(levels, x[:, None])[:, 0], expected)
    # Rounding is half to even: the middle below an odd level belongs to the even one below.
    assert levels.thresholds[0, 0] > np.float32(0.5) / np.float32(top)


def test_directions_and_unreached_levels_per_channel() -> None:
    """Rising, falling, and a channel that stays at its middle."""
    scale, shift = [1.0, -2.0, 1e-30], [0.0, 0.5, 0.4]

    def build(e: Emit, x: Var) -> relax.Expr:
        affine = e(op.add(e(op.multiply(x, const(scale))), const(shift)))
        return op.round(e(op.multiply(e(op.clip(e(op.clip(affine, -1e3, 0.6)), 0, 1)), const(3.0))))

    levels = levels_of(build)
    assert levels is not None
    assert levels.values == (0.0, 1.0, 2.0)
    assert levels.axis == 1
    np.testing.assert_array_equal(levels.direction, [1, -1, 1])
    x = np.random.default_rng(0).normal(0, 1, (1000, CHANNELS)).astype(np.float32)
    y = x * np.asarray(scale, np.float32) + np.asarray(shift, np.float32)
    y = np.round(np.clip(np.clip(y, -1e3, np.float32(0.6)), 0, 1) * np.float32(3))
    np.testing.assert_array_equal(apply_levels(levels, x), y)


@pytest.mark.parametrize("sizes", [[0.5, 0.25, 2.0]])
def test_a_level_that_a_channel_never_reaches(sizes: list[float]) -> None:
    levels = levels_of(lambda e, x: op.floor(e(op.multiply(e(op.clip(x, 0, 1)), const(sizes)))))
    assert levels is not None
    assert levels.values == (0.0, 1.0, 2.0)
    np.testing.assert_array_equal(levels.thresholds[:, 0], [np.nan, np.nan])
    np.testing.assert_array_equal(levels.thresholds[:, 2], [0.5, 1.0])
    x = np.array([[np.inf] * 3, [-np.inf] * 3, [0.5] * 3, [1.0] * 3], np.float32)
    np.testing.assert_array_equal(apply_levels(levels, x), np.floor(np.clip(x, 0, 1) * np.asarray(sizes, np.float32)))


_STEPS: dict[str, Callable[[Emit, relax.Expr, float], relax.Expr]] = {
    "multiply": lambda e, v, c: op.multiply(v, const(c or 1.0)),
    "divide": lambda e, v, c: op.divide(v, const(c or 1.0)),
    "add": lambda e, v, c: op.add(v, const(c)),
    "subtract from": lambda e, v, c: op.subtract(const(c), v),
    "clip": lambda e, v, c: op.clip(v, -abs(c), abs(c)),
    "relu": lambda e, v, c: op.nn.relu(v),
    "negative": lambda e, v, c: op.negative(v),
    "round": lambda e, v, c: op.round(v),
    "floor": lambda e, v, c: op.floor(v),
    "ceil": lambda e, v, c: op.ceil(v),
    "sign": lambda e, v, c: op.sign(v),
    "where": lambda e, v, c: op.where(e(op.greater(v, const(c))), const(1), const(-1)),
    "not less": lambda e, v, c: op.astype(e(op.logical_not(e(op.less(v, const(c))))), "float32"),
    "maximum": lambda e, v, c: op.maximum(v, const(c)),
    "itself clipped": lambda e, v, c: op.add(e(op.clip(v, -2, 2)), e(op.round(e(op.clip(v, -1, 3))))),
}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(_STEPS)), st.floats(-4, 4, width=32)), min_size=1, max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=30),
)
def test_random_chains(steps: list[tuple[str, float]], numbers: list[float]) -> None:
    """Where a chain has levels, they give what NumPy gives for the operators one by one, on thresholds and anywhere."""

    def build(e: Emit, x: Var) -> relax.Expr:
        value: relax.Expr = x
        for name, number in steps:
            value = e(_STEPS[name](e, value, number))
        return value

    levels = levels_of(build)
    if levels is None:
        return
    chains, result, x = chains_of(build)
    finite = levels.thresholds[np.isfinite(levels.thresholds)]
    points = np.asarray([*numbers, *finite, 0.0, -0.0, np.inf, -np.inf], np.float32)
    points = np.asarray(points * levels.direction.astype(np.float32))
    with np.errstate(all="ignore"):
        points = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, -points)])
        expected = chains._evaluate(result, x, points)
    np.testing.assert_array_equal(apply_levels(levels, points[:, None])[:, 0], expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda e, x: op.subtract(e(op.sign(x)), e(op.sign(e(op.subtract(x, const(1)))))),
        lambda e, x: op.multiply(x, e(op.sign(x))),
        lambda e, x: op.multiply(e(op.sign(x)), const(0)),
        lambda e, x: op.divide(const(1), e(op.maximum(x, const(1)))),
        lambda e, x: op.add(x, e(op.round(e(op.negative(x))))),
        lambda e, x: op.abs(x),
    ],
)
def test_what_is_not_monotone_or_may_be_nan_is_a_base_of_its_own(build: Build) -> None:
    chains, result, x = chains_of(build)
    assert not chains.of(result).base.same_as(x)


def test_a_long_chain_is_cut() -> None:
    """No recursion over a graph of any length."""

    def build(e: Emit, x: Var) -> relax.Expr:
        value: relax.Expr = x
        for _ in range(1500):
            value = e(op.add(value, const(1)))
        return op.round(e(op.clip(value, 0, 3)))

    chains, result, x = chains_of(build)
    chain = chains.of(result)
    assert 0 < chain.length <= 64
    assert not chain.base.same_as(x)
    levels = chains.levels(result, chain.base, 16)
    assert levels is not None and len(levels.values) == 4


def test_too_many_values() -> None:
    assert levels_of(lambda e, x: op.round(e(op.clip(x, 0, 15)))) is not None
    assert levels_of(lambda e, x: op.round(e(op.clip(x, 0, 16)))) is None
    assert levels_of(lambda e, x: op.clip(x, 0, 1)) is None
    assert levels_of(lambda e, x: op.round(x)) is None


def test_integers_that_wrap_are_not_monotone() -> None:
    """uint8: 0 − 1 is 255, which lies above what 1 − 1 and 2 − 1 are."""

    def count(e: Emit, x: Var, dtype: str) -> relax.Expr:
        marks = [e(op.astype(e(op.greater(x, const(limit))), dtype)) for limit in (0.0, 1.0)]
        return e(op.add(*marks))

    def below(e: Emit, x: Var, dtype: str) -> relax.Expr:
        return op.astype(e(op.subtract(count(e, x, dtype), relax.const(np.ones((), dtype)))), "float32")

    chains, result, x = chains_of(lambda e, x: below(e, x, "uint8"))
    assert not chains.of(result).base.same_as(x)
    levels = levels_of(lambda e, x: below(e, x, "int8"))
    assert levels is not None
    assert levels.values == (-1.0, 0.0, 1.0)


def test_integer_inputs_are_bases_of_nothing() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 3), "int32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            total = builder.emit(op.add(x, x))
            output = builder.emit_output(total)
        builder.emit_func_output(output)
    bindings = {b.var: b.value for block in builder.get()["main"].body.blocks for b in block.bindings}
    assert MonotoneChains(bindings, ConstantEvaluator(bindings)).of(total).base.same_as(total)
