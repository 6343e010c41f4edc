"""Float64 decides: what lies within rounding of a threshold is right on either side, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import bnn_compiler
from bnn_compiler.compiled_network import CompiledNetwork
from bnn_compiler.errors import VerificationError
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.tensor_spec import TensorSpec
from bnn_compiler.verification.attempts import verify_network
from bnn_compiler.verification.corrections import correction_feed, with_corrections
from bnn_compiler.verification.float64_model import static_shapes
from bnn_compiler.verification.referee import Referee
from bnn_compiler.verification.reference import Array, Reference, expose
from tests.frontend.onnx_text import parse

RNG = np.random.default_rng(8)
X = RNG.standard_normal((1, 8, 12, 12)).astype(np.float32)


def network(tail: str = "", output: str = "y") -> ModelProto:
    """A float convolution, a sign, a binary convolution, and a ``tail`` that reads its result ``y``."""
    model = parse(
        f"""g (float[1,8,12,12] x) => (float {output}) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, v, b) s = Sign(a) y = Conv(s, w) {tail} }}"""
    )
    model.graph.node[2].name = "binary"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    weights = {
        "v": RNG.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "b": RNG.standard_normal(16).astype(np.float32),
        "w": RNG.choice(np.asarray([-1, 1], np.float32), (4, 16, 3, 3)),
        "third": np.asarray(1 / 3, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


LAYER = BinaryLayer(
    name="binary", function="layer_0", input_tensor="a", output_tensor="y", scale=np.ones(4, np.float32), bias=None,
    macs=0, fan_in=144, input_shape=(1, 16, 12, 12), channel_axis=1, exact=True,
)  # fmt: skip


@dataclass(frozen=True)
class Other:
    """An artifact that computes with ONNX Runtime; ``change`` is done to its values of ``a``."""

    model: ModelProto
    change: Callable[[Array], Array]
    tail: Callable[[Array], Array] = lambda value: value

    def _values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        shapes = static_shapes(self.model)
        a = Reference(expose(self.model, ["a"]), optimise=False).run(feeds)["a"]
        changed = with_corrections(expose(self.model, ["a"]), ["a"], shapes)
        return Reference(changed, optimise=False).run(
            {**feeds, **correction_feed({"a": self.change(a) - a}, ["a"], shapes)}
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        name = self.model.graph.output[0].name
        return {name: self.tail(self._values(feeds)[name])}

    def run_function(self, name: str, value: Array) -> Array:
        assert name == "layer_0_bits"
        return np.packbits(value > 0)

    def activation_bits(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"layer_0": np.packbits(self._values(feeds)["a"] > 0)}


def near(model: ModelProto, target: float) -> tuple[ModelProto, dict[str, Array]]:
    """``model`` with a bias that leaves one element per channel within an ulp or two of ``target`` on ``X``."""
    a = Reference(expose(model, ["a"]), optimise=False).run({"x": X})["a"]
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b")
    values = numpy_helper.to_array(bias) - a[0, :, 5, 6] + np.float32(target)
    bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), "b"))
    return model, {"x": X}


def test_rounding_decides_and_both_are_right() -> None:
    model, feed = near(network(), 0)
    a = Reference(expose(model, ["a"]), optimise=False).run(feed)["a"]
    moved = np.where(np.abs(a) < 1e-5, -np.sign(a) * np.float32(1e-6) + np.float32(5e-7) * (a == 0), a)
    flipped = int(((moved > 0) != (a > 0)).sum())
    assert flipped > 2, "more than the first layer may have otherwise"
    ruling = Referee(Other(model, lambda _: moved), model, [LAYER]).judge(feed)
    assert ruling.wrong is None and ruling.decided == flipped


@pytest.mark.parametrize("size", [1e-3, 1e-1])
def test_one_wrong_sign_is_noticed(size: float) -> None:
    model, feed = near(network(), 0)

    def wrong(a: Array) -> Array:
        index = np.argmin(np.abs(np.abs(a) - size))
        changed = a.copy()
        changed.flat[index] = -changed.flat[index]
        return changed

    ruling = Referee(Other(model, wrong), model, [LAYER]).judge(feed)
    assert ruling.wrong is not None and "layer 'binary'" in ruling.wrong and "in float64" in ruling.wrong


def test_wrong_glue_behind_equal_signs_is_noticed() -> None:
    model, feed = near(network("t = Mul(y, third)", "t"), 0)
    ruling = Referee(Other(model, lambda a: a, lambda t: t * np.float32(1.001)), model, [LAYER]).judge(feed)
    assert ruling.wrong is not None and "same signs and codes" in ruling.wrong


def test_a_threshold_of_integers_is_exact() -> None:
    """Sums of signs are exact in float32: a comparison that takes one of them the other way is wrong."""
    model = parse("g (float[1,8,6,6] x) => (float[1,4,4,4] y) { s0 = Sign(x) a = Conv(s0, w) s = Sign(a) y = Neg(s) }")
    weights = RNG.choice(np.asarray([-1, 1], np.float32), (4, 8, 3, 3))
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    layer = BinaryLayer(
        name="none", function="layer_0", input_tensor="a", output_tensor="y", scale=np.ones(4, np.float32), bias=None,
        macs=0, fan_in=72, input_shape=(1, 4, 4, 4), channel_axis=1, exact=True,
    )  # fmt: skip
    x = RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)
    right = Other(model, lambda a: a)
    assert Referee(right, model, [layer]).judge({"x": x}).wrong is None
    wrong = Other(model, lambda a: np.where(a == 0, np.float32(1), a))
    assert Referee(wrong, model, [layer]).judge({"x": x}).wrong is not None


def test_a_quantised_output_may_round_either_way() -> None:
    """No layer reads the codes: what ONNX Runtime does with as much rounding is the measure."""
    model, feed = near(network("q = Mul(a, third) r = Round(q) t = Mul(r, third)", "t"), 1.5)

    def ruling_of(change: Callable[[Array], Array]) -> str | None:
        return Referee(Other(model, change), model, [LAYER]).judge(feed).wrong

    def one_code(a: Array) -> Array:
        changed = a.copy()
        changed.flat[np.argmax(np.abs(a - 3))] += 3
        return changed

    a = Reference(expose(model, ["a"]), optimise=False).run(feed)["a"]
    assert int((np.abs(a - 1.5) < 1e-5).sum()) > 2
    assert ruling_of(lambda a: a) is None
    assert ruling_of(lambda a: np.where(np.abs(a - 1.5) < 1e-5, 3 - a, a)) is None
    assert ruling_of(one_code) is not None, "one wrong code is no rounding, however many ties there are"


def test_a_network_without_discontinuities_is_compared_as_it_is() -> None:
    model = parse("g (float[1,8,12,12] x) => (float[1,8,12,12] t) { a = Neg(x) t = Exp(a) }")
    right = Other(model, lambda a: a)
    assert Referee(right, model, []).judge({"x": X}).wrong is None
    wrong = Other(model, lambda a: a, lambda t: t * np.float32(1.01))
    assert Referee(wrong, model, []).judge({"x": X}).wrong is not None


class TestCompiled:
    """The whole way: networks that ``compile_model`` takes, and wrong ones that it does not."""

    def test_quantised_values_at_a_tie(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Weights that are multiples of a step of ⅓ put float sums on ties of the quantiser behind them."""
        rng = np.random.default_rng(1)
        model = parse(
            """g (float[1,8,16,16] x) => (float[1,4,16,16] y) <float step = {0.1}, float low = {0}, float high = {15}> {
            c0 = Conv<pads = [1, 1, 1, 1]>(x, v) d0 = Div(c0, step) q0 = Round(d0) k0 = Clip(q0, low, high)
            e0 = Mul(k0, step) c1 = Conv<pads = [1, 1, 1, 1]>(e0, u) d1 = Div(c1, step) q1 = Round(d1)
            k1 = Clip(q1, low, high) e1 = Mul(k1, step) y = Conv(e1, w) }"""
        )
        step = np.float32(0.05)
        weights = {
            "v": rng.integers(-7, 8, (16, 8, 3, 3)).astype(np.float32) * step,
            "u": rng.integers(-7, 8, (16, 16, 3, 3)).astype(np.float32) * step,
            "w": rng.integers(-7, 8, (4, 16, 1, 1)).astype(np.float32) * step,
        }
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
        report = bnn_compiler.compile_model(model).report
        assert report["verification"] is not None and report["verification"]["passed"]
        honest = CompiledNetwork.run

        def wrong(self: CompiledNetwork, *args: object, **options: object) -> dict[str, Array]:
            outputs = honest(self, *args, **options)  # type: ignore[arg-type]
            return {name: value * np.float32(1.01) for name, value in outputs.items()}

        monkeypatch.setattr(CompiledNetwork, "run", wrong)
        with pytest.raises(VerificationError, match="bug of the compiler"):
            bnn_compiler.compile_model(model)


