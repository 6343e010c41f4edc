"""Damaged models: bits flipped, fields changed, nodes rewired; each gives a model or one clear line, never a crash.

A part of the sweep ``python -m tests.mutations.sweep``, over the example network and small graphs made here. The cases
run in a process apart, so that a crash of native code or a hang fails one test and does not end them all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frontend.test_hostile_models import SEEDS

from .e2e.test_spellings import SPELLINGS, model_of
from .frontend.onnx_text import parse
from .isolation import IsolatedWorker
from .mutations.sweep import run_cases

CASES = 500


@pytest.fixture(scope="module")
def originals(digits: Path) -> list[bytes]:
    spellings = [model_of({name: text}).SerializeToString() for name, (text, _) in list(SPELLINGS.items())[::5]]
    return [*(parse(text).SerializeToString() for text in SEEDS), *spellings, digits.read_bytes()]


def test_damage(originals: list[bytes]) -> None:
    ends, findings = run_cases(originals, range(CASES))
    assert findings == []
    # The damage is real, and does not always make the model useless.
    assert ends["refused"] > CASES // 4
    assert ends["compiled"] > CASES // 50


def _end_process(_: bytes) -> str:
    import os  # noqa: PLC0415  # in the worker

    os.abort()


def _hang(_: bytes) -> str:
    while True:
        pass


def _echo(payload: bytes) -> str:
    print("a library that prints")
    return payload.decode()


@pytest.mark.parametrize(
    ("function", "fate"), [("_end_process", "SIGABRT"), ("_hang", "no answer within 3 s"), ("_echo", "")]
)
def test_what_becomes_of_the_process_is_noticed(function: str, fate: str) -> None:
    name = f"tests.test_damaged_models:{function}"
    with IsolatedWorker(name, time_limit=3.0, memory_limit=1 << 30) as worker:
        for payload in (b"one", b"two"):
            outcome = worker.run(payload)
            assert fate in outcome.fate
            assert outcome.survived == (not fate)
            assert outcome.text == ("" if fate else payload.decode())
