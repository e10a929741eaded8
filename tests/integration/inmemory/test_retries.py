"""A refused message is not retried; a task that fails is, for the same principal, as often as the middleware says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from taskiq import SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqMiddleware

from taskiq_flow_security import AccessDeniedError, Principal, current_principal, guard
from tests.attacks.forging import principal_of, read, signature_of, with_principal, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Kickable, Process, Task


def _simple() -> TaskiqMiddleware:
    return SimpleRetryMiddleware(default_retry_count=3, default_retry_label=True)


def _smart() -> TaskiqMiddleware:
    return SmartRetryMiddleware(default_retry_count=3, default_retry_label=True, default_delay=1)


def _picky() -> TaskiqMiddleware:
    return SimpleRetryMiddleware(default_retry_count=3, default_retry_label=True, types_of_exceptions=[BaseException])


MIDDLEWARES = {"simple": _simple, "smart": _smart, "for every exception": _picky}
MakeProcess = Callable[..., Process]


@pytest.fixture(params=MIDDLEWARES.values(), ids=list(MIDDLEWARES))
def retrying(request: pytest.FixtureRequest, new_process: NewProcess, position: str) -> MakeProcess:
    """Makes processes that retry whatever fails, three times in all."""

    def make(**settings: Any) -> Process:
        middleware: TaskiqMiddleware = request.param()
        if position == "before":
            return new_process(before=(middleware,), **settings)
        return new_process(after=(middleware,), **settings)

    return make


each_position = pytest.mark.parametrize("position", ["before", "after"])
retry_label = pytest.mark.parametrize("label", [None, True, "True"], ids=["no label", "a label", "a text"])


def _failing(process: Process, **labels: Any) -> Task:
    @process.broker.task("failing", pipeline="data", **labels)
    async def failing(rows: list[int], scale: int = 1) -> None:
        process.ran.append((current_principal().subject, (rows, scale)))
        raise LookupError("no such row")

    task: Task = failing
    return task


def _labelled(task: Task, label: object) -> Kickable:
    kicker = task.kicker()
    if label is not None:
        kicker.labels |= {"retry_on_error": label, "max_retries": 5}
    return kicker


@each_position
@retry_label
async def test_a_forged_message_is_not_retried(retrying: MakeProcess, label: object) -> None:
    process = retrying()
    message = read(await process.kick(_labelled(process.clean, label), [1]))
    await process.refuses(write(message.model_copy(update={"args": [[9]]})), "bad_signature")
    assert process.broker.sent == []


@each_position
@retry_label
async def test_a_denied_message_is_not_retried(retrying: MakeProcess, label: object) -> None:
    process = retrying()
    api = retrying(pipeline_acls={"data": {"execute": ["viewer"]}})
    message = await api.kick(_labelled(api.clean, label), [1], principal=VIEWER)
    await process.refuses(message, "acl", AccessDeniedError)
    assert process.broker.sent == []


@each_position
@retry_label
async def test_an_expired_message_is_not_retried(retrying: MakeProcess, label: object) -> None:
    process = retrying()
    message = await process.kick(_labelled(process.clean, label), [1])
    process.clock.now += 100_000
    await process.refuses(message, "expired")
    assert process.broker.sent == []


@each_position
async def test_a_task_that_fails_is_retried_for_the_same_principal_until_it_may_not_be(retrying: MakeProcess) -> None:
    process = retrying()
    message = await process.kick(_failing(process), [1], scale=2)
    first = read(message)
    for _ in range(2):
        outcome = await process.broker.deliver(message)
        assert outcome.acks == 1
        assert outcome.stored == {}
        message = process.broker.take()
        retry = read(message)
        assert retry.task_id == first.task_id
        assert principal_of(retry) == principal_of(first)
        assert signature_of(retry) != signature_of(first)
    outcome = await process.broker.deliver(message)
    assert process.broker.sent == []
    assert isinstance(outcome.error, LookupError)
    assert process.ran == [("alice", ([1], 2))] * 3


@each_position
async def test_a_task_that_fails_is_retried_for_the_principal_of_an_explicit_kick(retrying: MakeProcess) -> None:
    process = retrying()
    labels = process.security.labels_for(PROCESSOR)
    await _failing(process).kicker().with_labels(**labels).kiq([1])
    await process.broker.deliver(process.broker.take())
    await process.broker.deliver(process.broker.take())
    assert process.ran == [("alice", ([1], 1))] * 2


@each_position
async def test_a_retry_is_decided_about_again(retrying: MakeProcess) -> None:
    process = retrying()
    await process.broker.deliver(await process.kick(_failing(process), [1]))
    process.ran.clear()
    worker = retrying(pipeline_acls={"data": {"execute": ["administrator"]}})
    _failing(worker)
    outcome = await worker.broker.deliver(process.broker.take())
    assert worker.ran == []
    assert outcome.reason == "acl"
    assert worker.broker.sent == []


@each_position
async def test_a_retry_cannot_be_kept_by_somebody_and_given_another_principal(retrying: MakeProcess) -> None:
    process = retrying()
    await process.broker.deliver(await process.kick(_failing(process), [1]))
    process.ran.clear()
    other = process.security.labels_for(VIEWER)["taskiq_flow_principal"]
    retry = with_principal(read(process.broker.take()), other)
    await process.refuses(write(retry), "acl", AccessDeniedError)


@each_position
async def test_a_task_whose_api_key_expires_while_it_runs_and_fails_is_acked_and_answered(
    retrying: MakeProcess,
) -> None:
    clock = retrying().clock
    end = datetime.fromtimestamp(clock.now + 60, timezone.utc)
    entry = {"role": "processor", "pipelines": ["data"], "permissions": ["execute"], "expires_at": end.isoformat()}
    process = retrying(api_keys={"the-key": entry})

    @process.broker.task("slow", pipeline="data")
    async def slow() -> None:
        clock.now += 61
        raise LookupError("no such row")

    principal = await process.security.authenticate(api_key="the-key")
    outcome = await process.broker.deliver(await process.kick(slow, principal=principal))
    await _is_answered(process, outcome.acks, outcome.stored)


@each_position
async def test_a_task_whose_principal_expires_while_it_runs_and_fails_is_acked_and_answered(
    retrying: MakeProcess,
) -> None:
    process = retrying()

    @process.broker.task("slow", pipeline="data")
    async def slow() -> None:
        process.clock.now += 400_000
        raise LookupError("no such row")

    outcome = await process.broker.deliver(await process.kick(slow))
    await _is_answered(process, outcome.acks, outcome.stored)


@each_position
@pytest.mark.parametrize("waits", [59, 71])
async def test_a_retry_waits_as_long_as_its_task_allows_and_no_longer(retrying: MakeProcess, waits: int) -> None:
    process = retrying()
    await process.broker.deliver(await process.kick(_failing(process, queue_ttl=60), [1]))
    process.ran.clear()
    process.clock.now += waits
    outcome = await process.broker.deliver(process.broker.take())
    assert len(process.ran) == (waits == 59)
    if waits == 71:
        assert outcome.reason == "expired"


@each_position
async def test_a_retry_works_within_the_time_to_live_of_the_first_kick_and_not_after_it(retrying: MakeProcess) -> None:
    process = retrying(queue_ttl=3600, principal_ttl=7200)
    message = await process.kick(_failing(process).kicker().with_labels(max_retries=100), [1])
    principal = principal_of(read(message))
    for _ in range(2):
        process.clock.now += 1500
        await process.broker.deliver(message)
        message = process.broker.take()
        assert principal_of(read(message)) == principal
    process.clock.now += 1500
    outcome = await process.broker.deliver(message)
    assert (outcome.reason, process.broker.sent) == ("expired", [])
    assert len(process.ran) == 2


@each_position
async def test_a_retry_that_is_made_too_late_is_answered_with_its_reason(retrying: MakeProcess) -> None:
    process = retrying()

    @process.broker.task("slow", pipeline="data", queue_ttl=60)
    async def slow() -> None:
        process.clock.now += 120
        raise LookupError("no such row")

    await process.broker.deliver(await process.kick(slow))
    await process.refuses(process.broker.take(), "expired")


@each_position
async def test_a_task_that_fails_and_has_used_up_its_rate_limit_is_acked_and_answered(retrying: MakeProcess) -> None:
    process = retrying()

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None:
        process.ran.append(("rare", None))
        raise LookupError("no such row")

    outcome = await process.broker.deliver(await process.kick(rare))
    await _is_answered(process, outcome.acks, outcome.stored)


async def _is_answered(process: Process, acks: int, stored: dict[str, Any]) -> None:
    """Check that the message was acked, and that its waiter gets an error now or from the retries that were sent."""
    assert acks == 1
    while process.broker.sent:
        outcome = await process.broker.deliver(process.broker.take())
        assert outcome.acks == 1
        stored |= outcome.stored
    (result,) = stored.values()
    assert result.is_err


@each_position
async def test_a_task_that_fails_for_somebody_unknown_is_retried_where_security_is_only_monitored(
    retrying: MakeProcess,
) -> None:
    process = retrying(enforcement="monitor")
    await _failing(process).kiq([1])
    for _ in range(3):
        outcome = await process.broker.deliver(process.broker.take())
        assert outcome.acks == 1
    assert process.ran == [("anonymous", ([1], 1))] * 3
    assert isinstance(outcome.error, LookupError)


@each_position
async def test_a_task_that_fails_is_retried_where_security_is_off(retrying: MakeProcess) -> None:
    process = retrying(security_enabled=False)
    await _failing(process).kiq([1])
    await process.broker.deliver(process.broker.take())
    await process.broker.deliver(process.broker.take())
    assert len(process.ran) == 2


@each_position
async def test_a_guarded_task_that_refuses_itself_is_not_run_by_retries(retrying: MakeProcess) -> None:
    process = retrying()
    principal = Principal("carol", roles=["processor"])
    outcome = await process.broker.deliver(await process.kick(process.guarded, "not rows", principal=principal))
    assert outcome.acks == 1
    assert len(process.ran) == 1
    assert process.broker.sent == []