def test_verify_network_asks_float64() -> None:
    model, _ = near(network(), 0)

    @dataclass(frozen=True)
    class Imported:
        onnx_model: ModelProto
        inputs: tuple[TensorSpec, ...] = (TensorSpec("x", (1, 8, 12, 12), "float32"),)

    def nudged(a: Array) -> Array:
        return np.where(np.abs(a) < 4e-6, -a, a)

    artifact = Whole(model, nudged)
    result = verify_network(artifact, Imported(model), [LAYER], original=model, zero_as_plus_one=(), float_layers=1)
    assert result.failure is None, result.failure
    far = verify_network(
        Whole(model, lambda a: np.where(np.abs(a) < 1e-2, -a, a)), Imported(model), [LAYER], original=model,
        zero_as_plus_one=(), float_layers=1,
    )  # fmt: skip
    assert far.failure is not None and "float64" in far.failure


@dataclass(frozen=True)
class Whole(Other):
    """Also computes its layer alone, rightly."""

    def run_function(self, name: str, value: Array) -> Array:
        if name.endswith("_bits"):
            return super().run_function(name, value)
        weights = next(tensor for tensor in self.model.graph.initializer if tensor.name == "w")
        part = parse("g (float[1,16,12,12] a) => (float[1,4,10,10] y) { s = Sign(a) y = Conv(s, w) }")
        part.graph.initializer.append(weights)
        return Reference(part).run({"a": value})["y"]
