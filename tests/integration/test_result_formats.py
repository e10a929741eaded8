"""A refusal comes back as its own type, however results are stored."""

from __future__ import annotations

from uuid import uuid4

import pytest

from taskiq_flow_security import AccessDeniedError, AuthenticationError
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import FORGERIES
from tests.integration.settings import PROCESSOR
from tests.integration.transports import ResultFormat
from tests.integration.worker_app import clean, purge


@pytest.mark.parametrize("results", ["pickle", "json"])
async def test_errors_come_back_as_their_own_types_with_their_reasons(
    results: ResultFormat, new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport("redis-list", results=results)
    start_worker(transport)
    async with Client(transport) as client:
        marker = client.new_marker()
        good = await result_of(await client.kick(clean, PROCESSOR, marker, [1, 2]))
        assert good.return_value == 3

        denied = await result_of(await client.kick(purge, PROCESSOR, marker))
        with pytest.raises(AccessDeniedError) as denial:
            denied.raise_for_error()
        assert denial.value.reason == "acl"

        for forge, reason in FORGERIES.items():
            forged = await result_of(await client.inject(forge(uuid4().hex, marker)))
            with pytest.raises(AuthenticationError) as refusal:
                forged.raise_for_error()
            assert refusal.value.reason == reason
