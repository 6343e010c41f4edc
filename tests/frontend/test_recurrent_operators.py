"""RNN, GRU and LSTM, written out, against ONNX Runtime.

Sums run in another order than in ONNX Runtime, whose sigmoid and tanh are approximations of their own: over a few steps
of values around 1 that moves results by some 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from bnn_compiler.errors import ModelError, UnsupportedOperatorError
from bnn_compiler.frontend import import_onnx

from .onnx_text import Array, operators, run_onnx, run_relax
from .small_models import small_model

F32 = np.float32
STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 5, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TOLERANCE = 1e-5


def _operands(operator: str, directions: int, *, seed: int = 0) -> dict[str, Array]:
    """Every operand the operator can have, in order."""
    rng = np.random.default_rng(seed)
    rows = GATES[operator] * HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "x": (STEPS, BATCH, INPUTS),
        "w": (directions, rows, INPUTS),
        "r": (directions, rows, HIDDEN),
        "b": (directions, 2 * rows),
        "lengths": (BATCH,),
        "h0": (directions, BATCH, HIDDEN),
    }
    if operator == "LSTM":
        shapes |= {"c0": (directions, BATCH, HIDDEN), "p": (directions, 3 * HIDDEN)}
    operands: dict[str, Array] = {name: rng.uniform(-1, 1, shape).astype(F32) for name, shape in shapes.items()}
    operands["lengths"] = np.array([4, 1, 3], np.int32)
    return operands


def _model(
    operator: str, operands: dict[str, Array], given: tuple[str, ...], fed: tuple[str, ...] = ("x",), **attributes: Any
) -> tuple[ModelProto, dict[str, Array]]:
    """A model of one node that has the operands ``given``; those of ``fed`` are inputs of the graph."""
    names = list(operands)
    last = max(names.index(name) for name in given)
    inputs = [name if name in given else "" for name in names[: last + 1]]
    outputs = ["y", "y_h", "y_c"] if operator == "LSTM" else ["y", "y_h"]
    node = helper.make_node(operator, inputs, outputs, name="rnn", hidden_size=HIDDEN, **attributes)
    feeds = {name: operands[name] for name in given if name in fed}
    constants = {name: operands[name] for name in given if name not in fed}
    return small_model([node], feeds, dict.fromkeys(outputs, 1), constants, opset=17), feeds


def _check(model: ModelProto, feeds: dict[str, Array]) -> None:
    imported = import_onnx(model)
    assert not {"RNN", "GRU", "LSTM"} & set(operators(imported.onnx_model))
    expected = run_onnx(model, feeds)
    for results in (
        run_onnx(imported.onnx_model, feeds),
        run_relax(imported.module, [feeds[spec.name] for spec in imported.inputs]),
    ):
        for found, want in zip(results, expected, strict=True):
            assert found.shape == want.shape
            np.testing.assert_allclose(found, want, rtol=0, atol=TOLERANCE)


BASIC = ("x", "w", "r")


@pytest.mark.parametrize("operator", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions(operator: str, direction: str) -> None:
    """With all operands but peepholes; the lengths of the sequences are a constant."""
    operands = _operands(operator, 2 if direction == "bidirectional" else 1)
    given = tuple(name for name in operands if name != "p")
    _check(*_model(operator, operands, given, direction=direction))


@pytest.mark.parametrize("operator", GATES)
def test_operands_known_at_run_time(operator: str) -> None:
    """Weights, states and lengths as inputs of the graph."""
    operands = _operands(operator, 2)
    _check(*_model(operator, operands, tuple(operands), tuple(operands), direction="bidirectional"))


@pytest.mark.parametrize(
    ("operator", "given", "attributes"),
    [
        ("RNN", BASIC, {}),
        ("RNN", (*BASIC, "b"), {"activations": ["Relu"], "clip": 0.5}),
        ("GRU", (*BASIC, "b", "h0"), {"linear_before_reset": 1}),
        ("GRU", (*BASIC, "h0"), {"linear_before_reset": 1, "clip": 0.3}),
        ("GRU", BASIC, {"activations": ["HardSigmoid", "Softsign"]}),
        ("LSTM", (*BASIC, "b", "p"), {}),
        ("LSTM", (*BASIC, "b", "p", "c0"), {"input_forget": 1, "clip": 0.4}),
        (
            "LSTM",
            (*BASIC, "h0"),
            {
                "activations": ["HardSigmoid", "LeakyRelu", "ScaledTanh"],
                "activation_alpha": [0.3, 0.1, 1.5],
                "activation_beta": [0.4, 0.7],
            },
        ),
        ("LSTM", BASIC, {"activations": ["Affine", "Elu", "ThresholdedRelu"], "activation_alpha": [0.5, 0.7, 0.1]}),
    ],
)
def test_forms(operator: str, given: tuple[str, ...], attributes: dict[str, Any]) -> None:
    _check(*_model(operator, _operands(operator, 1), given, **attributes))


@pytest.mark.parametrize("operator", GATES)
def test_batch_first(operator: str) -> None:
    """ONNX Runtime refuses ``layout`` 1: the reference is the same network with the batch second."""
    operands = _operands(operator, 2)
    given = tuple(name for name in operands if name != "lengths")
    model, feeds = _model(operator, operands, given, direction="bidirectional")
    expected = run_onnx(model, feeds)
    turned = {
        name: np.ascontiguousarray(array.swapaxes(0, 1)) if name in {"x", "h0", "c0"} else array
        for name, array in operands.items()
    }
    other, feeds = _model(operator, turned, given, direction="bidirectional", layout=1)
    found = run_onnx(import_onnx(other).onnx_model, feeds)
    np.testing.assert_allclose(found[0], expected[0].transpose(2, 0, 1, 3), rtol=0, atol=TOLERANCE)
    for state, want in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(state, want.swapaxes(0, 1), rtol=0, atol=TOLERANCE)


def test_only_the_last_state_is_wanted() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], name="rnn", hidden_size=HIDDEN)
    operands = _operands("LSTM", 1)
    feeds = {"x": operands["x"]}
    model = small_model([node], feeds, {"c": 1}, {name: operands[name] for name in "wr"}, opset=12)
    _check(model, feeds)
    assert "Concat" not in operators(import_onnx(model).onnx_model)[:-1]


@pytest.mark.parametrize(
    ("name", "shape", "attributes", "message"),
    [
        ("r", (1, 3 * HIDDEN, HIDDEN + 1), {}, r"'r' of shape \[1, 6, 3\]; \[1, 6, 2\] is expected"),
        ("w", (2, 3 * HIDDEN, INPUTS), {}, r"'w' of shape \[2, 6, 5\]; \[1, 6, 5\] is expected"),
        ("w", (1, 3 * HIDDEN, INPUTS), {"activations": ["Sin", "Tanh"]}, "unknown activation 'Sin'"),
        ("w", (1, 3 * HIDDEN, INPUTS), {"activations": ["Tanh"]}, "must name 2 activations"),
        ("w", (1, 3 * HIDDEN, INPUTS), {"direction": "sideways"}, "unknown direction 'sideways'"),
    ],
)
def test_contradictions(name: str, shape: tuple[int, ...], attributes: dict[str, Any], message: str) -> None:
    operands = _operands("GRU", 1)
    operands[name] = np.zeros(shape, F32)
    model, _ = _model("GRU", operands, BASIC, **attributes)
    with pytest.raises(ModelError, match=f"GRU node 'rnn'.*{message}|contradict"):
        import_onnx(model)


def test_long_sequences_are_refused_at_once() -> None:
    operands = _operands("GRU", 1)
    model, _ = _model("GRU", operands, BASIC)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, (10**9, 1, INPUTS)))
    with pytest.raises((UnsupportedOperatorError, ModelError), match=r"has 1000000000 steps|of memory"):
        import_onnx(model)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, (1000, 1, INPUTS)))
    with pytest.raises(UnsupportedOperatorError, match="GRU node 'rnn' has 1000 steps, which would be written out as"):
        import_onnx(model)
