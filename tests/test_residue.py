"""What a chain of element-wise operators computes: residues of straight-through estimators, and random chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.binarizers import Binarizer, plan_binarizer
from bnn_compiler.binary_weights import NotBinary
from bnn_compiler.constants import Array, elementwise_operands, evaluate_elementwise
from bnn_compiler.missing_condition import missing_condition
from bnn_compiler.step_function import MAX_RESIDUE
from bnn_compiler.value_sets import ValueSet, ValueSetAnalysis

op = relax.op
SHAPE = (1, 4, 5, 6)


def const(value: float) -> relax.Expr:
    return relax.const(np.float32(value))


@dataclass
class Chain:
    """Emits operators on ``x``; ``y`` is a second input."""

    builder: relax.BlockBuilder = field(default_factory=relax.BlockBuilder)
    x: Var = field(default_factory=lambda: relax.Var("x", relax.TensorType(SHAPE, "float32")))
    y: Var = field(default_factory=lambda: relax.Var("y", relax.TensorType(SHAPE, "float32")))

    def emit(self, expr: relax.Expr) -> Var:
        return self.builder.emit(expr)

    def analyse(self, build: Callable[[Chain], relax.Expr]) -> tuple[Var, ValueSetAnalysis]:
        with self.builder.function("main", [self.x, self.y]):
            with self.builder.dataflow():
                result = self.emit(build(self))
                output = self.builder.emit_output(result)
            self.builder.emit_func_output(output)
        bindings = {b.var: b.value for block in self.builder.get()["main"].body.blocks for b in block.bindings}
        return result, ValueSetAnalysis(bindings)


def plan(build: Callable[[Chain], relax.Expr], sign_zero: str = "plus") -> Binarizer | NotBinary:
    result, analysis = Chain().analyse(build)
    return plan_binarizer(result, analysis.of(result), sign_zero)  # type: ignore[arg-type]


def residue(chain: Chain, hard: relax.Expr, soft: relax.Expr) -> relax.Expr:
    """(hard − soft) + soft."""
    return op.add(chain.emit(op.subtract(hard, soft)), soft)


def clip_residue(chain: Chain) -> relax.Expr:
    return residue(chain, chain.emit(op.sign(chain.x)), chain.emit(op.clip(chain.x, -1.3, 1.3)))


def approx_sign(chain: Chain) -> relax.Expr:
    """Bi-Real Net's piecewise polynomial, as torch exports it."""
    e, x = chain.emit, chain.x

    def below(limit: float) -> tuple[Var, Var]:
        mask = e(op.astype(e(op.less(x, const(limit))), "float32"))
        return mask, e(op.subtract(const(1), mask))

    first, rest = below(-1)
    rising = e(op.add(e(op.multiply(x, x)), e(op.multiply(x, const(2)))))
    out = e(op.add(e(op.multiply(first, const(-1))), e(op.multiply(rising, rest))))
    second, rest = below(0)
    falling = e(op.add(e(op.multiply(e(op.negative(x)), x)), e(op.multiply(x, const(2)))))
    out = e(op.add(e(op.multiply(out, second)), e(op.multiply(falling, rest))))
    third, rest = below(1)
    out = e(op.add(e(op.multiply(out, third)), rest))
    return residue(chain, e(op.sign(x)), out)


def other_tensor(chain: Chain) -> relax.Expr:
    """What is subtracted and added need not have to do with x, if only it is bounded."""
    return residue(chain, chain.emit(op.sign(chain.x)), chain.emit(op.sigmoid(chain.y)))


def threshold_residue(chain: Chain) -> relax.Expr:
    hard = chain.emit(op.where(chain.emit(op.greater(chain.x, const(0.5))), const(1), const(-1)))
    return residue(chain, hard, chain.emit(op.clip(chain.x, -1, 1)))


def clamp_chain(chain: Chain) -> relax.Expr:
    soft = chain.emit(op.maximum(chain.emit(op.minimum(chain.x, const(1))), const(-1)))
    return residue(chain, chain.emit(op.sign(chain.x)), soft)


