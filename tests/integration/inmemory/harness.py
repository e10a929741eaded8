"""One process of a deployment, on a broker that keeps its messages until a test delivers them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context
from dataclasses import dataclass, fields
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask, InMemoryBroker, TaskiqMiddleware, TaskiqResult
from taskiq.acks import AckableMessage
from taskiq.kicker import AsyncKicker
from taskiq.message import BrokerMessage
from taskiq.receiver import Receiver

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurity,
    FlowSecurityError,
    Principal,
    SecurityMiddleware,
    TaskiqFlowConfig,
    guard,
)

SECRET = "the-secret-of-this-deployment-0123456789"
STRANGER_SECRET = "the-secret-of-another-deployment-0123456789"

PROCESSOR = Principal("alice", roles=["processor"])
VIEWER = Principal("bob", roles=["viewer"])

PIPELINE_ACLS = {"data": {"execute": ["processor"]}, "reports": {"execute": ["reporter"]}}

Task = AsyncTaskiqDecoratedTask[Any, Any]
Kickable = Task | AsyncKicker[Any, Any]
Run = tuple[str, object]
"""The name of a task that has run, and what it was given."""


class Clock:
    """A clock that a test sets."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Entry:
    """One audit event."""

    event: str
    outcome: str
    reason: str | None
    rule: str | None
    sub: str | None
    act: str | None
    roles: list[str]
    pipeline: str | None
    permission: str | None
    task: str | None
    task_id: str | None
    txn: str | None
    jti: str | None
    key_id: str | None


class AuditTrail(logging.Handler):
    """Every audit event of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.on_change: Callable[[Any], None] = lambda _record: None
        """Called with each record of something that was changed, which has fields that no other has."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "change", None) is not None:
            self.on_change(record)
        self.entries.append(Entry(**{field.name: getattr(record, field.name) for field in fields(Entry)}))

    def take(self) -> list[Entry]:
        """What was recorded since the last call."""
        taken, self.entries = self.entries, []
        return taken


@dataclass(frozen=True)
class Outcome:
    """What became of one delivered message."""

    acks: int
    stored: dict[str, TaskiqResult[Any]]
    """The results that were written, by task id."""

    @property
    def result(self) -> TaskiqResult[Any]:
        """The only result that was written."""
        (result,) = self.stored.values()
        return result

    @property
    def error(self) -> BaseException:
        """The error of that result."""
        assert self.result.is_err
        assert self.result.error is not None
        return self.result.error

    @property
    def reason(self) -> str:
        """The reason of the refusal that the result tells of."""
        assert isinstance(self.error, FlowSecurityError), repr(self.error)
        return self.error.reason


