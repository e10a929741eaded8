"""Security loses nothing: what a killed worker did not finish, the next one does."""

from __future__ import annotations

import asyncio
from time import monotonic
from uuid import uuid4

import pytest

from taskiq_flow_security import AuthenticationError
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import unsigned
from tests.integration.settings import PROCESSOR
from tests.integration.transports import ACKABLE
from tests.integration.worker_app import clean, hold

SECONDS = 30
MANY = 300

each_ackable = pytest.mark.parametrize("kind", ACKABLE)


@each_ackable
async def test_a_task_in_the_middle_of_which_its_worker_is_killed_runs_in_the_next_worker(
    kind: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    first = start_worker(transport)
    async with Client(transport) as client:
        marker = client.new_marker()
        task = await client.kick(hold, PROCESSOR, marker)
        assert await asyncio.to_thread(ledger.wait_until_held, marker, SECONDS)
        first.kill()
        assert not await task.is_ready()

        second = start_worker(transport)
        deadline = monotonic() + SECONDS
        while not await asyncio.to_thread(ledger.wait_until_held, marker, 0.2):
            assert monotonic() < deadline, "The message is not delivered again."
            await _attract(client)
        ledger.let_go(marker)
        result = await result_of(task)
        assert result.error is None
        assert result.return_value == "alice was let go"
        assert ledger.runs(marker) >= 2

    second.stop()
    assert await transport.unfinished() == 0


@each_ackable
async def test_a_worker_killed_among_refusals_leaves_nothing_that_the_next_one_does_not_finish(
    kind: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    async with Client(transport) as client:
        good, bad = client.new_marker(), client.new_marker()
        forged = [client.inject(unsigned(uuid4().hex, bad)) for _ in range(MANY)]
        tasks = await asyncio.gather(*forged[: MANY // 2], client.kick(hold, PROCESSOR, good), *forged[MANY // 2 :])
        first = start_worker(transport)
        assert await asyncio.to_thread(ledger.wait_until_held, good, SECONDS)
        first.kill()
        held = tasks.pop(MANY // 2)
        assert not await held.is_ready()

        second = start_worker(transport)
        deadline = monotonic() + SECONDS
        while not await asyncio.to_thread(ledger.wait_until_held, good, 0.2):
            assert monotonic() < deadline, "The message is not delivered again."
            await _attract(client)
        ledger.let_go(good)
        while not all([await task.is_ready() for task in (held, *tasks)]):
            assert monotonic() < deadline, "Not all messages are delivered again."
            await _attract(client)
        assert {type((await result_of(task)).error) for task in tasks} == {AuthenticationError}
        assert (await result_of(held)).return_value == "alice was let go"
        assert ledger.runs(good) >= 2
        assert ledger.runs(bad) == 0

    second.stop()
    assert await transport.unfinished() == 0


async def _attract(client: Client) -> None:
    """A worker on a Redis stream looks for messages of others only after it has got one of its own."""
    await result_of(await client.kick(clean, PROCESSOR, client.new_marker(), []))
