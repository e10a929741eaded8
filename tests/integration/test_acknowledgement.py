"""A refused message is acked, whenever the worker acks others."""

from __future__ import annotations

from uuid import uuid4

import pytest

from taskiq_flow_security import FlowSecurityError
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import FORGERIES
from tests.integration.settings import PROCESSOR
from tests.integration.worker_app import purge


@pytest.mark.parametrize("ack_type", ["when_received", "when_executed", "when_saved", "manual"])
async def test_a_refused_message_is_acked_for_every_ack_type_of_the_worker(
    ack_type: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport("redis-stream")
    worker = start_worker(transport, "--ack-type", ack_type)
    async with Client(transport) as client:
        denied = await client.kick(purge, PROCESSOR, client.new_marker())
        forged = [await client.inject(forge(uuid4().hex, client.new_marker())) for forge in FORGERIES]
        for task in [denied, *forged]:
            result = await result_of(task)
            assert isinstance(result.error, FlowSecurityError)
    worker.stop()
    assert await transport.unfinished() == 0
