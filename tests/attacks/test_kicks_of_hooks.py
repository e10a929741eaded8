"""Kicks by middlewares that may not be made: recorded, never run, and nobody has to wait for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import pytest
from taskiq import Context, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.kicker import AsyncKicker

from taskiq_flow_security import AccessDeniedError, RateLimitExceededError, guard
from tests.attacks.forging import read, sign, write
from tests.attacks.test_asymmetric_keys import private, public
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process, Task

Kick = Callable[[], Awaitable[object]]


class Kicks(TaskiqMiddleware):
    """Kicks something once, in one of its hooks."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self._hook = hook
        self.kick: Kick | None = None

    async def _at(self, hook: str) -> None:
        kick = self.kick
        if kick is not None and hook == self._hook:
            self.kick = None
            await kick()

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        await self._at("pre_execute")
        return message

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        await self._at("post_execute")

    async def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        await self._at("on_error")

    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        await self._at("post_save")


class YieldsBeforeSending(TaskiqMiddleware):
    """Waits for something else before it lets a kick go on."""

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return message


_RAISES = pytest.mark.xfail(strict=True, reason="such a kick raises in the hook, outside TaskIQ's try: see the README")


@pytest.mark.parametrize(
    ("position", "hook"),
    [
        pytest.param("before", "pre_execute", marks=_RAISES),
        pytest.param("after", "pre_execute", marks=_RAISES),
        pytest.param("after", "post_execute", marks=_RAISES),
        ("before", "post_execute"),
        ("before", "on_error"),
        ("before", "post_save"),
        ("after", "post_save"),
    ],
)
async def test_a_kick_that_is_denied_keeps_no_message_from_being_acked(
    new_process: NewProcess, hook: str, position: str
) -> None:
    kicks = Kicks(hook)
    process = new_process(
        before=(kicks,) if position == "before" else (), after=(kicks,) if position == "after" else ()
    )
    kicks.kick = process.report.kiq
    outcome = await process.broker.deliver(await process.genuine())
    assert outcome.acks == 1


async def test_a_kick_that_is_recorded_as_denied_never_runs(new_process: NewProcess) -> None:
    kicks = Kicks("post_save")
    both = {"data": {"execute": ["processor"]}, "reports": {"execute": ["processor"]}}
    process = new_process(after=(kicks,), pipeline_acls=both)
    with process.security.acting_as(PROCESSOR, pipeline="data"):
        await process.loose.kiq()
    kicks.kick = process.loose.kicker().with_labels(pipeline="reports").kiq
    process.audit.take()
    await process.broker.deliver(process.broker.take())
    assert "pipeline_mismatch" in [entry.reason for entry in process.audit.take()]
    process.ran.clear()
    for data in process.broker.sent:
        await process.broker.deliver(data)
    assert process.ran == []


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), float("-inf"), -1.0, "1", True])
async def test_a_time_to_wait_that_is_none_keeps_no_message_from_being_acked(process: Process, seconds: object) -> None:
    message = sign(read(await process.genuine()), header={"denied": "rate_limit", "retry_after": seconds})
    await process.refuses(write(message), "malformed")


async def test_a_kick_that_a_worker_without_a_key_to_send_makes_keeps_no_message_from_being_acked(
    new_process: NewProcess,
) -> None:
    kicks = Kicks("on_error")
    keys = [private("EdDSA", "api", "issue", "send"), public("EdDSA", "worker", "send")]
    api = new_process(signing_keys=keys)
    # It can verify, and has a key for schedules only.
    worker_keys = [private("EdDSA", "worker", "fire"), public("EdDSA", "api", "issue", "send")]
    worker = new_process(before=(kicks,), signing_keys=worker_keys)
    for process in (api, worker):

        @process.broker.task("boom", pipeline="data")
        async def boom() -> None:
            raise LookupError

    kicks.kick = worker.clean.kicker().with_task_id("next").kiq
    outcome = await worker.broker.deliver(await api.kick(boom.kicker().with_broker(api.broker)))
    assert outcome.acks == 1
    assert outcome.stored.keys() > {"next"}  # whoever waits for that knows that it will not come
    assert "cannot_issue" in [entry.reason for entry in worker.audit.take()]
    assert worker.broker.sent == []


