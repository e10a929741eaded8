"""Keys are rotated, process by process, while tasks flow, until the old one has ended; not one is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import datetime, timezone
from time import time
from typing import Any

import httpx
import pytest
from anyio import create_task_group
from redis.asyncio import Redis

from taskiq_flow_security import PolicyChange, Principal
from taskiq_flow_security.stores.redis import RedisKeys
from tests.integration import ledger
from tests.integration.client import Client
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.settings import (
    API_KEY,
    MESSAGE_SECRET,
    OTHER_SECRET,
    PROCESSOR,
    signing_key,
    worker_variables,
)
from tests.integration.transports import Transport
from tests.integration.worker_app import clean
from tests.integration.workers import ROOT, Worker
from tests.services import REDIS_URL

TASKS = 10_000
BATCH = 50
OVER_HTTP = 10
"""How many of a batch come through the API."""
WORKERS = 2
LEEWAY = 2.0

ADMIN = Principal("root", permissions=["admin"])
OLD = signing_key("old", MESSAGE_SECRET)
NEW = signing_key("new", OTHER_SECRET)


class Deployment:
    """Two workers, an API and another client, which get new settings one after the other and share a policy."""

    def __init__(self, transport: Transport, start_worker: StartWorker, running: AsyncExitStack) -> None:
        self._transport = transport
        self._start_worker = start_worker
        self._running = running
        self._kicking = asyncio.Lock()
        self._workers: list[Worker] = []
        self._clients = AsyncExitStack()
        self.all_workers: list[Worker] = []

    async def begin(self) -> None:
        """Start everything with the old key, and change the policy with it."""
        self._workers = await self._started([OLD])
        await self._start_clients([OLD])
        change = PolicyChange(pipeline_acls={"data": {"execute": ["processor", "auditor"]}})
        await self.client.security.administration.change(ADMIN, change)

    async def roll_out(self, keys: list[dict[str, object]]) -> None:
        """Start processes that have these keys, beside those before, which end then, one after the other."""
        workers, clients = self._workers, self._clients
        self._workers, _ = await asyncio.gather(self._started(keys), self._start_clients(keys))
        async with self._kicking:
            await clients.aclose()
        gc.collect()  # or the client's security would go on to see to it that the policy is signed with its keys
        for worker in workers:
            await asyncio.to_thread(worker.stop)

    async def kick(self, marker: str) -> list[str]:
        """Kick a batch of tasks; their ids."""
        async with self._kicking:
            tasks = (self.client.kick(clean, PROCESSOR, marker, [1, 2]) for _ in range(BATCH - OVER_HTTP))
            answers = (self.api.post("/clean", params={"marker": marker}) for _ in range(OVER_HTTP))
            kicked, started = await asyncio.gather(asyncio.gather(*tasks), asyncio.gather(*answers))
        assert [answer.status_code for answer in started] == [200] * OVER_HTTP
        return [*(task.task_id for task in kicked), *(answer.json()["task_id"] for answer in started)]

    async def check_results(self, task_ids: list[str]) -> None:
        """Wait for the results of tasks; all have run."""
        for first in range(0, len(task_ids), BATCH):
            for result in await asyncio.gather(*map(self.client.result_of, task_ids[first : first + BATCH])):
                assert not result.is_err, result.error
                assert result.return_value == 3

    def _variables(self, keys: list[dict[str, object]]) -> dict[str, str]:
        return {
            "TASKIQ_FLOW_SIGNING_KEYS": json.dumps(keys),
            "TASKIQ_FLOW_SHARED_STORE": REDIS_URL,
            "TASKIQ_FLOW_PRINCIPAL_AUDIENCE": self._transport.name,
            "TASKIQ_FLOW_CLOCK_LEEWAY": str(LEEWAY),
        }

    async def _started(self, keys: list[dict[str, object]]) -> list[Worker]:
        variables = self._variables(keys)
        starting = (asyncio.to_thread(self._start_worker, self._transport, **variables) for _ in range(WORKERS))
        workers = await asyncio.gather(*starting)
        self.all_workers.extend(workers)
        return workers

    async def _start_clients(self, keys: list[dict[str, object]]) -> None:
        settings: dict[str, Any] = {"shared_store": REDIS_URL, "principal_audience": self._transport.name}
        client = Client(self._transport, signing_keys=keys, clock_leeway=LEEWAY, **settings)
        clients = await self._running.enter_async_context(AsyncExitStack())
        self.client, self.api = await clients.enter_async_context(client), await self._serve(keys, clients)
        self._clients = clients

    async def _serve(self, keys: list[dict[str, object]], running: AsyncExitStack) -> httpx.AsyncClient:
        listener = running.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        command = [sys.executable, "-m", "uvicorn", "--fd", str(listener.fileno()), "--log-level", "warning"]
        variables = {
            **worker_variables(),
            **self._variables(keys),
            **self._transport.environment(),
            "TASKIQ_FLOW_REQUIRE_HTTPS": "false",
            "TASKIQ_FLOW_RATE_LIMIT_ENABLED": "false",
        }
        process = await asyncio.to_thread(
            subprocess.Popen,
            [*command, "--factory", "tests.integration.rotation_app:app"],
            cwd=ROOT,
            env={**os.environ, **variables},
            pass_fds=[listener.fileno()],
        )
        running.push_async_callback(asyncio.to_thread, process.wait)
        running.callback(process.terminate)
        return await running.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", headers={"x-api-key": API_KEY}, timeout=60
            )
        )


@pytest.mark.timeout(1200)
async def test_no_task_is_refused_while_a_key_is_replaced(
    new_transport: NewTransport, start_worker: StartWorker
) -> None:
    transport = new_transport("rabbitmq")  # which delivers again what a worker that stops has not acked
    async with AsyncExitStack() as running:
        running.push_async_callback(_forget, transport.name)
        deployment = Deployment(transport, start_worker, running)
        await deployment.begin()
        marker = deployment.client.new_marker()
        kicked: list[str] = []
        answered: list[str] = []
        rolled_out = asyncio.Event()

        async def kick() -> None:
            while len(kicked) < TASKS or not rolled_out.is_set():
                kicked.extend(await deployment.kick(marker))
                while len(kicked) - ledger.runs(marker) > 20 * BATCH:  # noqa: ASYNC110 (not too far ahead)
                    await asyncio.sleep(0.05)

        async def rotate() -> None:
            for keys in ([OLD, NEW], [NEW, OLD]):
                await _some_load(kicked)
                began = time()
                await deployment.roll_out(keys)
            rollout = time() - began
            await _some_load(kicked)
            answered.extend(kicked)  # whose results the old key may have signed: they are read while it is known
            await deployment.check_results(answered)
            ends = time() + 5 + 3 * rollout  # by when all must have been replaced that may still sign with the old key
            not_after = datetime.fromtimestamp(ends, timezone.utc).isoformat()
            await deployment.roll_out([NEW, {**OLD, "uses": ["verify"], "not_after": not_after}])
            await asyncio.sleep(max(ends + LEEWAY + 1 - time(), 0))
            await _some_load(kicked)
            await deployment.roll_out([NEW])
            await _some_load(kicked)
            rolled_out.set()

        async with create_task_group() as at_once:
            at_once.start_soon(kick)
            at_once.start_soon(rotate)
        assert len(kicked) >= TASKS
        await deployment.check_results(kicked[len(answered) :])
        assert deployment.client.security.live.document.version == 1
    audited = [
        json.loads(line) for worker in deployment.all_workers for line in worker.output.splitlines() if line[:1] == "{"
    ]
    # What a worker that stops has completed and could not ack any more is delivered again, and is a copy by then.
    ran = {event["jti"] for event in audited if event["event"] == "task_authz_allow"}
    refused = [event for event in audited if event["outcome"] != "allow"]
    assert [event for event in refused if event["event"] != "task_replay" or event["jti"] not in ran] == []
    assert {event["key_id"] for event in audited if event["event"] == "task_authz_allow"} == {"old", "new"}


async def _some_load(kicked: list[str]) -> None:
    before = len(kicked)
    while len(kicked) < before + 10 * BATCH:  # noqa: ASYNC110 (before each stage)
        await asyncio.sleep(0.05)


async def _forget(environment: str) -> None:
    async with Redis.from_url(REDIS_URL, socket_timeout=None) as redis:
        async for key in redis.scan_iter(f"{RedisKeys(environment).policy().removesuffix('policy')}*", count=1000):
            await redis.delete(key)
