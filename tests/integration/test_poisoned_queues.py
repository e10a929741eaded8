"""Whoever can write to the queue cannot end a worker's process, whatever they put there."""

from __future__ import annotations

import pytest

from tests.integration.client import Client
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.transports import RedisStream, redis_client

REDELIVERY_SECONDS = 1
ROUNDS = 5


@pytest.mark.xfail(strict=True, reason="taskiq-redis' own broker fails before any formatter is asked: see the README")
async def test_an_entry_of_a_stream_that_is_no_message_ends_no_worker(
    new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(RedisStream.kind, REDELIVERY_SECONDS)
    worker = start_worker(transport, "--max-async-tasks", "1")
    async with Client(transport) as client:
        await client.settle()
        with redis_client() as redis:
            redis.xadd(transport.name, {"no": "message"})
        for _ in range(ROUNDS):
            await client.settle()
    assert "restarted with pid" not in worker.output