def scaled(chain: Chain) -> relax.Expr:
    return op.multiply(chain.emit(clip_residue(chain)), const(0.25))


def quantised_first(chain: Chain) -> relax.Expr:
    """FracBNN: the sign of a 2-bit code, with the residue of the code."""
    e = chain.emit
    step = const(2 / 3)
    code = e(op.round(e(op.divide(e(op.add(e(op.clip(chain.x, -1, 1)), const(1))), step))))
    quantised = e(op.subtract(e(op.multiply(code, step)), const(1)))
    return residue(chain, e(op.sign(quantised)), e(op.clip(quantised, -1.3, 1.3)))


def divided_by_magnitude(chain: Chain) -> relax.Expr:
    return op.divide(chain.x, chain.emit(op.abs(chain.x)))


Summary = tuple[str, float, float, float, bool]
FOUND: dict[str, tuple[Callable[[Chain], relax.Expr], Summary]] = {
    "sign - clip + clip": (clip_residue, ("ge", 0, -1, 1, True)),
    "ApproxSign": (approx_sign, ("ge", 0, -1, 1, True)),
    "residue of another tensor": (other_tensor, ("ge", 0, -1, 1, True)),
    "threshold": (threshold_residue, ("gt", 0.5, -1, 1, True)),
    "min and max": (clamp_chain, ("ge", 0, -1, 1, True)),
    "scaled": (scaled, ("ge", 0, -0.25, 0.25, True)),
    "sign of residue": (lambda c: op.sign(c.emit(threshold_residue(c))), ("gt", 0.5, -1, 1, False)),
    "x / |x|": (divided_by_magnitude, ("ge", 0, -1, 1, False)),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    build, (predicate, threshold, low, high, rounded) = FOUND[name]
    found = plan(build)
    assert isinstance(found, Binarizer), found
    assert found.base.name == "x"
    assert (found.predicate, float(found.threshold), found.low, found.high) == (predicate, threshold, low, high)
    assert found.rounded == rounded


def test_quantised_first() -> None:
    found = plan(quantised_first)
    assert isinstance(found, Binarizer), found
    assert (found.low, found.high, found.alphabet) == (-1, 1, "bipolar")


def test_undefined_at_zero_is_said() -> None:
    found = plan(divided_by_magnitude)
    assert isinstance(found, Binarizer)
    assert "0/0" in found.remarks
    exact = plan(divided_by_magnitude, "exact")
    assert isinstance(exact, NotBinary)
    assert exact.reason == "activations_not_two_valued"


def test_infinite_activations_are_not_binary() -> None:
    """Sign(x) / 0 takes two values, which no kernel can count."""
    found = plan(lambda c: op.divide(c.emit(op.where(c.emit(op.less(c.x, const(0))), const(-1), const(1))), const(0)))
    assert isinstance(found, NotBinary)
    assert found.reason == "activations_not_two_valued"


def test_magnitude_that_is_never_zero_is_defined() -> None:
    """x = ±1, so x/|x| is x: no NaN, nothing to remark."""
    found = plan(
        lambda c: op.divide(
            sign := c.emit(op.where(c.emit(op.greater(c.x, c.y)), const(1), const(-1))), c.emit(op.abs(sign))
        )
    )
    assert isinstance(found, Binarizer)
    assert not found.remarks


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        # fl(fl(s − x) + x) is 0, not ±1, for |x| > 2^25: an unbounded tensor does not cancel.
        (lambda c: residue(c, c.emit(op.sign(c.x)), c.x), "'lv1' combines few values with 'x', which is not bounded"),
        (lambda c: residue(c, c.emit(op.sign(c.x)), c.emit(op.nn.relu(c.x))), "with 'lv1', which is not bounded"),
        # 2^23 + 0.5 does not fit a float32: the rounding error is no residue.
        (
            lambda c: residue(c, c.emit(op.sign(c.x)), c.emit(op.clip(c.x, -(2.0**23), 2.0**23))),
            "'lv2' combines few values with 'lv1', which does not cancel",
        ),
        # What is added is not what was subtracted.
        (
            lambda c: op.add(
                c.emit(op.subtract(c.emit(op.sign(c.x)), c.emit(op.clip(c.x, -1, 1)))), c.emit(op.clip(c.x, -1, 0.5))
            ),
            "'lv2' combines few values with 'lv1', which does not cancel",
        ),
        (lambda c: op.nn.relu(c.emit(op.add(c.x, c.y))), "'lv1' may hold any float"),
        (lambda c: op.reshape(c.x, SHAPE[::-1]), "the input 'x' may hold any float"),
    ],
)
def test_near_misses(build: Callable[[Chain], relax.Expr], sentence: str) -> None:
    result, analysis = Chain().analyse(build)
    assert analysis.of(result) is None
    assert sentence in missing_condition(result, analysis, lambda variable: repr(variable.name))


