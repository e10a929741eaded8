"""Runs and events to try things with."""

from __future__ import annotations

from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from taskiq_flow_security.runs.records import Run, RunOutcome, RunState

NOW = 1_800_000_000.0

COMPLETED = RunOutcome(RunState.COMPLETED)
REFUSED = RunOutcome(RunState.REFUSED, "AccessDeniedError", "whitelist", "The caller may not do this.")


def event(number: int = 0, pipeline_id: str = "data", *, time: float = NOW) -> RunEvent:
    """An event that is told from others by its task id."""
    return RunEvent(
        pipeline_id=pipeline_id,
        run_id="run",
        kind=RunEventKind.STARTED,
        time=time,
        task="clean",
        task_id=str(number),
        subject="alice",
    )


def run(number: int = 0, pipeline_id: str = "data", *, started_at: float = NOW) -> Run:
    """A run that is told from others by its id."""
    return Run(str(number), pipeline_id, f"task-{number}", "alice", started_at + number)
