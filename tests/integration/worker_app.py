"""The application: tests kick its tasks, and ``taskiq worker tests.integration.worker_app:broker`` runs them.

The tasks are shared ones, so that each test can kick them over the broker that it is about.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Mapping
from typing import Any

from taskiq import AsyncBroker, TaskiqDepends, TaskiqEvents, TaskiqState
from taskiq.brokers.shared_broker import shared_task

from taskiq_flow_security import (
    FlowSecurity,
    Principal,
    SecurityMiddleware,
    TaskiqFlowConfig,
    current_principal,
    guard,
)
from taskiq_flow_security.audit import AuditFormatter
from tests.integration import ledger
from tests.integration.transports import Transport, from_environment, redis_client

MOST_ROWS = 3


def few_rows(_caller: Principal, arguments: Mapping[str, Any]) -> bool:
    """The predicate of `import_rows`."""
    return len(arguments["rows"]) <= MOST_ROWS


@shared_task(pipeline="data")
async def clean(marker: str, rows: list[int]) -> int:
    """A task that processors may run."""
    ledger.note_run(marker)
    return sum(rows)


@shared_task(pipeline="restricted")
async def purge(marker: str) -> None:
    """A task that the callers' configuration lets processors run, but not the workers'."""
    ledger.note_run(marker)


@shared_task(pipeline="data")
@guard(roles=["processor"], predicate=few_rows)
async def import_rows(
    marker: str,
    rows: list[int],
    caller: Principal = TaskiqDepends(current_principal),
) -> str:
    """A guarded task."""
    ledger.note_run(marker)
    return f"{caller.subject} imported {len(rows)}"


@shared_task(pipeline="data")
@guard(roles=["processor"])
async def hold(marker: str, caller: Principal = TaskiqDepends(current_principal)) -> str:
    """A task that stays in its middle until it is let go."""
    ledger.note_run(marker)
    await ledger.held(marker)
    return f"{caller.subject} was let go"


@shared_task(pipeline="data")
def crunch(marker: str) -> int:
    """A synchronous task."""
    ledger.note_run(marker)
    return os.getpid()


@shared_task(pipeline="restricted")
def crunch_restricted(marker: str) -> int:
    """A synchronous task that the workers' configuration denies to processors."""
    ledger.note_run(marker)
    return os.getpid()


@shared_task(pipeline="data")
@guard(roles=["processor"])
def crunch_guarded(marker: str, caller: Principal = TaskiqDepends(current_principal)) -> tuple[int, str, str]:
    """A synchronous, guarded task, which asks who its caller is in both ways."""
    ledger.note_run(marker)
    return os.getpid(), caller.subject, current_principal().subject


def broker() -> AsyncBroker:
    """The worker's broker, made from environment variables."""
    transport = from_environment()
    security = FlowSecurity(TaskiqFlowConfig())
    secured = transport.broker().with_middlewares(SecurityMiddleware(security))
    secured.with_result_backend(security.protect_results(secured.result_backend))
    announce_start(secured, transport)
    write_audit_lines()
    return secured


def announce_start(secured: AsyncBroker, transport: Transport) -> None:
    """Tell the test when the worker is ready."""

    @secured.on_event(TaskiqEvents.WORKER_STARTUP)
    async def announce(_state: TaskiqState) -> None:
        # TaskIQ's own signal handlers do not wake an idle event loop. One of the loop's own makes every signal wake it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
        with redis_client() as redis:
            redis.rpush(f"{transport.name}:ready", os.getpid())


def write_audit_lines() -> None:
    """Write audit events to the worker's log."""
    audit_lines = logging.StreamHandler()
    audit_lines.setFormatter(AuditFormatter())
    logging.getLogger("taskiq_flow.audit").addHandler(audit_lines)
