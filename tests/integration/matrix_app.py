"""Tasks that go on their way in every way that there is; ``taskiq worker tests.integration.matrix_app:broker``.

The first task of each way stays in its middle until it is let go, so that the policy can change meanwhile. None has a
pipeline by registration: each case runs for one of its own.
"""

from __future__ import annotations

import os
from typing import Any, Protocol

import taskiq_flow
import taskiq_pipelines
from taskiq import AsyncBroker, Context, SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqDepends
from taskiq.brokers.shared_broker import shared_task
from taskiq.serializers import JSONSerializer
from taskiq_redis import ListRedisScheduleSource

from taskiq_flow_security import FlowSecurity, ProtectedSchedules, SecurityMiddleware, TaskiqFlowConfig
from tests.integration import ledger
from tests.integration.transports import from_environment
from tests.integration.worker_app import announce_start, write_audit_lines
from tests.services import REDIS_URL


@shared_task
async def shared(marker: str) -> str:
    """A shared task."""
    ledger.note_run(marker)
    return "done"


class Tasks:
    """The tasks, on the broker of one process."""

    def __init__(self, broker: AsyncBroker, source: ProtectedSchedules) -> None:
        self.source = source

        @broker.task("finish")
        async def finish(marker: str) -> str:
            ledger.note_run(marker)
            return "done"

        @broker.task("child")
        async def child(marker: str) -> Any:
            await ledger.held(marker)
            kicked = await finish.kiq(marker)
            result = await kicked.wait_result(check_interval=0.02, timeout=20)
            result.raise_for_error()
            return result.return_value

        @broker.task("retried", retry_on_error=True)
        async def retried(marker: str, context: Context = TaskiqDepends()) -> str:
            if "_retries" not in context.message.labels:
                await ledger.held(marker)
                raise ValueError
            ledger.note_run(marker)
            return "done"

        @broker.task("requeued")
        async def requeued(marker: str, context: Context = TaskiqDepends()) -> str:
            if "X-Taskiq-requeue" not in context.message.labels:
                await ledger.held(marker)
                await context.requeue()
            ledger.note_run(marker)
            return "done"

        @broker.task("first")
        async def first(marker: str) -> str:
            await ledger.held(marker)
            return marker

        @broker.task("list")
        async def many(marker: str) -> list[str]:
            await ledger.held(marker)
            return [marker]

        @broker.task("keep")
        async def keep(marker: str) -> bool:
            ledger.note_run(marker)
            return True

        self.finish, self.child, self.retried, self.requeued = finish, child, retried, requeued
        self.first, self.many, self.keep = first, many, keep


class Queue(Protocol):
    """What has a name and makes brokers: a `Transport`, or what stands for one."""

    @property
    def name(self) -> str: ...

    def broker(self) -> AsyncBroker: ...


def deployed(transport: Queue, config: TaskiqFlowConfig, retries: str = "") -> tuple[AsyncBroker, Tasks]:
    """The broker and its tasks. `retries` is the middleware that retries: simple, smart, or smart by a schedule.

    With smart retries, pipelines are taskiq-flow's; both libraries use the same labels.
    """
    security = FlowSecurity(config)
    pipelines = taskiq_flow.PipelineMiddleware() if retries == "smart" else taskiq_pipelines.PipelineMiddleware()
    broker = transport.broker().with_middlewares(SecurityMiddleware(security), pipelines)
    broker.with_result_backend(security.protect_results(broker.result_backend))
    store = ListRedisScheduleSource(REDIS_URL, prefix=f"{transport.name}-schedules", serializer=JSONSerializer())
    source = ProtectedSchedules(store, broker)
    if retries == "simple":
        broker.add_middlewares(SimpleRetryMiddleware())
    elif retries:
        by_schedule = source if retries == "smart, scheduled" else None
        broker.add_middlewares(SmartRetryMiddleware(default_delay=0, use_jitter=False, schedule_source=by_schedule))
    return broker, Tasks(broker, source)


def broker() -> AsyncBroker:
    """The worker's broker, made from environment variables."""
    transport = from_environment()
    secured, _ = deployed(transport, TaskiqFlowConfig(), os.environ["MATRIX_RETRIES"])
    announce_start(secured, transport)
    write_audit_lines()
    return secured
