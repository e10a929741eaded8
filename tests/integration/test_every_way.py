"""Every way in which work moves, over every kind of broker: its principal goes with it, and the policy holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain, product
from typing import Any
from uuid import uuid4

import pytest
import taskiq_flow
from redis.asyncio import Redis
from taskiq import AsyncBroker, AsyncTaskiqTask, InMemoryBroker, TaskiqResult, TaskiqScheduler
from taskiq_pipelines import Pipeline

from taskiq_flow_security import FlowSecurityError, PolicyChange, Principal, Revocation, TaskiqFlowConfig
from tests.integration import ledger
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.matrix_app import Queue, Tasks, deployed, shared
from tests.integration.settings import MESSAGE_SECRET, signing_key
from tests.integration.transports import TRANSPORTS
from tests.integration.waiting import until
from tests.services import REDIS_URL, require

SECONDS = 30
ADMIN = Principal("root", permissions=["admin"])

OUTCOMES = ["allowed", "denied", "revoked"]
KICKED = ["kick", "shared"]
SCHEDULED = ["by time", "by interval", "by cron"]
QUEUED = [*KICKED, *SCHEDULED]
"""Ways on which the policy changes before the first task runs."""
RETRIES = ["simple", "smart", "smart, scheduled"]
HELD = {
    "simple": ["child", "requeue", "sequential", "map", "filter"],
    "smart": ["flow sequential", "flow map", "flow filter"],
    "smart, scheduled": [],
}
"""Ways on which it changes in the middle of the first one, by what retries on the workers that know them."""
AT_ONCE = 3
"""How many of them, with each outcome: RabbitMQ gives a worker ten messages at once."""


class Case:
    """One way with one outcome, by somebody of its own and for a pipeline of its own."""

    def __init__(self, way: str, outcome: str, transport: Queue) -> None:
        self.way, self.outcome = way, outcome
        self.name = f"{way}, {outcome}".replace(" ", "-").replace(",", "")
        self.principal = Principal(self.name, roles=["processor"])
        self.marker = f"{transport.name}:{uuid4().hex}"
        self.kicked: AsyncTaskiqTask[Any] | None = None

    async def check(self, result: TaskiqResult[Any] | None) -> None:
        """Check what has become of it."""
        reason = {"allowed": None, "denied": "acl", "revoked": "revoked"}[self.outcome]
        assert ledger.runs(self.marker) == (reason is None), self.name
        if result is None:
            return
        if reason is None:
            assert not result.is_err, (self.name, result.error)
        else:
            assert isinstance(result.error, FlowSecurityError), (self.name, result.error)
            assert getattr(result.error, "reason", None) == reason, self.name


class Matrix:
    """A client of one queue, which can change the policy for all."""

    def __init__(self, transport: Queue, retries: str = "") -> None:
        acl = {"execute": ["processor"]}
        ways = [*QUEUED, *chain(*HELD.values()), *RETRIES]
        self.transport = transport
        self.cases = {(way, outcome): Case(way, outcome, transport) for way, outcome in product(ways, OUTCOMES)}
        self.config = TaskiqFlowConfig(
            signing_keys=[signing_key("key", MESSAGE_SECRET)],
            pipeline_acls={case.name: acl for case in self.cases.values()},
            shared_store=REDIS_URL,
            principal_audience=transport.name,
        )
        self.broker, self.tasks = deployed(transport, self.config, retries)
        middleware = next(other for other in self.broker.middlewares if hasattr(other, "security"))
        self.security = middleware.security

    def variables(self, retries: str) -> dict[str, str]:
        """The settings of a worker."""
        return {
            "TASKIQ_FLOW_SIGNING_KEYS": json.dumps([signing_key("key", MESSAGE_SECRET)]),
            "TASKIQ_FLOW_PIPELINE_ACLS": json.dumps(self.config.model_dump(mode="json")["pipeline_acls"]),
            "TASKIQ_FLOW_SHARED_STORE": REDIS_URL,
            "TASKIQ_FLOW_PRINCIPAL_AUDIENCE": self.transport.name,
            "MATRIX_RETRIES": retries,
        }

    async def start(self, case: Case) -> None:
        """Send a case on its way."""
        with self.security.acting_as(case.principal, pipeline=case.name):
            case.kicked = await _WAYS[case.way](self.broker, self.tasks, case.marker)

    async def change(self, cases: list[Case]) -> None:
        """Change the policy, now that the cases are on their way."""
        administration = self.security.administration
        denied = {case.name: {"execute": ["nobody"]} for case in cases if case.outcome == "denied"}
        await administration.change(ADMIN, PolicyChange(pipeline_acls=denied))
        for case in cases:
            if case.outcome == "revoked":
                await administration.revoke(ADMIN, Revocation(subject=case.principal.subject))

    async def fire(self) -> None:
        """Send what is due, as a scheduler does."""
        scheduler = TaskiqScheduler(self.broker, [self.tasks.source])
        for schedule in await self.tasks.source.get_schedules():
            await asyncio.gather(
                asyncio.create_task(scheduler.on_ready(self.tasks.source, schedule)), return_exceptions=True
            )
            await self.tasks.source.delete_schedule(schedule.schedule_id)

    async def fire_until(self, finished: asyncio.Event) -> None:
        """Do so again and again."""
        while not finished.is_set():
            await self.fire()
            await asyncio.sleep(0.1)

    async def go_all(self, retries: str, redis: Redis) -> None:
        """Let the policy change in the middle of each way that workers with these retries know."""
        ways = [*HELD[retries], retries]
        for first in range(0, len(ways), AT_ONCE):
            await self.go(ways[first : first + AT_ONCE], redis)

    async def go(self, ways: list[str], redis: Redis) -> None:
        """Let the policy change in the middle of these ways."""
        held = [case for (way, _), case in self.cases.items() if way in ways]
        for case in held:
            await self.start(case)
        for case in held:
            assert await redis.blpop([f"{case.marker}:held"], timeout=SECONDS), case.name
        await self.change(held)
        await asyncio.sleep(1)  # the time that a change may take until it is everywhere
        for case in held:
            await redis.rpush(f"{case.marker}:let-go", "go")
        finished = asyncio.Event()
        firing = asyncio.create_task(self.fire_until(finished))
        try:
            await self.finish(held)
        finally:
            finished.set()
            await firing

    async def finish(self, cases: list[Case]) -> None:
        """Wait for all, and check what has become of them."""
        for case in cases:
            if case.kicked is None:  # of a schedule nobody has the task
                if case.outcome == "allowed":
                    await until(lambda case=case: ledger.runs(case.marker) == 1, SECONDS)  # type: ignore[misc]
                await case.check(None)
            else:
                await case.check(await case.kicked.wait_result(check_interval=0.02, timeout=SECONDS))


Way = Callable[[Any, Tasks, str], Awaitable[AsyncTaskiqTask[Any] | None]]


async def _by_time(_broker: Any, tasks: Tasks, marker: str) -> None:
    await tasks.finish.schedule_by_time(tasks.source, datetime.now(timezone.utc), marker)


async def _by_interval(_broker: Any, tasks: Tasks, marker: str) -> None:
    await tasks.finish.schedule_by_interval(tasks.source, 3600, marker)


async def _by_cron(_broker: Any, tasks: Tasks, marker: str) -> None:
    await tasks.finish.schedule_by_cron(tasks.source, "* * * * *", marker)


def _flow(broker: Any, task: Any) -> Any:
    return taskiq_flow.Pipeline(broker, task)  # whose types do not let one give it arguments


_WAYS: dict[str, Way] = {
    "kick": lambda _broker, tasks, marker: tasks.finish.kiq(marker),
    "shared": lambda broker, _tasks, marker: shared.kicker().with_broker(broker).kiq(marker),
    "by time": _by_time,
    "by interval": _by_interval,
    "by cron": _by_cron,
    "child": lambda _broker, tasks, marker: tasks.child.kiq(marker),
    "requeue": lambda _broker, tasks, marker: tasks.requeued.kiq(marker),
    "sequential": lambda broker, tasks, marker: Pipeline(broker, tasks.first).call_next(tasks.finish).kiq(marker),
    "map": lambda broker, tasks, marker: (
        Pipeline(broker, tasks.many).map(tasks.finish, check_interval=0.05).kiq(marker)
    ),
    "filter": lambda broker, tasks, marker: (
        Pipeline(broker, tasks.many).filter(tasks.keep, check_interval=0.05).kiq(marker)
    ),
    "flow sequential": lambda broker, tasks, marker: _flow(broker, tasks.first).call_next(tasks.finish).kiq(marker),
    "flow map": lambda broker, tasks, marker: (
        _flow(broker, tasks.many).map(tasks.finish, check_interval=0.05).kiq(marker)
    ),
    "flow filter": lambda broker, tasks, marker: (
        _flow(broker, tasks.many).filter(tasks.keep, check_interval=0.05).kiq(marker)
    ),
    **dict.fromkeys(RETRIES, lambda _broker, tasks, marker: tasks.retried.kiq(marker)),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_work_that_moves_runs_is_denied_or_is_revoked_as_the_policy_says_then(
    kind: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(kind)
    matrix = Matrix(transport)
    await matrix.broker.startup()
    app = "tests.integration.matrix_app:broker"
    async with Redis.from_url(REDIS_URL, socket_timeout=None) as redis:
        try:
            queued = [case for (way, _), case in matrix.cases.items() if way in QUEUED]
            for case in queued:
                await matrix.start(case)
            await matrix.change(queued)
            for retries in RETRIES:
                worker = await asyncio.to_thread(start_worker, transport, app=app, **matrix.variables(retries))
                if retries == RETRIES[0]:
                    await matrix.fire()
                    await matrix.finish(queued)
                await matrix.go_all(retries, redis)
                worker.stop()
        finally:
            await matrix.broker.shutdown()
            async for key in redis.scan_iter(f"taskiq-flow-security:{transport.name}*", count=1000):
                await redis.delete(key)


@dataclass(frozen=True)
class InProcess:
    """Makes a broker without a queue: what is kicked runs at once, in the same process."""

    name: str

    def broker(self) -> AsyncBroker:
        """A new one."""
        return InMemoryBroker()


@pytest.mark.parametrize("retries", RETRIES)
async def test_work_that_moves_within_a_process_runs_is_denied_or_is_revoked_as_the_policy_says_then(
    retries: str,
) -> None:
    require("redis")
    matrix = Matrix(InProcess(f"matrix-{uuid4().hex}"), retries)
    await matrix.broker.startup()
    async with Redis.from_url(REDIS_URL, socket_timeout=None) as redis:
        try:
            for way in KICKED:
                case = matrix.cases[way, "allowed"]
                await matrix.start(case)
                await matrix.finish([case])
            scheduled = [case for (way, _), case in matrix.cases.items() if way in SCHEDULED]
            for case in scheduled:
                await matrix.start(case)
            await matrix.change(scheduled)
            await matrix.fire()
            await matrix.finish(scheduled)
            await matrix.go_all(retries, redis)
        finally:
            await matrix.broker.shutdown()
            async for key in redis.scan_iter(f"*{matrix.transport.name}*", count=1000):
                await redis.delete(key)
