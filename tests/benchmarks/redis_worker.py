"""The worker under load: ``taskiq worker tests.benchmarks.redis_worker:broker``, and what its client shares with it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from taskiq import AsyncBroker, TaskiqEvents, TaskiqResult, TaskiqState
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from taskiq_flow_security import FlowSecurity, SecurityMiddleware
from tests.benchmarks.guarded import PIPELINE, PRINCIPAL, new_security, work
from tests.benchmarks.naive import NaiveGuard
from tests.services import REDIS_URL

_RESULT_SECONDS = 120
_VARIABLE = "BENCHMARK_"


class Guard(str, Enum):
    """How the queue is guarded."""

    NONE = "unguarded"
    SILENT = "guarded, no audit"
    AUDITED = "guarded, audit to a file"
    REPLAYS = "guarded, no audit, replays in Redis"
    NAIVE = "naive guard, log to a file"


@dataclass(frozen=True)
class Queue:
    """One queue. All that it makes in Redis has `name` in its name."""

    kind: str
    name: str
    guard: Guard
    turn: int
    """How many tasks are sent before their end is awaited."""
    logs: Path

    @property
    def ready(self) -> str:
        """The list to which the worker pushes when it is ready."""
        return f"{self.name}:ready"

    @property
    def done(self) -> str:
        """The list to which the worker pushes, after each turn, how many of its tasks failed."""
        return f"{self.name}:done"

    @property
    def results(self) -> str:
        """The prefix of results."""
        return f"{self.name}:result"

    @property
    def output(self) -> Path:
        """The file with all that the worker writes."""
        return self.logs / f"{self.name}.out"

    def task(self, side: str) -> tuple[AsyncTaskiqDecoratedTask[[int], Any], FlowSecurity | None]:
        """The task on a new broker of this queue, and what guards it if that is this package."""
        # redis-py's default timeout would end the blocking reads of an idle worker.
        broker: AsyncBroker
        if self.kind == "list":
            broker = ListQueueBroker(REDIS_URL, queue_name=self.name, socket_timeout=None)
        else:
            broker = RedisStreamBroker(REDIS_URL, queue_name=self.name, socket_timeout=None, maxlen=4 * self.turn)
        security = None
        log = self.logs / f"{self.name}-{side}.log"
        if self.guard is Guard.NAIVE:
            broker.add_middlewares(NaiveGuard(PRINCIPAL.subject, sorted(PRINCIPAL.roles), log))
        elif self.guard is not Guard.NONE:
            shared: dict[str, Any] = {}
            if self.guard is Guard.REPLAYS:
                shared = {"shared_store": REDIS_URL, "principal_audience": self.name}
            security = new_security(audit_file=log if self.guard is Guard.AUDITED else None, **shared)
            broker.add_middlewares(SecurityMiddleware(security))
        return broker.register_task(work, task_name="work", pipeline=PIPELINE), security

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        fields = {
            "KIND": self.kind,
            "NAME": self.name,
            "GUARD": self.guard.value,
            "TURN": str(self.turn),
            "LOGS": str(self.logs),
        }
        return {f"{_VARIABLE}{name}": value for name, value in fields.items()}

    @classmethod
    def from_environment(cls) -> Queue:
        """The queue that `environment` of the parent process describes."""
        kind, name, guard, turn, logs = (
            os.environ[f"{_VARIABLE}{field}"] for field in ("KIND", "NAME", "GUARD", "TURN", "LOGS")
        )
        return cls(kind, name, Guard(guard), int(turn), Path(logs))


class CountingResults(RedisAsyncResultBackend[Any]):
    """Tells when all results of a turn are stored, so that nobody has to poll for them."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(REDIS_URL, prefix_str=queue.results, result_ex_time=_RESULT_SECONDS)
        self._queue = queue
        self._stored = 0
        self._failed = 0

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        """Store the result, and count it."""
        await super().set_result(task_id, result)
        self._stored += 1
        self._failed += result.is_err
        if self._stored == self._queue.turn:
            failed, self._stored, self._failed = self._failed, 0, 0
            async with Redis(connection_pool=self.redis_pool) as redis:
                await redis.rpush(self._queue.done, failed)


def broker() -> AsyncBroker:
    """The worker's broker."""
    queue = Queue.from_environment()
    task, _ = queue.task("worker")
    results = CountingResults(queue)
    task.broker.with_result_backend(results)

    @task.broker.on_event(TaskiqEvents.WORKER_STARTUP)
    async def announce(_state: TaskiqState) -> None:
        async with Redis(connection_pool=results.redis_pool) as redis:
            await redis.rpush(queue.ready, os.getpid())

    return task.broker
