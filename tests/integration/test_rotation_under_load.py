"""Keys are rotated, worker by worker, while tasks flow; not one is refused."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import datetime, timedelta, timezone

import pytest
from taskiq import AsyncTaskiqTask

from tests.integration import ledger
from tests.integration.client import Client
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.settings import MESSAGE_SECRET, OTHER_SECRET, PROCESSOR, signing_key
from tests.integration.transports import Transport
from tests.integration.worker_app import clean
from tests.integration.workers import Worker

TASKS = 10_000
BATCH = 50
WORKERS = 2

OLD = signing_key("old", MESSAGE_SECRET)
NEW = signing_key("new", OTHER_SECRET)
RETIRED = {
    **OLD,
    "uses": ["issue", "send", "verify"],
    "not_after": (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat(),
}
STAGES = {
    "the new key is added": [OLD, NEW],
    "the new key signs": [NEW, OLD],
    "the old key is retired": [NEW, RETIRED],
}


class Deployment:
    """Two workers and an API, which get new settings one after the other."""

    def __init__(self, transport: Transport, start_worker: StartWorker, clients: AsyncExitStack) -> None:
        self._transport = transport
        self._start_worker = start_worker
        self._clients = clients
        self._workers: list[Worker] = []
        self.all_workers: list[Worker] = []

    async def begin(self) -> None:
        """Start everything with the old key."""
        self._workers = [await self._started([OLD]) for _ in range(WORKERS)]
        self.client = await self._clients.enter_async_context(Client(self._transport, signing_keys=[OLD]))

    async def roll_out(self, keys: list[dict[str, object]]) -> None:
        """Replace one process after the other by one that has these keys."""
        for number in range(WORKERS):
            await asyncio.to_thread(self._workers[number].stop)
            self._workers[number] = await self._started(keys)
        self.client = await self._clients.enter_async_context(Client(self._transport, signing_keys=keys))

    async def _started(self, keys: list[dict[str, object]]) -> Worker:
        variables = {"TASKIQ_FLOW_SIGNING_KEYS": json.dumps(keys)}
        worker = await asyncio.to_thread(self._start_worker, self._transport, **variables)
        self.all_workers.append(worker)
        return worker


@pytest.mark.timeout(300)
async def test_no_task_is_refused_while_a_key_is_replaced(
    new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport("rabbitmq")  # which delivers again what a worker that stops has not acked
    async with AsyncExitStack() as clients:
        deployment = Deployment(transport, start_worker, clients)
        await deployment.begin()
        marker = deployment.client.new_marker()
        kicked: list[AsyncTaskiqTask[int]] = []
        rolled_out = asyncio.Event()

        async def kick() -> None:
            while len(kicked) < TASKS or not rolled_out.is_set():
                client = deployment.client
                kicked.extend(
                    await asyncio.gather(*(client.kick(clean, PROCESSOR, marker, [1, 2]) for _ in range(BATCH)))
                )
                while len(kicked) - ledger.runs(marker) > 20 * BATCH:  # noqa: ASYNC110 (not too far ahead)
                    await asyncio.sleep(0.05)

        kicking = asyncio.create_task(kick())
        for keys in STAGES.values():
            before = len(kicked)
            while len(kicked) < before + 10 * BATCH:  # noqa: ASYNC110 (some load before each stage)
                await asyncio.sleep(0.05)
            await deployment.roll_out(keys)
        rolled_out.set()
        await kicking
        assert len(kicked) >= TASKS
        for task in kicked:
            result = await deployment.client.result_of(task.task_id)
            assert not result.is_err, result.error
            assert result.return_value == 3
    audited = [
        json.loads(line) for worker in deployment.all_workers for line in worker.output.splitlines() if line[:1] == "{"
    ]
    assert {event["outcome"] for event in audited} == {"allow"}
    assert {event["key_id"] for event in audited if event["event"] == "task_authz_allow"} == {"old", "new"}
