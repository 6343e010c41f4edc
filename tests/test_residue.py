"""Residues of straight-through estimators, and what divides by its own magnitude."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tvm import relax
from tvm.ir import Var

from bnn_compiler.options import SignZero
from bnn_compiler.recognition.binarizers import Binarizer, plan_binarizer
from bnn_compiler.recognition.binary_weights import NotBinary
from bnn_compiler.recognition.missing_condition import missing_condition
from tests.element_chains import SHAPE, Chain, const, residue

op = relax.op


def plan(build: Callable[[Chain], relax.Expr], sign_zero: SignZero = "plus") -> Binarizer | NotBinary:
    result, analysis = Chain().analyse(build, sign_zero)
    return plan_binarizer(result, analysis.of(result), sign_zero)


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


def test_residue_of_a_tensor_of_few_values() -> None:
    """Each of the two operands takes few values, which are not independent."""

    def build(c: Chain) -> relax.Expr:
        few = c.emit(op.round(c.emit(op.clip(c.x, -2, 2))))
        sign = c.emit(op.sign(c.emit(op.add(c.emit(op.sign(few)), const(0.1)))))
        return residue(c, sign, c.emit(op.clip(few, -1, 1)))

    found = plan(build)
    assert isinstance(found, Binarizer), found
    assert (found.low, found.high, found.alphabet) == (-1, 1, "bipolar")


def test_undefined_at_zero_is_said() -> None:
    found = plan(divided_by_magnitude)
    assert isinstance(found, Binarizer)
    assert "0/0" in found.remarks
    exact = plan(divided_by_magnitude, "exact")
    assert isinstance(exact, NotBinary)
    assert exact.reason == "activations_not_two_valued"


@pytest.mark.parametrize("pads", [[0, 0, 0, 0, 1, 2, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]], ids=["spatial", "channels"])
def test_undefined_at_zero_stays_so_behind_a_pad(pads: list[int]) -> None:
    found = plan(lambda c: op.negative(c.emit(op.nn.pad(c.emit(divided_by_magnitude(c)), pads, pad_value=-1.0))))
    assert isinstance(found, Binarizer), found
    assert (found.low, found.high) == (-1, 1)
    assert "0/0" in found.remarks


def test_comparison_behind_an_undefined_value_is_not_evaluated() -> None:
    """NaN >= 0 is false in the model, where x/|x| at 0 is taken as +1."""

    def compared(c: Chain) -> relax.Expr:
        padded = c.emit(op.nn.pad(c.emit(divided_by_magnitude(c)), [0, 0, 0, 0, 1, 1, 1, 1], pad_value=-1.0))
        return op.where(c.emit(op.greater_equal(padded, const(0))), const(2), const(-2))

    found = plan(compared)
    assert isinstance(found, Binarizer)
    assert not found.remarks  # from the set of values {-2, 2}, packed from the values themselves


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


def _minus_twice(chain: Chain, mask: relax.Expr) -> relax.Expr:
    """A residue that computes sign(x) where ``mask`` does not hold, and −1 where it does (for positive x)."""
    sign = chain.emit(op.where(chain.emit(op.greater(chain.x, const(0))), const(1), const(-1)))
    soft = chain.emit(residue(chain, sign, chain.emit(op.clip(chain.x, -1, 1))))
    return op.subtract(soft, chain.emit(op.multiply(chain.emit(op.astype(mask, "float32")), const(2))))


def _wrapping(chain: Chain) -> relax.Expr:
    small = chain.emit(op.astype(chain.emit(op.clip(chain.x, -3, 3)), "int32"))
    large = chain.emit(op.add(small, relax.const(np.int32(2**30))))
    return chain.emit(op.greater(chain.emit(op.add(large, large)), relax.const(np.int32(5))))


@pytest.mark.parametrize(
    "mask",
    [
        # An integer that the largest x do not fit in says nothing of them.
        lambda c: c.emit(op.greater(c.emit(op.astype(c.x, "int64")), relax.const(np.int64(5)))),
        lambda c: c.emit(op.greater(c.emit(op.astype(c.x, "int32")), relax.const(np.int32(5)))),
        _wrapping,
        # Beyond the largest x that is evaluated.
        lambda c: c.emit(op.greater(c.x, const(1e20))),
        lambda c: c.emit(op.greater(c.emit(op.nn.relu(c.emit(op.subtract(c.x, const(1e20))))), const(0))),
        lambda c: c.emit(op.greater(c.emit(op.floor(c.emit(op.multiply(c.x, const(1e-20))))), const(0))),
    ],
)
def test_masks_of_large_values_are_no_signs(mask: Callable[[Chain], relax.Expr]) -> None:
    result, analysis = Chain().analyse(lambda c: _minus_twice(c, mask(c)))
    assert analysis.of(result) is None


def test_integers_that_are_compared_are_no_base() -> None:
    chain = Chain(
        x=relax.Var("x", relax.TensorType(SHAPE, "int32")), y=relax.Var("y", relax.TensorType(SHAPE, "int32"))
    )
    one = relax.const(np.int32(1))
    result, analysis = chain.analyse(
        lambda c: residue(c, c.emit(op.subtract(c.emit(op.sign(c.x)), one)), c.emit(op.minimum(c.x, one)))
    )
    assert analysis.of(result) is None
