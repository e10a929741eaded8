"""Tasks that run in a thread or in another process are guarded as all others are."""

from __future__ import annotations

import pytest

from taskiq_flow_security import AccessDeniedError
from tests.integration import ledger
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.settings import PROCESSOR, REMOVED_API_KEY
from tests.integration.worker_app import crunch, crunch_guarded, crunch_restricted


@pytest.mark.parametrize(
    "options",
    [[], ["--use-process-pool", "--max-process-pool-processes", "1"]],
    ids=["thread", "process"],
)
async def test_synchronous_tasks_run_or_are_refused_as_asynchronous_ones(
    options: list[str], new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport("redis-stream")
    worker = start_worker(transport, *options)
    async with Client(transport) as client:
        marker = client.new_marker()
        plain = await result_of(await client.kick(crunch, PROCESSOR, marker))
        guarded = await result_of(await client.kick(crunch_guarded, PROCESSOR, marker))
        assert (plain.error, guarded.error) == (None, None)
        pid, *names = guarded.return_value
        assert pid == plain.return_value
        assert (pid == worker.pid) is (not options)
        assert names == ["alice", "alice"]
        assert ledger.runs(marker) == 2

        refused = client.new_marker()
        holder = await client.security.authenticate(api_key=REMOVED_API_KEY)
        for task in (
            await client.kick(crunch_restricted, PROCESSOR, refused),
            await client.kick(crunch_guarded, holder, refused),
        ):
            with pytest.raises(AccessDeniedError):
                (await result_of(task)).raise_for_error()
        assert ledger.runs(refused) == 0

    worker.stop()
    assert await transport.unfinished() == 0
