"""Random chains of element-wise operators take the values that the analysis claims, and pack to the bits it plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, elementwise_operands, evaluate_elementwise
from bnn_compiler.recognition.binarizers import Binarizer, plan_binarizer
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.step_function import MAX_RESIDUE
from bnn_compiler.recognition.value_sets import ValueSet, ValueSetAnalysis
from tests.element_chains import Chain, const, residue

op = relax.op
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
        assert np.all((np.abs(actual - packed) <= tolerance) | ~finite), found


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=48, max_size=48))
def test_random_chains_take_the_values_that_are_claimed(choices: Sequence[int]) -> None:
    result, analysis = Chain().analyse(random_chain(choices), "exact")
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
    check_packing(plan_binarizer(result, known, "auto"), actual, finite, known, analysis, x)
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


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=48, max_size=48))
def test_random_chains_hit_the_numbers_that_are_claimed(choices: Sequence[int]) -> None:
    """Where all values are known, there are no others; a value that is impossible does not occur."""
    result, analysis = Chain().analyse(random_chain(choices), "exact")
    mixture = analysis.mixtures.of(result)
    inputs = {"x": probes(), "y": np.flip(probes())}
    actual, finite = evaluate(result, analysis, inputs), evaluate_finite(result, analysis, inputs)
    values = np.unique(np.broadcast_to(actual, finite.shape)[finite])
    event("all values known" if mixture.is_discrete and not mixture.leaks else "nothing claimed")
    assert all(mixture.can_equal(float(value)) is not False for value in values), (mixture, values)
