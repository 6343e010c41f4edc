"""ONNX's own backend test suite: no case is wrong or an internal error. A seeded share, and all among the slow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from tests.backend_suite.cases import Case, load_cases
from tests.backend_suite.judge import Verdict, freeze_inputs, judge, judge_isolated, make_worker
from tests.backend_suite.sweep import judge_all, note
from tests.backend_suite.table import render_status, render_table
from tests.frontend.onnx_text import parse

SHARE = 20
PARTS = 40
"""The suite takes a quarter of an hour on an idle core."""


def _in_scope() -> list[Case]:
    return [case for case in load_cases() if not case.scope]


def _judge_all(cases: Sequence[Case]) -> dict[str, Verdict]:
    with make_worker() as worker:
        return {case.name: judge_isolated(worker, case) for case in cases}


def _findings(verdicts: dict[str, Verdict]) -> list[str]:
    return [f"{name}: {v.outcome}: {v.detail}" for name, v in verdicts.items() if v.outcome not in ("right", "refused")]


def test_a_share() -> None:
    verdicts = _judge_all(Random(0).sample(_in_scope(), SHARE))
    assert _findings(verdicts) == []
    assert sum(verdict.outcome == "right" for verdict in verdicts.values()) >= SHARE / 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all(part: int) -> None:
    assert _findings(_judge_all(_in_scope()[part::PARTS])) == []


def _case(text: str, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], opset: int = 17) -> Case:
    inputs_data, outputs_data = (
        tuple(numpy_helper.from_array(array).SerializeToString() for array in arrays) for arrays in (inputs, outputs)
    )
    model = parse(f"g {text}", opset=opset)
    return Case("case", model.SerializeToString(), inputs_data, outputs_data, 1e-3, 1e-7)


def test_verdicts() -> None:
    data = np.asarray([-1, 2], np.float32)
    relu = "(float[2] x) => (float[2] y) { y = Relu(x) }"
    assert judge(_case(relu, [data], [np.maximum(data, 0)])) == Verdict("right")
    # Stored results that ONNX Runtime does not give, either.
    assert judge(_case(relu, [data], [data])) == Verdict("right", reference="differs")
    random = judge(_case("(float[2] x) => (float[2] y) { y = Bernoulli(x) }", [data], [data]))
    assert (random.outcome, "Bernoulli" in random.detail) == ("refused", True)
    # ONNX Runtime has no Relu of this type, so that the stored results alone count.
    integers = "(int16[2] x) => (int16[2] y) { y = Relu(x) }"
    verdict = judge(_case(integers, [data.astype(np.int16)], [data.astype(np.int16)]))
    assert verdict.reference == "cannot run"
    assert verdict.outcome in ("wrong", "refused")


def test_frozen_inputs() -> None:
    text = "(float[2,3] x, int64[1] shape) => (float[n] y) { y = Reshape(x, shape) }"
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    verdict = judge(_case(text, [data, np.asarray([6])], [data.reshape(6)]))
    assert (verdict.outcome, verdict.frozen) == ("right", True)
    assert "Reshape" in verdict.detail
    frozen = freeze_inputs(parse(f"g {text}"), [data, np.asarray([6])], 0)
    assert isinstance(frozen, ModelProto)
    assert [info.name for info in frozen.graph.input] == ["x"]
    assert [tensor.name for tensor in frozen.graph.initializer] == ["shape"]


def test_a_log_is_taken_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    case = _case("(float[2] x) => (float[2] y) { y = Relu(x) }", [], [])
    note(case, Verdict("right", reference="differs"), log)
    # Nothing is left to do: judging the case would fail, because it has no data.
    assert judge_all([case], 1, log) == {"case": Verdict("right", reference="differs")}


def test_table_and_status() -> None:
    data = np.zeros(2, np.float32)
    case = _case("(float[2] x) => (float[2] y) { y = Relu(x) }", [data], [data])
    verdicts = {"case": Verdict("wrong", "by far", "right")}
    assert "| wrong | 1 | 1 | 0 | 0 |" in render_table([case], verdicts)
    assert render_status([case], verdicts).splitlines() == ["wrong: Relu (1)", "  case [ORT: right] by far"]
    assert onnx.ModelProto.FromString(case.model).graph.node[0].op_type == "Relu"
