"""Thousands of messages that a worker refuses are all done with, and keep it from no good one."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import cycle, islice
from uuid import uuid4

import pytest
from taskiq.message import BrokerMessage

from taskiq_flow_security import AccessDeniedError, AuthenticationError
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import FORGERIES, Signer
from tests.integration.settings import PROCESSOR, caller_config
from tests.integration.transports import TRANSPORTS
from tests.integration.worker_app import clean, purge

REFUSED = 2000
GOOD = 20


@pytest.mark.parametrize("kind", TRANSPORTS)
async def test_2000_refused_messages_leave_nothing_pending_and_all_good_ones_among_them_run(
    kind: str, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport(kind)
    worker = start_worker(transport)
    async with Client(transport) as client:
        signer = Signer(caller_config())
        good, bad = client.new_marker(), client.new_marker()

        def denied(task_id: str, marker: str) -> BrokerMessage:
            return signer.sign(purge, marker, task_id=task_id)

        kinds = [denied, *FORGERIES]
        sendings = []
        for number, make in enumerate(islice(cycle(kinds), REFUSED)):
            if number % (REFUSED // GOOD) == 0:
                sendings.append(client.kick(clean, PROCESSOR, good, [1]))
            sendings.append(client.inject(make(uuid4().hex, bad)))
        tasks = await asyncio.gather(*sendings)

        outcomes = Counter([type((await result_of(task)).error) for task in tasks])
        assert outcomes == {
            type(None): GOOD,
            AccessDeniedError: REFUSED // len(kinds),
            AuthenticationError: REFUSED - REFUSED // len(kinds),
        }
        assert (ledger.runs(good), ledger.runs(bad)) == (GOOD, 0)

    # What was not acked returns to the queue now.
    worker.stop()
    assert await transport.unfinished() == 0