# -- random chains ----------------------------------------------------------------------------------------------------

LIMITS = (-1.0, -0.25, 0.0, 0.5, 1.0, 2.0)
NUMBERS = (*LIMITS, 3.0, 0.1, -7.0)
BINARY = (op.add, op.subtract, op.multiply, op.divide, op.maximum, op.minimum)
COMPARISONS = (op.greater, op.greater_equal, op.less, op.less_equal, op.equal, op.not_equal)


def random_chain(choices: Sequence[int]) -> Callable[[Chain], relax.Expr]:
    """A chain of element-wise operators on x that starts with what binarisers are made of; ``choices`` pick them."""

    def build(chain: Chain) -> relax.Expr:
        numbers = iter(choices)

        def pick(options: object) -> object:
            listed = list(options)  # type: ignore[call-overload]
            return listed[next(numbers) % len(listed)]

        pool: list[Var] = [chain.x, chain.emit(op.sign(chain.x)), chain.emit(op.clip(chain.x, -1, 1))]
        for _ in range(8):
            first = pick(pool)
            match pick(range(7)):
                case 0 | 1:
                    pool.append(chain.emit(pick(BINARY)(first, pick(pool[-3:]))))  # type: ignore[operator]
                case 2:
                    pool.append(chain.emit(pick(BINARY)(first, const(pick(NUMBERS)))))  # type: ignore[operator, arg-type]
                case 3:
                    unary = (op.sign, op.abs, op.negative, op.nn.relu, op.round, op.floor)
                    pool.append(chain.emit(pick(unary)(first)))  # type: ignore[operator]
                case 4:
                    mask = chain.emit(pick(COMPARISONS)(first, const(pick(LIMITS))))  # type: ignore[operator, arg-type]
                    pool.append(chain.emit(op.astype(mask, "float32")))
                case 5:
                    mask = chain.emit(pick(COMPARISONS)(first, const(pick(LIMITS))))  # type: ignore[operator, arg-type]
                    pool.append(chain.emit(op.where(mask, const(pick(NUMBERS)), pick(pool))))  # type: ignore[arg-type]
                case _:
                    soft = pick(pool)
                    pool.append(chain.emit(residue(chain, first, soft)))
        return op.multiply(pool[-1], const(1))

    return build


def evaluate(expr: relax.Expr, analysis: ValueSetAnalysis, inputs: dict[str, Array]) -> Array:
    """What the model computes, in its own float32."""
    if isinstance(expr, Var) and expr.name in inputs:
        return inputs[expr.name]
    constant = analysis.constants.value(expr)
    if constant is not None:
        return constant
    call = analysis.definition(expr)
    assert isinstance(call, Call)
    with np.errstate(all="ignore"):
        return evaluate_elementwise(call, [evaluate(arg, analysis, inputs) for arg in elementwise_operands(call)])


def evaluate_finite(expr: relax.Expr, analysis: ValueSetAnalysis, inputs: dict[str, Array]) -> Array:
    """Where every value on the way to ``expr`` is a number."""
    finite = np.isfinite(evaluate(expr, analysis, inputs))
    call = analysis.definition(expr)
    if isinstance(call, Call) and not (isinstance(expr, Var) and expr.name in inputs):
        for arg in elementwise_operands(call):
            finite = finite & evaluate_finite(arg, analysis, inputs)
    return np.asarray(finite)


