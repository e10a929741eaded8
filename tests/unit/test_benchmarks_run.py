"""The benchmarks are no tests; these only see to it that they still run."""

from __future__ import annotations

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import decisions
from tests.benchmarks.harness import Effort
from tests.services import require

BARELY = Effort(rounds=2, batch_seconds=0, redis_rounds=2, redis_tasks=50)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure next to nothing."""
    monkeypatch.setattr(benchmarks, "QUICK", BARELY)
    monkeypatch.setattr(decisions, "PIPELINES", (10, 100))


@pytest.mark.parametrize("part", ["inmemory", "primitives", "decisions", "results", "http"])
def test_a_part_prints_what_it_measured(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.main(["--quick", part])
    assert "ratio" in capsys.readouterr().out


def test_the_targets_come_last_beside_the_measured_values(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.main(["--quick", "inmemory"])
    *_, last = capsys.readouterr().out.split("\n\n")
    assert last.startswith("Targets")


def test_the_part_over_redis_runs_real_workers(capsys: pytest.CaptureFixture[str]) -> None:
    require("redis")
    benchmarks.main(["--quick", "redis"])
    assert "tasks/s" in capsys.readouterr().out


def test_the_profile_shows_the_stages_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.main(["--quick", "--profile"])
    assert "formatter.dumps signs" in capsys.readouterr().out


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        benchmarks.main(["nothing"])
    assert "unknown part: nothing" in capsys.readouterr().err
