"""Which runs were started, by whom, where their result will be, and what has become of them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from taskiq_flow_security.core.string_enum import StringEnum


class RunState(StringEnum):
    """How far a run is."""

    RUNNING = "running"
    """Nobody has seen a result."""
    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    """It may not run, or its result cannot be believed."""


class RunOutcome(NamedTuple):
    """What has become of a run, as its result said when it was read. Holds nothing of the result itself."""

    state: RunState
    error_type: str | None = None
    """The type of the exception, where there is no result."""
    reason: str | None = None
    """A stable code, for refusals and runs that were given up."""
    detail: str | None = None
    """For the same."""


class Run(NamedTuple):
    """One execution of a pipeline."""

    run_id: str
    """The ``txn`` of the request that started it."""
    pipeline_id: str
    task_id: str
    """The task whose result is the run's."""
    subject: str
    started_at: float
    """Seconds since the epoch."""
    outcome: RunOutcome | None = None
    """``None`` until somebody has seen the result."""


class RunStore(Protocol):
    """Keeps the latest runs of each pipeline."""

    async def add(self, run: Run) -> None:
        """Keep a run. Raises `BackendUnavailableError` if that is not possible now."""

    async def update(self, run: Run) -> None:
        """Keep what has become of a run that was added. Raises `BackendUnavailableError` if that cannot be done now."""

    async def get(self, pipeline_id: str, run_id: str) -> Run | None:
        """The run, if it is one of this pipeline. Raises `BackendUnavailableError` if nobody can tell now."""

    async def recent(self, pipeline_id: str, limit: int = 20) -> list[Run]:
        """The pipeline's latest runs, the newest first. Raises `BackendUnavailableError` if nobody can tell now."""
