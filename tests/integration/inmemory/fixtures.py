"""What the tests without services share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
from taskiq import TaskiqMiddleware

from tests.integration.inmemory.harness import AuditTrail, Clock, Process


class NewProcess(Protocol):
    """Makes another process, with settings of its own."""

    def __call__(
        self,
        *,
        clock: Clock | None = None,
        before: tuple[TaskiqMiddleware, ...] = (),
        after: tuple[TaskiqMiddleware, ...] = (),
        secured: bool = True,
        **settings: Any,
    ) -> Process: ...


@pytest.fixture
def audit() -> Iterator[AuditTrail]:
    """The audit events of all processes."""
    trail = AuditTrail()
    logger = logging.getLogger("taskiq_flow.audit")
    logger.addHandler(trail)
    yield trail
    logger.removeHandler(trail)


@pytest.fixture
def clock() -> Clock:
    """The clock of all processes that have none of their own."""
    return Clock()


@pytest.fixture
def new_process(audit: AuditTrail, clock: Clock) -> NewProcess:
    """Makes processes."""
    common = clock

    def make(
        *,
        clock: Clock | None = None,
        before: tuple[TaskiqMiddleware, ...] = (),
        after: tuple[TaskiqMiddleware, ...] = (),
        secured: bool = True,
        **settings: Any,
    ) -> Process:
        return Process(audit, clock or common, before=before, after=after, secured=secured, **settings)

    return make


@pytest.fixture
def process(new_process: NewProcess) -> Process:
    """A process that both kicks and works."""
    return new_process()
