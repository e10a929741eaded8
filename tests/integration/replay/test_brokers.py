"""Over real brokers, with real workers that share what has run in a Redis server of their own."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

import pytest
from taskiq import AsyncTaskiqTask, TaskiqResult
from taskiq.message import BrokerMessage

from taskiq_flow_security import AccessDeniedError
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import Signer
from tests.integration.replay.server import RedisServer
from tests.integration.replay.worker_app import APP, acks_itself, hold_once, kill_at_next_ack, once
from tests.integration.settings import PROCESSOR, caller_config
from tests.integration.transports import ACKABLE, TRANSPORTS, Transport, redis_client
from tests.integration.worker_app import clean, hold
from tests.integration.workers import Worker

SECONDS = 45
MANY = 1000

each_kind = pytest.mark.parametrize("kind", TRANSPORTS)
each_ackable = pytest.mark.parametrize("kind", ACKABLE)

_signer = Signer(caller_config())


def replays(*workers: Worker) -> int:
    """How many copies the workers have refused."""
    return sum(worker.output.count('"task_replay"') for worker in workers)


async def wait_until_refused(copies: int, *workers: Worker) -> None:
    """Wait until the workers have refused so many copies."""
    deadline = monotonic() + SECONDS
    while replays(*workers) < copies:
        assert monotonic() < deadline, f"{replays(*workers)} of {copies} copies were refused."
        await asyncio.sleep(0.05)


async def inject(client: Client, message: BrokerMessage) -> TaskiqResult[Any]:
    """The result of a message that is put on the queue."""
    return await result_of(await client.inject(message))


@each_kind
async def test_copies_of_a_finished_message_are_refused_by_all_workers(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind)
    workers = [start_worker(transport, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url) for _ in range(2)]
    async with Client(transport) as client:
        marker = client.new_marker()
        message = _signer.sign(clean, marker, [1, 2])
        assert (await inject(client, message)).return_value == 3
        before = transport.stored_result(message.task_id)
        for _ in range(20):
            await client.inject(message)
        await wait_until_refused(20, *workers)
        assert ledger.runs(marker) == 1
        assert transport.stored_result(message.task_id) == before
    for worker in workers:
        worker.stop()
    assert await transport.unfinished() == 0


async def test_copies_are_refused_amid_a_thousand_other_messages(
    new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport("redis-stream")
    workers = [start_worker(transport, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url) for _ in range(2)]
    async with Client(transport) as client:
        marker, others = client.new_marker(), client.new_marker()
        message = _signer.sign(clean, marker, [1])
        await inject(client, message)
        kicks = [client.kick(clean, PROCESSOR, others, []) for _ in range(MANY)]
        copies = [client.inject(message) for _ in range(MANY // 10)]
        mixed = [kick for ten in range(MANY // 10) for kick in (*kicks[ten * 10 : ten * 10 + 10], copies[ten])]
        tasks = await asyncio.gather(*mixed)
        for task in tasks:
            await result_of(task)
        await wait_until_refused(len(copies), *workers)
        assert ledger.runs(marker) == 1
        assert ledger.runs(others) == MANY
    for worker in workers:
        worker.stop()
    assert await transport.unfinished() == 0


@each_kind
async def test_of_many_copies_of_what_may_run_once_one_runs_in_one_worker(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind)
    async with Client(transport) as client:
        marker = client.new_marker()
        message = _signer.sign(once, marker)
        for _ in range(100):
            await client.inject(message)
        workers = [start_worker(transport, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url) for _ in range(2)]
        await wait_until_refused(99, *workers)
        assert ledger.runs(marker) == 1
    for worker in workers:
        worker.stop()
    assert await transport.unfinished() == 0


@each_ackable
async def test_a_task_in_whose_middle_its_worker_is_killed_runs_again_unless_it_may_run_once(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    store = {"TASKIQ_FLOW_SHARED_STORE": server.url}
    first = start_worker(transport, app=APP, **store)
    async with Client(transport) as client:
        marker, marker_once = client.new_marker(), client.new_marker()
        task = await client.kick(hold, PROCESSOR, marker)
        task_once = await client.kick(hold_once, PROCESSOR, marker_once)
        for held in (marker, marker_once):
            assert await asyncio.to_thread(ledger.wait_until_held, held, SECONDS)
        first.kill()
        second = start_worker(transport, app=APP, **store)
        deadline = monotonic() + SECONDS
        while not await asyncio.to_thread(ledger.wait_until_held, marker, 0.2):
            assert monotonic() < deadline, "The message is not delivered again."
            await _attract(client)
        ledger.let_go(marker)
        while not await task_once.is_ready():
            assert monotonic() < deadline, "Nobody is told."
            await _attract(client)
        assert (await result_of(task)).return_value == "alice was let go"
        error = (await result_of(task_once)).error
        assert isinstance(error, AccessDeniedError)
        assert error.reason == "replayed"
        assert ledger.runs(marker) >= 2
        assert ledger.runs(marker_once) == 1
    second.stop()
    assert await transport.unfinished() == 0


@each_ackable
async def test_a_message_whose_worker_is_killed_before_it_is_acked_is_refused_and_its_result_stays(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    worker = start_worker(transport, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url)  # is started again by its manager
    async with Client(transport) as client:
        marker = client.new_marker()
        kill_at_next_ack(transport)
        task = await client.kick(clean, PROCESSOR, marker, [1, 2])
        assert (await result_of(task)).return_value == 3
        before = transport.stored_result(task.task_id)
        assert await asyncio.to_thread(_started_again, transport)  # what it gets before, it takes with it
        deadline = monotonic() + SECONDS
        while not replays(worker):
            assert monotonic() < deadline, "The message is not delivered again."
            await _attract(client)
        assert ledger.runs(marker) == 1
        assert transport.stored_result(task.task_id) == before
    worker.stop()
    assert await transport.unfinished() == 0


@each_ackable
@pytest.mark.parametrize("ack_type", ["when_received", "when_executed", "manual"])
async def test_a_message_whose_worker_is_killed_at_an_early_ack_runs_and_is_answered(
    kind: str, ack_type: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    task_of_kind, options = (acks_itself, ()) if ack_type == "manual" else (clean, ("--ack-type", ack_type))
    worker = start_worker(transport, *options, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url)
    async with Client(transport) as client:
        marker = client.new_marker()
        kill_at_next_ack(transport)
        task = await client.kick(task_of_kind, PROCESSOR, marker, [1, 2])
        assert await asyncio.to_thread(_started_again, transport)
        deadline = monotonic() + SECONDS
        while not await task.is_ready():
            assert monotonic() < deadline, "The message is lost."
            await _attract(client)
        assert (await result_of(task)).return_value == 3
        # JetStream may deliver it again twice, once for the worker that was killed and once for its successor.
        assert ledger.runs(marker) >= (1 if ack_type == "when_received" else 2)
    worker.stop()
    assert await transport.unfinished() == 0


@each_kind
async def test_nothing_is_lost_or_runs_twice_while_the_store_is_away_and_comes_back(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind)
    workers = [start_worker(transport, app=APP, TASKIQ_FLOW_SHARED_STORE=server.url) for _ in range(2)]
    async with Client(transport) as client:
        marker = client.new_marker()

        async def load() -> None:
            tasks.extend(await asyncio.gather(*(client.kick(clean, PROCESSOR, marker, [1]) for _ in range(100))))

        tasks: list[AsyncTaskiqTask[Any]] = []
        for _ in range(2):
            await load()
            server.stop()
            await load()
            await asyncio.sleep(1.5)  # for as long as it is away
            server.start()
            await load()
        for task in tasks:
            assert (await result_of(task)).return_value == 1
        assert ledger.runs(marker) == len(tasks)
    for worker in workers:
        worker.stop()
    assert await transport.unfinished() == 0


@each_ackable
async def test_a_worker_ends_while_the_store_is_away_and_the_next_one_runs_what_waited(
    kind: str, new_transport: NewTransport, start_worker: StartWorker, server: RedisServer
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    store = {"TASKIQ_FLOW_SHARED_STORE": server.url}
    first = start_worker(transport, app=APP, **store)
    async with Client(transport) as client:
        marker = client.new_marker()
        server.stop()
        tasks = [await client.kick(clean, PROCESSOR, marker, [1]) for _ in range(10)]
        deadline = monotonic() + SECONDS
        while "backend_unavailable" not in first.output:
            assert monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.to_thread(first.stop)
        assert ledger.runs(marker) == 0
        server.start()
        second = start_worker(transport, app=APP, **store)
        while not all([await task.is_ready() for task in tasks]):
            assert monotonic() < deadline, "Not all messages are delivered again."
            await _attract(client)
        for task in tasks:
            assert (await result_of(task)).return_value == 1
    second.stop()
    assert await transport.unfinished() == 0


def _started_again(transport: Transport) -> bool:
    with redis_client() as redis:
        return ledger.wait_for(redis, f"{transport.name}:ready", SECONDS) is not None


async def _attract(client: Client) -> None:
    """A worker on a Redis stream looks for messages of others only after it has got one of its own."""
    await result_of(await client.kick(clean, PROCESSOR, client.new_marker(), []))
