"""While nobody can tell what has run before, nothing runs twice, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis import Redis
from taskiq import InMemoryBroker
from taskiq.acks import AckableMessage

from taskiq_flow_security import (
    BackendUnavailableError,
    FlowSecurity,
    PolicyChange,
    Principal,
    SecurityMiddleware,
    guard,
)
from taskiq_flow_security.replay import Progress, SharedReplays
from taskiq_flow_security.tokens.message_signature import MessageSignature
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Clock, Outcome, Process, Queue, Task, config
from tests.integration.replay.server import RedisServer
from tests.integration.waiting import until

SECONDS = 15


@pytest.fixture
def process(new_process: NewProcess) -> Process:
    """A process that kicks."""
    return new_process()


@pytest.fixture
def worker(new_process: NewProcess, server: RedisServer) -> Process:
    """A process that shares what it has run."""
    return new_process(shared_store=server.url)


@pytest.fixture
def other(new_process: NewProcess, server: RedisServer) -> Process:
    """Another one."""
    return new_process(shared_store=server.url)


@asynccontextmanager
async def waiting(process: Process, delivery: Awaitable[Outcome]) -> AsyncIterator[asyncio.Future[Outcome]]:
    """A delivery that waits for the store."""
    process.audit.take()
    delivering = asyncio.ensure_future(delivery)
    await until(lambda: bool(process.audit.entries), SECONDS)
    assert [(entry.event, entry.reason) for entry in process.audit.take()] == [
        ("task_authz_deny", "backend_unavailable")
    ]
    yield delivering


def once(process: Process) -> Task:
    """A task that may run at most once."""

    @process.broker.task("once", pipeline="data")
    @guard(at_most_once=True)
    async def run_once() -> int:
        process.ran.append(("once", None))
        return 7

    return run_once


def stopping(process: Process, server: RedisServer) -> Task:
    """A task in whose middle the store goes away."""

    @process.broker.task("stops", pipeline="data")
    async def stops() -> int:
        server.stop()
        process.ran.append(("stops", None))
        return 7

    return stops


def shared_by(process: Process) -> SharedReplays:
    """The store that a process shares with others."""
    stores = process.security.replays
    assert stores is not None
    assert stores.shared is not None
    return stores.shared


async def test_a_message_waits_unacked_until_the_store_is_back(worker: Process, server: RedisServer) -> None:
    message = await worker.genuine()
    server.stop()
    async with waiting(worker, worker.broker.deliver(message)) as delivery:
        assert worker.ran == []
        server.start()
        outcome = await asyncio.wait_for(delivery, SECONDS)
    assert outcome.acks == 1
    assert outcome.result.return_value == 6
    assert len(worker.ran) == 1


async def test_what_completes_meanwhile_is_acked_when_that_is_noted(
    worker: Process, other: Process, server: RedisServer
) -> None:
    stops = stopping(worker, server)
    message = await worker.kick(stops)
    delivery = asyncio.ensure_future(worker.broker.deliver(message))
    await until(lambda: bool(worker.broker.result_backend.results), SECONDS)
    done, _ = await asyncio.wait([delivery], timeout=0.3)
    assert not done  # saved, but not acked
    server.start()
    assert (await asyncio.wait_for(delivery, SECONDS)).acks == 1
    other.broker.task("stops", pipeline="data")(stops.original_func)
    assert await other.broker.deliver(message) == Outcome(acks=1, stored={})
    assert len(worker.ran) == 1


async def test_what_no_broker_keeps_is_noted_in_the_background_as_soon_as_the_store_is_back(
    worker: Process, other: Process, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = stopping(worker, server)
    shared, attempts = shared_by(worker), 0
    complete = shared.complete

    def count(signature: MessageSignature) -> Awaitable[object]:
        nonlocal attempts
        attempts += 1
        return complete(signature)

    monkeypatch.setattr(shared, "complete", count)
    message = await worker.kick(stops)
    worker.broker.arriving.append(message)
    listening = worker.broker.listen()
    await asyncio.wait_for(worker.broker.receiver.callback(await anext(listening)), SECONDS)
    await until(lambda: attempts >= 2, SECONDS)  # the first one has failed
    server.start()
    with Redis.from_url(server.url) as redis:
        await until(lambda: bool(redis.keys("*:message:*")), SECONDS)
    other.broker.task("stops", pipeline="data")(stops.original_func)
    assert await other.broker.deliver(message) == Outcome(acks=1, stored={})
    assert len(worker.ran) == 1
    await listening.aclose()


async def test_what_has_completed_is_acked_where_the_worker_ends_before_that_can_be_noted(
    worker: Process, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    stops = stopping(worker, server)
    message = await worker.kick(stops)
    acks: list[bool] = []
    worker.broker.arriving.append(AckableMessage(data=message, ack=lambda: acks.append(True)))
    listening = worker.broker.listen()
    callback = asyncio.ensure_future(worker.broker.receiver.callback(await anext(listening)))
    await until(lambda: bool(worker.broker.result_backend.results), SECONDS)
    done, _ = await asyncio.wait([callback], timeout=0.3)
    assert not done
    assert acks == []
    await listening.aclose()
    await asyncio.wait_for(callback, SECONDS)
    assert acks == [True]
    assert "have completed and could not be noted as such" in caplog.text


async def test_what_has_completed_is_acked_when_no_copy_of_it_could_run_any_more(
    worker: Process, server: RedisServer, clock: Clock
) -> None:
    stops = stopping(worker, server)
    delivery = asyncio.ensure_future(worker.broker.deliver(await worker.kick(stops)))
    await until(lambda: bool(worker.broker.result_backend.results), SECONDS)
    done, _ = await asyncio.wait([delivery], timeout=0.3)
    assert not done
    clock.now += 100_000
    assert (await asyncio.wait_for(delivery, SECONDS)).acks == 1


async def test_what_may_run_once_and_only_waited_runs_in_the_next_worker(
    new_process: NewProcess, other: Process, server: RedisServer
) -> None:
    worker = new_process(
        shared_store=server.url,
        rate_limits_on_workers=True,
        task_rate_limits={"once": "5/hour"},
        rate_limit_storage="redis://127.0.0.1:1",  # where nothing listens
    )
    once(worker)
    message = await other.kick(once(other))
    worker.broker.arriving.append(AckableMessage(data=message, ack=_unexpected))
    listening = worker.broker.listen()
    callback = asyncio.ensure_future(worker.broker.receiver.callback(await anext(listening)))
    await until(lambda: any(entry.reason == "backend_unavailable" for entry in worker.audit.entries), SECONDS)
    await listening.aclose()
    with pytest.raises(BackendUnavailableError):
        await asyncio.wait_for(callback, SECONDS)
    assert (await other.broker.deliver(message)).result.return_value == 7
    assert len(other.ran) == 1


async def test_what_waits_to_be_claimed_counts_once_against_the_limits_of_the_worker(
    new_process: NewProcess, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = new_process(shared_store=server.url, rate_limits_on_workers=True)
    message = await worker.kick(once(worker))
    await worker.security.administration.change(
        Principal("root", permissions=["admin"]), PolicyChange(task_rate_limits={"once": "1/hour"})
    )
    shared, away = shared_by(worker), [True]
    claim = shared.claim

    async def once_away(signature: MessageSignature, claimant: str) -> Progress | None:
        if away and away.pop():
            raise BackendUnavailableError("away")
        return await claim(signature, claimant)

    monkeypatch.setattr(shared, "claim", once_away)
    assert (await worker.broker.deliver(message)).result.return_value == 7
    assert away == []


async def test_what_may_run_once_and_is_denied_is_not_claimed(
    new_process: NewProcess, other: Process, server: RedisServer
) -> None:
    strict = new_process(shared_store=server.url, pipeline_acls={"data": {"execute": ["administrator"]}})
    once(strict)
    message = await other.kick(once(other))
    assert (await strict.broker.deliver(message)).reason == "acl"
    other.broker.result_backend.results.clear()
    assert (await other.broker.deliver(message)).result.return_value == 7


def _unexpected() -> None:
    raise AssertionError("This is not to be acked.")


async def test_a_message_that_has_waited_too_long_is_refused_as_expired(
    worker: Process, server: RedisServer, clock: Clock
) -> None:
    message = await worker.genuine()
    server.stop()
    async with waiting(worker, worker.broker.deliver(message)) as delivery:
        clock.now += 100_000
        outcome = await asyncio.wait_for(delivery, SECONDS)
    assert outcome.acks == 1
    assert outcome.reason == "expired"
    assert worker.ran == []


async def test_what_waits_in_two_processes_and_completes_in_one_runs_once(
    worker: Process, other: Process, server: RedisServer
) -> None:
    """As when a broker hands a message to another worker because the first one takes so long to ack it."""
    message = await worker.genuine()
    await other.security.live.catch_up()  # so that it waits for nothing else
    server.stop()
    async with waiting(other, other.broker.deliver(message)) as delivery:
        server.start()
        with Redis.from_url(server.url) as redis:
            # That it is new is known, not believed.
            await until(lambda: "cmdstat_getrange" in redis.info("commandstats"), SECONDS)
        await worker.broker.deliver(message)
        assert await asyncio.wait_for(delivery, SECONDS) == Outcome(acks=1, stored={})
    assert len(worker.ran) == 1
    assert other.ran == []


async def test_a_kept_message_stays_with_its_broker_where_the_worker_ends(worker: Process, server: RedisServer) -> None:
    message = await worker.genuine()
    server.stop()
    acks: list[bool] = []
    worker.broker.arriving.append(AckableMessage(data=message, ack=lambda: acks.append(True)))
    listening = worker.broker.listen()
    callback = asyncio.ensure_future(worker.broker.receiver.callback(await anext(listening)))
    await until(lambda: any(entry.reason == "backend_unavailable" for entry in worker.audit.entries), SECONDS)
    await listening.aclose()
    with pytest.raises(BackendUnavailableError, match="delivers it again"):
        await asyncio.wait_for(callback, SECONDS)
    assert acks == []
    assert worker.ran == []
    assert worker.broker.result_backend.results == {}


async def test_whoever_waits_for_a_message_that_no_broker_keeps_is_told_where_the_worker_ends(
    worker: Process, server: RedisServer
) -> None:
    message = await worker.genuine()
    server.stop()
    worker.broker.arriving.append(message)
    listening = worker.broker.listen()
    callback = asyncio.ensure_future(worker.broker.receiver.callback(await anext(listening)))
    await until(lambda: any(entry.reason == "backend_unavailable" for entry in worker.audit.entries), SECONDS)
    await listening.aclose()
    await asyncio.wait_for(callback, SECONDS)
    [result] = worker.broker.result_backend.results.values()
    assert isinstance(result.error, BackendUnavailableError)
    assert worker.ran == []


async def test_a_message_of_an_inmemory_broker_is_refused_at_once(server: RedisServer) -> None:
    security = FlowSecurity(config(shared_store=server.url))
    broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))

    @broker.task("clean", pipeline="data")
    async def clean() -> None: ...

    await broker.startup()
    server.stop()
    with security.acting_as(PROCESSOR):
        task = await clean.kiq()
    result = await task.wait_result(timeout=SECONDS)
    with pytest.raises(BackendUnavailableError):
        result.raise_for_error()
    await broker.shutdown()


@pytest.mark.parametrize("settings", [{"unsafe_allow_unchecked": True}, {"enforcement": "monitor"}])
async def test_messages_run_unchecked_where_that_is_allowed_and_that_is_recorded(
    new_process: NewProcess, server: RedisServer, settings: dict[str, Any]
) -> None:
    process = new_process(shared_store=server.url, **settings)
    message = await process.genuine()
    server.stop()
    process.audit.take()
    outcome = await asyncio.wait_for(process.broker.deliver(message), SECONDS)
    assert outcome.result.return_value == 6
    assert outcome.acks == 1
    first, *_ = process.audit.take()
    assert (first.event, first.reason) == ("task_authz_shadow_deny", "backend_unavailable")


async def test_what_may_run_once_is_never_unchecked(new_process: NewProcess, server: RedisServer) -> None:
    process = new_process(shared_store=server.url, unsafe_allow_unchecked=True)
    message = await process.kick(once(process))
    server.stop()
    async with waiting(process, process.broker.deliver(message)) as delivery:
        server.start()
        assert (await asyncio.wait_for(delivery, SECONDS)).result.return_value == 7


async def test_a_process_knows_itself_what_it_has_run(worker: Process, server: RedisServer) -> None:
    message = await worker.genuine()
    await worker.broker.deliver(message)
    with Redis.from_url(server.url) as redis:
        redis.flushall()  # a server of this test's own
    assert await worker.broker.deliver(message) == Outcome(acks=1, stored={})
    server.stop()
    assert await worker.broker.deliver(message) == Outcome(acks=1, stored={})
    assert len(worker.ran) == 1


async def test_a_process_remembers_what_others_have_run(worker: Process, other: Process, server: RedisServer) -> None:
    message = await worker.genuine()
    await worker.broker.deliver(message)
    assert await other.broker.deliver(message) == Outcome(acks=1, stored={})
    server.stop()
    assert await other.broker.deliver(message) == Outcome(acks=1, stored={})
    assert other.ran == []


async def test_what_has_run_is_known_after_redis_was_killed(
    worker: Process, other: Process, server: RedisServer
) -> None:
    message = await worker.genuine()
    await worker.broker.deliver(message)
    server.stop()
    server.start()
    assert await other.broker.deliver(message) == Outcome(acks=1, stored={})
    assert other.ran == []


async def test_many_copies_in_two_processes_of_what_may_run_once_run_once(worker: Process, other: Process) -> None:
    message = await worker.kick(once(worker))
    once(other)
    outcomes = await asyncio.gather(
        *(process.broker.deliver(message) for _ in range(100) for process in (worker, other))
    )
    assert len(worker.ran) + len(other.ran) == 1
    assert [outcome.acks for outcome in outcomes] == [1] * 200


async def test_a_message_for_every_worker_runs_once_in_each(process: Process, server: RedisServer) -> None:
    message = await process.genuine()
    ran: list[int] = []
    for number in range(2):
        queue = Queue()
        security = FlowSecurity(config(shared_store=server.url), clock=process.clock)
        queue.add_middlewares(SecurityMiddleware(security, broadcast=True))

        @queue.task("clean", pipeline="data")
        async def clean(rows: list[int], scale: int = 1, number: int = number) -> None:
            ran.append(number)

        for _ in range(3):
            assert (await queue.deliver(message)).acks == 1
    assert ran == [0, 1]
