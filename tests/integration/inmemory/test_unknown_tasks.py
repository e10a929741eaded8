"""A genuine message for a task that the worker does not have is recorded and answered, though TaskIQ drops it."""

from __future__ import annotations

import asyncio

import pytest

from taskiq_flow_security import AccessDeniedError, AuthenticationError, SecurityMiddleware
from tests.attacks.forging import read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Entry, Outcome, Process


@pytest.fixture
async def message(new_process: NewProcess) -> bytes:
    """A message for a task that only who has kicked it has."""
    api = new_process()

    @api.broker.task("newer", pipeline="data")
    async def newer() -> None: ...

    data = await api.kick(newer)
    api.audit.take()
    return data


async def deliver(process: Process, data: bytes) -> Outcome:
    """What becomes of a message by the time that the worker has ended."""
    before = dict(process.broker.result_backend.results)
    outcome = await process.broker.deliver(data)
    for middleware in process.broker.middlewares:
        if isinstance(middleware, SecurityMiddleware):
            await middleware.shutdown()
    after = process.broker.result_backend.results
    return Outcome(outcome.acks, {name: result for name, result in after.items() if before.get(name) is not result})


def denied(entries: list[Entry]) -> list[tuple[str, str | None, str | None, str | None]]:
    return [(entry.event, entry.reason, entry.sub, entry.task) for entry in entries]


async def test_whoever_waits_for_it_is_told(process: Process, message: bytes) -> None:
    outcome = await deliver(process, message)
    assert outcome.acks == 1
    assert isinstance(outcome.error, AccessDeniedError)
    assert outcome.reason == "unknown_task"


async def test_it_is_recorded_as_denied(process: Process, message: bytes) -> None:
    await deliver(process, message)
    assert denied(process.audit.take()) == [("task_authz_deny", "unknown_task", "alice", "newer")]


async def test_a_run_that_is_watched_shows_it_as_refused(process: Process, message: bytes) -> None:
    async with process.security.run_events.subscribe("data") as events:
        await deliver(process, message)
        event = await asyncio.wait_for(anext(events), 10)
    assert (event.kind.value, event.task, event.reason) == ("refused", "newer", "unknown_task")


async def test_whoever_waits_for_one_that_comes_too_late_is_told(process: Process, message: bytes) -> None:
    process.clock.now += 100_000
    outcome = await deliver(process, message)
    assert isinstance(outcome.error, AuthenticationError)
    assert outcome.reason == "expired"


async def test_a_result_that_is_there_stays(process: Process, message: bytes) -> None:
    await deliver(process, message)
    assert (await deliver(process, message)).stored == {}


async def test_it_is_told_by_none_of_many_workers_that_get_every_message(
    new_process: NewProcess, message: bytes
) -> None:
    process = new_process(secured=False)
    process.broker.add_middlewares(SecurityMiddleware(process.security, broadcast=True))
    assert await deliver(process, message) == Outcome(1, {})
    assert denied(process.audit.take()) == [("task_authz_deny", "unknown_task", "alice", "newer")]


async def test_a_forged_one_is_answered_to_nobody(process: Process, message: bytes) -> None:
    forged = write(read(message).model_copy(update={"args": [1]}))
    assert await deliver(process, forged) == Outcome(1, {})


async def test_where_security_is_only_monitored_it_is_dropped_as_taskiq_does(
    new_process: NewProcess, message: bytes
) -> None:
    process = new_process(enforcement="monitor")
    assert await deliver(process, message) == Outcome(1, {})
    assert process.audit.take() == []


async def test_who_only_reads_it_answers_nobody(process: Process, message: bytes) -> None:
    seen = await asyncio.to_thread(process.broker.formatter.loads, message)
    assert (seen.task_name, seen.labels) == ("newer", {"pipeline": "data"})
    await deliver(process, await process.genuine())
    assert read(message).task_id not in process.broker.result_backend.results


async def test_a_result_backend_that_is_slow_does_not_keep_the_next_message_waiting(
    process: Process, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()

    async def wait(_task_id: str) -> bool:
        await told.wait()
        return False

    monkeypatch.setattr(process.broker.result_backend, "is_result_ready", wait)
    await process.broker.deliver(message)
    await process.runs(await process.genuine())
    told.set()
    await deliver(process, await process.genuine())
    assert process.broker.result_backend.results[read(message).task_id].is_err
