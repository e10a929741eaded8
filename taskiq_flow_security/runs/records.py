"""Which runs were started, by whom, and where their result will be."""

from __future__ import annotations

from typing import NamedTuple, Protocol


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


class RunStore(Protocol):
    """Keeps the latest runs of each pipeline."""

    async def add(self, run: Run) -> None:
        """Keep a run. Raises `BackendUnavailableError` if that is not possible now."""

    async def get(self, pipeline_id: str, run_id: str) -> Run | None:
        """The run, if it is one of this pipeline. Raises `BackendUnavailableError` if nobody can tell now."""

    async def recent(self, pipeline_id: str, limit: int = 20) -> list[Run]:
        """The pipeline's latest runs, the newest first. Raises `BackendUnavailableError` if nobody can tell now."""