def probes() -> Array:
    """Floats around every limit, of all magnitudes up to where squares overflow, and random ones."""
    near = np.asarray([*NUMBERS, 1.3, 1 / 3], np.float32)
    rng = np.random.default_rng(0)
    around = [np.nextafter(near, np.float32(direction)) for direction in (-np.inf, np.inf)]
    scales = np.ldexp(np.float32(1), np.arange(-140, 20)).astype(np.float32)
    values: list[Array] = [
        near,
        *around,
        scales,
        -scales,
        rng.uniform(-3, 3, 200).astype(np.float32),
        np.asarray([0.0, -0.0], np.float32),
    ]
    return np.concatenate(values).astype(np.float32)


def close(actual: Array, expected: float, known: ValueSet) -> Array:
    tolerance = MAX_RESIDUE * abs(expected) if known.rounded else 0.0
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(actual.astype(np.float64) - expected) <= tolerance)


COMPARE = {
    "ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip


def check_packing(
    found: Binarizer | NotBinary, actual: Array, finite: Array, known: ValueSet, analysis: ValueSetAnalysis, x: Array
) -> None:
    """The bits that a kernel would pack stand for the values that the model computes."""
    if isinstance(found, NotBinary):
        return
    base = evaluate(found.base, analysis, {"x": x, "y": np.flip(x)})
    checked = finite & (base != 0) if found.zero_taken_as_plus else finite
    if found.predicate == "ternary":
        packed = np.where(base > 0, found.high, np.where(base < 0, found.low, 0.0))
    else:
        negated = found.predicate.startswith("n") and found.predicate != "ne"
        bit = (
            COMPARE[found.predicate.removeprefix("n") if negated else found.predicate](base, found.threshold) ^ negated
        )
        packed = np.where(bit, found.high, found.low)
    tolerance = MAX_RESIDUE * np.abs(packed) if known.rounded else 0.0
    with np.errstate(invalid="ignore"):
        assert np.all((np.abs(actual - packed) <= tolerance) | ~checked), found


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=48, max_size=48))
def test_random_chains_take_the_values_that_are_claimed(choices: Sequence[int]) -> None:
    result, analysis = Chain().analyse(random_chain(choices))
    known = analysis.of(result)
    x = probes()
    actual = evaluate(result, analysis, {"x": x, "y": np.flip(x)})
    # Every tensor's bounds hold, and every claimed set of values.
    bounds = analysis.bounds.of(result)
    # 0/0 and overflow: where the model computes no number on the way, nothing is claimed.
    finite = evaluate_finite(result, analysis, {"x": x, "y": np.flip(x)})
    margin = MAX_RESIDUE * bounds.magnitude if known is not None and known.rounded else 0.0
    assert np.all((actual[finite] >= bounds.low - margin) & (actual[finite] <= bounds.high + margin))
    event("nothing claimed" if known is None else "rounded" if known.rounded else "exact")
    if known is None:
        return
    numbers = [value for value in known.values if np.isfinite(value)]
    reached = np.any([close(actual, value, known) for value in numbers], axis=0) if numbers else ~finite
    assert np.all(reached | ~finite), (known, x[~reached & finite], actual[~reached & finite])
    check_packing(plan_binarizer(result, known, "plus"), actual, finite, known, analysis, x)
    if known.steps is None or known.steps.padding is not None:
        return
    base = evaluate(known.steps.base, analysis, {"x": x, "y": np.flip(x)})
    threshold = known.steps.threshold
    for value, where in zip(
        known.steps.regions, (base < threshold, base == threshold, base > threshold, np.isnan(base)), strict=True
    ):
        if value is None:
            assert not where.any() or known.steps.undefined
        elif np.isfinite(value):
            assert np.all(close(actual, float(value), known)[where] | ~finite[where])