async def test_of_several_kicks_at_a_time_that_a_rate_limit_refuses_none_runs(new_process: NewProcess) -> None:
    kicks = Kicks("on_error")
    process = new_process(before=(kicks,), after=(YieldsBeforeSending(),))

    def rare(name: str) -> Task:
        @process.broker.task(name, pipeline="data")
        @guard(rate_limit="1/hour")
        async def rare() -> None:
            process.ran.append((name, None))

        return rare

    @process.broker.task("fail", pipeline="data")
    async def fail() -> None:
        raise ValueError

    limited = [rare("first"), rare("second")]
    for task in limited:
        await process.kick(task)
    kicks.kick = lambda: asyncio.gather(*(task.kiq() for task in limited), return_exceptions=True)
    await process.broker.deliver(await process.kick(fail))
    sent = list(process.broker.sent)
    assert len(sent) == 2
    for data in sent:
        error = (await process.broker.deliver(data)).error
        assert isinstance(error, RateLimitExceededError)
        assert 0 < error.retry_after <= 3600
    assert process.ran == []


class LeftBehind:
    """A task whose function leaves something running, which kicks when the task is over."""

    def __init__(self, process: Process, kick: Kick) -> None:
        self._process, self._kick = process, kick
        self._task_is_over = asyncio.Event()
        self._left: list[asyncio.Task[object]] = []

        @process.broker.task("start", pipeline="data")
        async def start() -> None:
            self._left.append(asyncio.create_task(self._later()))

        self._start = start

    async def _later(self) -> object:
        await self._task_is_over.wait()
        return await self._kick()

    async def kicks(self) -> object:
        """Run the task, and then what it has left."""
        await self._process.broker.deliver(await self._process.kick(self._start))
        self._task_is_over.set()
        return await self._left.pop()


async def test_what_a_task_leaves_behind_is_denied_at_once_what_it_may_not_kick(process: Process) -> None:
    with pytest.raises(AccessDeniedError, match="may not execute reports"):
        await LeftBehind(process, process.report.kiq).kicks()
    assert process.broker.sent == []


async def test_what_a_task_leaves_behind_counts_against_the_rate_limits_of_principals(new_process: NewProcess) -> None:
    process = new_process(principal_rate_limit="3/hour")
    left = LeftBehind(process, lambda: process.clean.kiq([1]))
    await left.kicks()
    process.broker.sent.clear()
    with pytest.raises(RateLimitExceededError):
        await left.kicks()


async def test_what_a_task_leaves_behind_passes_its_principal_on(process: Process) -> None:
    await LeftBehind(process, lambda: process.clean.kiq([1])).kicks()
    assert [(entry.event, entry.act) for entry in process.audit.take()][-1] == ("task_delegated", "start")


@pytest.mark.xfail(strict=True, reason="it cannot be told from a retry: see `Kick.retries`")
async def test_a_task_that_kicks_itself_under_its_own_id_counts_against_its_rate_limit(process: Process) -> None:
    @process.broker.task("again", pipeline="data")
    @guard(rate_limit="1/hour")
    async def again(context: Annotated[Context, TaskiqDepends()]) -> None:
        process.ran.append(("again", None))
        kicker: AsyncKicker[..., object] = AsyncKicker("again", process.broker, {"pipeline": "data"})
        await kicker.with_task_id(context.message.task_id).kiq()

    await process.broker.deliver(await process.kick(again))
    assert process.broker.sent == []


async def test_an_alarm_that_nobody_can_sign_for_keeps_no_message_from_being_acked(new_process: NewProcess) -> None:
    class Alarm(TaskiqMiddleware):
        async def on_error(self, message: TaskiqMessage, result: Any, exception: BaseException) -> None:
            with worker.security.acting_as(worker.security.service("alarms")):
                await worker.echo.kiq("alarm")

    common: dict[str, Any] = {"jwt_secret": None, "services": {"alarms": {"roles": ["processor"]}}}
    api = new_process(
        signing_keys=[private("EdDSA", "api", "issue", "send"), public("EdDSA", "worker", "send")], **common
    )
    worker = new_process(
        signing_keys=[private("EdDSA", "worker", "send"), public("EdDSA", "api", "issue", "send")],
        before=(Alarm(),),
        **common,
    )
    for process in (api, worker):

        @process.broker.task("boom", pipeline="data")
        async def boom() -> None:
            raise LookupError

    outcome = await worker.broker.deliver(await api.kick(boom.kicker().with_broker(api.broker)))
    assert outcome.acks == 1
    assert "cannot_issue" in [entry.reason for entry in worker.audit.take()]
    assert worker.broker.sent == []
