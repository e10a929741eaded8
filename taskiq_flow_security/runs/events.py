"""What happens to the tasks of a run, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from taskiq_flow_security.core.string_enum import StringEnum


class RunEventKind(StringEnum):
    """What has happened to a task."""

    ENQUEUED = "enqueued"
    STARTED = "started"
    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"


class RunEvent(NamedTuple):
    """One step of one task. Holds names and identifiers only, never an argument, a result or a token."""

    pipeline_id: str
    run_id: str
    """The ``txn`` of the request that all tasks of the run are done for."""
    kind: RunEventKind
    time: float
    """Seconds since the epoch."""
    task: str
    task_id: str
    reason: str | None = None
    """Why it was refused (one of `core.reasons.Reason`), or the type of the exception by which it failed."""
    subject: str | None = None


class RunEvents(Protocol):
    """Carries events from where they happen to who wants to see them. Nothing is kept for later."""

    @property
    def watched(self) -> bool:
        """Whether anybody may have subscribed to anything; if not, no event needs to be made."""

    def publish(self, event: RunEvent) -> None:
        """Tell everybody who has subscribed. From any thread; never blocks and never raises.

        Where it cannot be sent as fast as events happen, the oldest are dropped, and the log says how many.
        """

    def subscribe(self, pipeline_id: str) -> AbstractAsyncContextManager[AsyncIterator[RunEvent]]:
        """The pipeline's events from here on, in the order in which each process published them; that a task is
        enqueued comes before that it starts.

        Else those of several processes may overtake each other by milliseconds; `RunEvent.time` says what came first.
        Who is slow misses the oldest ones. The iterator ends with `close`.
        """

    async def flush(self) -> None:
        """Wait until what was published has been sent, for a few seconds at most."""

    async def close(self) -> None:
        """Flush, end all subscriptions, and let go of connections. What is published later opens them again."""