class Queue(InMemoryBroker):
    """Keeps what is kicked until it is delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.arriving: list[AckableMessage | bytes] = []
        """What `listen` is about to yield."""

    async def listen(self) -> AsyncGenerator[AckableMessage | bytes, None]:  # type: ignore[override]  # `InMemoryBroker` does not
        while self.arriving:
            yield self.arriving.pop()

    async def kick(self, message: BrokerMessage) -> None:
        self.sent.append(message.message)

    def take(self) -> bytes:
        """The only message that was sent since the last call."""
        (data,) = self.sent
        self.sent.clear()
        return data

    async def deliver(
        self, data: bytes, receiver: Receiver | None = None, on_ack: Callable[[], None] = lambda: None
    ) -> Outcome:
        """Hand a message to the stock receiver, as a worker does: in a context of its own, and with an ack to give."""
        acks = 0

        def ack() -> None:
            nonlocal acks
            on_ack()
            acks += 1

        before = dict(self.result_backend.results)
        self.arriving.append(AckableMessage(data=data, ack=ack))
        async with aclosing(self.listen()) as listening:
            callback = (receiver or self.receiver).callback(await anext(listening))
            await Context().run(asyncio.create_task, callback)
        after = self.result_backend.results
        return Outcome(
            acks, {task_id: result for task_id, result in after.items() if before.get(task_id) is not result}
        )


def config(**changes: Any) -> TaskiqFlowConfig:
    """The configuration of the deployment."""
    settings: dict[str, Any] = {"jwt_secret": SECRET, "pipeline_acls": PIPELINE_ACLS}
    return TaskiqFlowConfig(**(settings | changes))


class Process:
    """A process that kicks, works, or does both."""

    def __init__(
        self,
        audit: AuditTrail,
        clock: Clock,
        *,
        before: tuple[TaskiqMiddleware, ...] = (),
        after: tuple[TaskiqMiddleware, ...] = (),
        secured: bool = True,
        **settings: Any,
    ) -> None:
        self.audit = audit
        self.clock = clock
        self.security = FlowSecurity(config(**settings), clock=clock)
        self.broker = Queue()
        security = (SecurityMiddleware(self.security),) if secured else ()
        self.broker.add_middlewares(*before, *security, *after)
        self.sender = self
        """The process whose messages this one runs."""
        self.ran: list[Run] = []
        self._register()

    async def kick(self, task: Kickable, *args: object, principal: Principal = PROCESSOR, **kwargs: object) -> bytes:
        """The message that is sent when this principal kicks the task."""
        with self.security.acting_as(principal):
            await task.kiq(*args, **kwargs)
        return self.broker.take()

    async def genuine(self) -> bytes:
        """A message that runs if it is delivered as it is."""
        return await self.kick(self.clean.kicker().with_labels(note="7", urgent=True), [1, 2], scale=3)

    async def refuses(
        self,
        data: bytes,
        reason: str,
        error: type[FlowSecurityError] = AuthenticationError,
        *,
        serves: bool = True,
    ) -> Outcome:
        """Check that the message is refused as a message should be, and that the process goes on."""
        self.audit.take()
        outcome = await self.broker.deliver(data)
        assert self.ran == []
        assert outcome.acks == 1
        assert [(entry.outcome, entry.reason) for entry in self.audit.take()] == [("deny", reason)]
        assert type(outcome.error) is error
        assert outcome.reason == reason
        assert outcome.result.return_value is None
        if serves:
            await self.serves()
        return outcome

    async def refuses_authentic(self, data: bytes, reason: str) -> Outcome:
        """Check that a message is refused which is what its sender has signed."""
        return await self.refuses(data, reason, AccessDeniedError, serves=False)

    async def drops(self, data: bytes, reason: str) -> None:
        """Check that a message which names no task of this process is acked and recorded, and that it goes on."""
        self.audit.take()
        outcome = await self.broker.deliver(data)
        assert self.ran == []
        assert outcome == Outcome(acks=1, stored={})
        assert [(entry.outcome, entry.reason) for entry in self.audit.take()] == [("deny", reason)]
        await self.serves()

    async def serves(self) -> None:
        """Check that a genuine message runs."""
        await self.runs(await self.sender.genuine())

    async def runs(self, data: bytes) -> Outcome:
        """Check that the message is let run and acked."""
        self.audit.take()
        outcome = await self.broker.deliver(data)
        assert len(self.ran) == 1
        assert outcome.acks == 1
        assert [(entry.event, entry.outcome) for entry in self.audit.take()] == [("task_authz_allow", "allow")]
        self.ran.clear()
        return outcome

    def _register(self) -> None:
        broker, ran = self.broker, self.ran

        @broker.task("clean", pipeline="data")
        async def clean(rows: list[int], scale: int = 1) -> int:
            ran.append(("clean", (rows, scale)))
            return len(rows) * scale

        @broker.task("purge", pipeline="data")
        async def purge(rows: list[int], scale: int = 1) -> int:
            ran.append(("purge", (rows, scale)))
            return 0

        @broker.task("echo", pipeline="data")
        async def echo(value: Any = None) -> Any:
            ran.append(("echo", value))
            return value

        @broker.task("report", pipeline="reports")
        async def report() -> None:
            ran.append(("report", None))

        @broker.task("loose")
        async def loose() -> None:
            ran.append(("loose", None))

        @broker.task("guarded", pipeline="data")
        @guard(roles=["processor"])
        async def guarded(rows: list[int]) -> int:
            ran.append(("guarded", rows))
            return len(rows)

        self.clean: Task = clean
        self.purge: Task = purge
        self.echo: Task = echo
        self.report: Task = report
        self.loose: Task = loose
        self.guarded: Task = guarded
