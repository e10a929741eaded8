"""How often a message waits for Redis because what has run is remembered there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from taskiq import TaskiqResult

from taskiq_flow_security import acting
from taskiq_flow_security.replay.redis import _Operation, _Trips
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process
from tests.integration.replay.server import RedisServer
from tests.integration.replay.test_away import SECONDS, once
from tests.integration.waiting import until


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many messages each trip was for."""
    made: list[int] = []
    _observe(monkeypatch, lambda operations: made.append(len(operations)))
    return made


@pytest.fixture
def worker(new_process: NewProcess, server: RedisServer) -> Process:
    return new_process(shared_store=server.url)


async def test_a_message_that_its_broker_keeps_waits_before_it_runs_and_before_it_is_acked(
    worker: Process, trips: list[int]
) -> None:
    for _ in range(10):
        await worker.broker.deliver(await worker.genuine())
    assert trips == [1] * 20


async def test_a_trip_is_made_in_the_name_of_nobody_whose_message_is_waiting(
    worker: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[object] = []
    _observe(monkeypatch, lambda _: names.append(acting.current()))
    await worker.broker.deliver(await worker.genuine())
    assert names == [None, None]


async def test_messages_that_are_handled_at_the_same_time_wait_together(worker: Process, trips: list[int]) -> None:
    messages = [await worker.genuine() for _ in range(100)]
    await asyncio.gather(*map(worker.broker.deliver, messages))
    assert len(worker.ran) == 100
    assert sum(trips) == 200
    assert len(trips) <= 20


async def test_a_message_that_may_run_once_waits_twice_before_it_runs_and_not_at_its_ack(
    worker: Process, trips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = await worker.kick(once(worker))
    async with _nothing_can_be_completed(worker, monkeypatch):
        outcome = await asyncio.wait_for(worker.broker.deliver(message), 5)
    assert outcome.acks == 1
    assert trips == [1, 1]


async def test_a_message_that_no_broker_keeps_waits_before_it_runs_only(
    worker: Process, trips: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.broker.arriving.append(await worker.genuine())
    async with _nothing_can_be_completed(worker, monkeypatch):
        listening = worker.broker.listen()
        await asyncio.wait_for(worker.broker.receiver.callback(await anext(listening)), 5)
        await listening.aclose()
    (result,) = worker.broker.result_backend.results.values()
    assert isinstance(result, TaskiqResult)
    assert result.return_value == 6
    assert trips == [1]


async def test_what_no_broker_keeps_is_noted_all_the_same(worker: Process, trips: list[int]) -> None:
    worker.broker.arriving.append(await worker.genuine())
    listening = worker.broker.listen()
    await worker.broker.receiver.callback(await anext(listening))
    await until(lambda: trips == [1, 1], SECONDS)
    await listening.aclose()


async def test_what_is_being_noted_is_noted_before_the_process_ends(worker: Process, trips: list[int]) -> None:
    worker.broker.arriving.append(await worker.genuine())
    listening = worker.broker.listen()
    await worker.broker.receiver.callback(await anext(listening))
    await listening.aclose()
    await worker.broker.shutdown()
    assert trips == [1, 1]


@asynccontextmanager
async def _nothing_can_be_completed(worker: Process, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    go_on = asyncio.Event()
    stores = worker.security.replays
    assert stores is not None
    assert stores.shared is not None

    async def waits(*_: Any) -> None:
        await go_on.wait()

    monkeypatch.setattr(stores.shared, "complete", waits)
    try:
        yield
    finally:
        go_on.set()


def _observe(monkeypatch: pytest.MonkeyPatch, note: Callable[[list[_Operation]], None]) -> None:
    """Have each trip noted as it begins, in its own context."""
    carry = _Trips._carry

    async def noted(self: _Trips, operations: list[_Operation]) -> None:
        note(operations)
        await carry(self, operations)

    monkeypatch.setattr(_Trips, "_carry", noted)
