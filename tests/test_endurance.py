"""A short part of each trial of ``python -m tests.endurance``; some of them are slow to begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

from .endurance import kills
from .endurance.__main__ import TRIALS, Trial
from .endurance.kills import killed_compilations
from .endurance.load_and_run import many_loads
from .endurance.trial import Budget, Result

#: In every run of the tests, with seconds; the others are marked slow.
_ALWAYS: dict[Trial, float] = {
    killed_compilations: 2.0,
    many_loads: 1.0,
}


@pytest.mark.parametrize("trial", _ALWAYS, ids=lambda trial: trial.__name__)
def test_a_moment_of(trial: Trial, tmp_path: Path) -> None:
    result = trial(Budget(_ALWAYS[trial], 0, tmp_path / "trial"))
    assert result.failures == [] and result.tried > 0


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.__name__)
def test_a_minute_of(trial: Trial, tmp_path: Path) -> None:
    assert trial(Budget(60.0, 1, tmp_path / "trial")).failures == []


def test_a_file_that_is_not_whole_is_noticed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "report.json").write_text('{"cut')
    result = Result("made up")
    kills._check_outputs(kills.COMPILE, work, result, whole_run=True)
    assert [failure.split(":")[0] for failure in result.failures] == [
        "a run to its end wrote too little", "report.json is not whole",
    ]  # fmt: skip
