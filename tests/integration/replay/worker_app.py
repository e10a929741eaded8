"""As `tests.integration.worker_app`, with tasks that may run once, and acks that a worker does not survive."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable

from taskiq import AsyncBroker, Context, InMemoryBroker, TaskiqDepends
from taskiq.acks import AckableMessage

from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig, guard
from tests.integration import ledger
from tests.integration.transports import Transport, from_environment, redis_client
from tests.integration.worker_app import announce_start, write_audit_lines

APP = "tests.integration.replay.worker_app:broker"


_tasks = InMemoryBroker()
"""Where the tasks are registered for those who kick them. No shared tasks, which every worker of this process has."""


@_tasks.task("once", pipeline="data")
@guard(at_most_once=True)
async def once(marker: str) -> int:
    """A task that may run once."""
    ledger.note_run(marker)
    return 7


@_tasks.task("hold_once", pipeline="data")
@guard(at_most_once=True)
async def hold_once(marker: str) -> int:
    """A task that may run once, and stays in its middle until it is let go."""
    ledger.note_run(marker)
    await ledger.held(marker)
    return 7


@_tasks.task("acks_itself", pipeline="data", ack_type="manual")
async def acks_itself(marker: str, rows: list[int], context: Context = TaskiqDepends()) -> int:
    """A task that acks its message before it returns."""
    ledger.note_run(marker)
    await context.ack()
    return sum(rows)


def kill_at_next_ack(transport: Transport) -> None:
    """Have a worker killed where it is about to ack a message."""
    with redis_client() as redis:
        redis.rpush(f"{transport.name}:kill", "kill")


def broker() -> AsyncBroker:
    """The worker's broker, made from environment variables."""
    transport = from_environment()
    queue = transport.broker()
    listen = queue.listen

    async def listen_to_death() -> AsyncGenerator[bytes | AckableMessage, None]:
        async for message in listen():
            if isinstance(message, AckableMessage):
                message.ack = _deadly(message, transport)
            yield message

    queue.listen = listen_to_death  # type: ignore[method-assign]  # below all that the middleware does
    security = FlowSecurity(TaskiqFlowConfig())
    queue.add_middlewares(SecurityMiddleware(security))
    queue.with_result_backend(security.protect_results(queue.result_backend))
    for task in (once, hold_once, acks_itself):
        queue.register_task(task.original_func, task.task_name, **task.labels)
    announce_start(queue, transport)
    write_audit_lines()
    return queue


def _deadly(message: AckableMessage, transport: Transport) -> Callable[[], Awaitable[None]]:
    acknowledge = message.ack

    async def ack() -> None:
        with redis_client() as redis:
            if redis.lpop(f"{transport.name}:kill") is not None:
                os.kill(os.getpid(), signal.SIGKILL)
        acknowledged = acknowledge()
        if acknowledged is not None:
            await acknowledged

    return ack
