"""Security loses nothing: what a killed worker was doing is done by the next one."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest

from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.settings import PROCESSOR
from tests.integration.transports import ACKABLE
from tests.integration.worker_app import hold

SECONDS = 30


@pytest.mark.parametrize("kind", ACKABLE)
async def test_a_task_in_the_middle_of_which_its_worker_is_killed_runs_in_the_next_worker(
    kind: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(kind, redelivery_seconds=1)
    first = start_worker(transport)
    async with Client(transport) as client:
        marker = client.new_marker()
        task = await client.kick(hold, PROCESSOR, marker)
        assert ledger.wait_until_held(marker, SECONDS)
        first.kill()
        assert not await task.is_ready()

        second = start_worker(transport)
        deadline = monotonic() + SECONDS
        while not await asyncio.to_thread(ledger.wait_until_held, marker, 0.2):
            assert monotonic() < deadline, "The message is not delivered again."
            # A worker on a Redis stream looks for messages of others only after it has got one of its own.
            await client.settle()
        ledger.let_go(marker)
        result = await result_of(task)
        assert result.error is None
        assert result.return_value == "let go"
        assert ledger.runs(marker) == 2

    second.stop()
    assert await transport.unfinished() == 0
