"""What a user sees of one call of ``bnnc``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a user sees of one call."""

    status: int
    out: str
    err: str


Bnnc = Callable[..., Outcome]


def assert_refused(outcome: Outcome, status: int, *texts: str) -> None:
    """One line on stderr, nothing on stdout."""
    assert outcome.status == status, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("bnnc: ") and outcome.err.count("\n") == 1, outcome.err
    assert all(text in outcome.err for text in texts), outcome.err
