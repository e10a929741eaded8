"""Keys are rotated, process by process, while tasks flow, until the old one has ended; not one is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import subprocess
import sys
import weakref
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
from tests.integration.waiting import until
from tests.integration.worker_app import clean
from tests.integration.workers import ROOT, STOP_SECONDS, Worker
from tests.services import REDIS_URL

TASKS = 10_000
BATCH = 50
OVER_HTTP = 10
"""How many of a batch come through the API."""
WORKERS = 2
LEEWAY = 2.0
SECONDS = 120.0
"""For whatever has to happen."""

ADMIN = Principal("root", permissions=["admin"])
OLD = signing_key("old", MESSAGE_SECRET)
NEW = signing_key("new", OTHER_SECRET)


@dataclass(frozen=True)
class Clients:
    """Who kicks with some keys: a client, and an API; and what ends both."""

    client: Client
    api: httpx.AsyncClient
    running: AsyncExitStack


class Deployment:
    """Two workers, an API and another client, which get new settings one after the other and share a policy."""

    def __init__(self, transport: Transport, start_worker: StartWorker, running: AsyncExitStack) -> None:
        self._transport = transport
        self._start_worker = start_worker
        self._running = running
        self._kicking = asyncio.Lock()
        self._clients: Clients
        self.stages: list[list[Worker]] = []
        """The workers that were started with the same keys."""
        self.marker: str
        self.kicked: list[str] = []
        """The ids of all tasks."""

    @property
    def client(self) -> Client:
        """The client of now."""
        return self._clients.client

    async def begin(self) -> None:
        """Start everything with the old key, and change the policy with it."""
        await self._start_workers([OLD])
        self._clients = await self._started_clients([OLD])
        self.marker = self.client.new_marker()
        change = PolicyChange(pipeline_acls={"data": {"execute": ["processor", "auditor"]}})
        await self.client.security.administration.change(ADMIN, change)

    async def roll_out(self, keys: list[dict[str, object]]) -> None:
        """Replace all processes by some that have these keys, so that for a while all kinds of both are there."""
        before, followed = self._clients, weakref.ref(self.client.security.live)
        _, clients = await asyncio.gather(self._start_workers(keys), self._started_clients(keys))
        await self.some_load()  # of the clients before
        async with self._kicking:
            self._clients = clients
        await before.running.aclose()
        del before
        # Until then it would go on to see to it that the policy is signed with its key.
        await until(lambda: gc.collect() >= 0 and followed() is None, SECONDS)
        await self.some_load()  # of the new ones
        for worker in self.stages[-2]:
            await asyncio.to_thread(worker.stop)

    async def kick_until(self, rolled_out: asyncio.Event) -> None:
        """Kick one batch after the other until everything is rolled out and there were enough."""
        while len(self.kicked) < TASKS or not rolled_out.is_set():
            await self._kick()
            await until(lambda: len(self.kicked) - ledger.runs(self.marker) <= 20 * BATCH, SECONDS)  # not too far ahead

    async def some_load(self) -> None:
        """Wait until some more tasks have been kicked."""
        enough = len(self.kicked) + 5 * BATCH
        await until(lambda: len(self.kicked) >= enough, SECONDS)

    async def check_results(self, task_ids: list[str]) -> None:
        """Wait for the results of tasks; all have run."""
        for first in range(0, len(task_ids), BATCH):
            for result in await asyncio.gather(*map(self.client.result_of, task_ids[first : first + BATCH])):
                assert not result.is_err, result.error
                assert result.return_value == 3

    async def _kick(self) -> None:
        async with self._kicking:
            client, api = self._clients.client, self._clients.api
            tasks = (client.kick(clean, PROCESSOR, self.marker, [1, 2]) for _ in range(BATCH - OVER_HTTP))
            answers = (api.post("/clean", params={"marker": self.marker}) for _ in range(OVER_HTTP))
            kicked, started = await asyncio.gather(asyncio.gather(*tasks), asyncio.gather(*answers))
        assert [answer.status_code for answer in started] == [200] * OVER_HTTP
        self.kicked += [*(task.task_id for task in kicked), *(answer.json()["task_id"] for answer in started)]

    def _variables(self, keys: list[dict[str, object]]) -> dict[str, str]:
        return {
            "TASKIQ_FLOW_SIGNING_KEYS": json.dumps(keys),
            "TASKIQ_FLOW_SHARED_STORE": REDIS_URL,
            "TASKIQ_FLOW_PRINCIPAL_AUDIENCE": self._transport.name,
            "TASKIQ_FLOW_CLOCK_LEEWAY": str(LEEWAY),
        }

    async def _start_workers(self, keys: list[dict[str, object]]) -> None:
        variables = self._variables(keys)
        starting = (asyncio.to_thread(self._start_worker, self._transport, **variables) for _ in range(WORKERS))
        self.stages.append(await asyncio.gather(*starting))

    async def _started_clients(self, keys: list[dict[str, object]]) -> Clients:
        running = await self._running.enter_async_context(AsyncExitStack())
        settings: dict[str, Any] = {"shared_store": REDIS_URL, "principal_audience": self._transport.name}
        client = Client(self._transport, signing_keys=keys, clock_leeway=LEEWAY, **settings)
        api = await self._served(keys, running)
        await api.get("/")  # it has started when it answers, whatever that is
        return Clients(await running.enter_async_context(client), api, running)

    async def _served(self, keys: list[dict[str, object]], running: AsyncExitStack) -> httpx.AsyncClient:
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
        process = subprocess.Popen(  # noqa: ASYNC220 (which is quick, and not to be cancelled)
            [*command, "--factory", "tests.integration.rotation_app:app"],
            cwd=ROOT,
            env={**os.environ, **variables},
            pass_fds=[listener.fileno()],
        )
        running.push_async_callback(asyncio.to_thread, _end, process)
        return await running.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", headers={"x-api-key": API_KEY}, timeout=120
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
        answered: list[str] = []
        rolled_out = asyncio.Event()

        async def rotate() -> None:
            for keys in ([OLD, NEW], [NEW, OLD]):
                began = time()
                await deployment.roll_out(keys)
            rollout = time() - began
            answered.extend(deployment.kicked)  # whose results the old key may have signed: read while it is known
            await deployment.check_results(answered)
            ends = time() + 5 + 3 * rollout  # by when all must have been replaced that may still sign with the old key
            not_after = datetime.fromtimestamp(ends, timezone.utc).isoformat()
            await deployment.roll_out([NEW, {**OLD, "uses": ["verify"], "not_after": not_after}])
            await asyncio.sleep(max(ends + LEEWAY + 1 - time(), 0))
            await deployment.roll_out([NEW])
            rolled_out.set()

        async with create_task_group() as at_once:
            at_once.start_soon(deployment.kick_until, rolled_out)
            at_once.start_soon(rotate)
        assert len(deployment.kicked) >= TASKS
        await deployment.check_results(deployment.kicked[len(answered) :])
        assert deployment.client.security.live.document.version == 1
    stages = [[event for worker in stage for event in _audited(worker)] for stage in deployment.stages]
    # What a worker that stops has completed and could not ack any more is delivered again, and is a copy by then.
    ran = {event["jti"] for stage in stages for event in stage if event["event"] == "task_authz_allow"}
    refused = [event for stage in stages for event in stage if event["outcome"] != "allow"]
    assert [event for event in refused if event["event"] != "task_replay" or event["jti"] not in ran] == []
    signed_with = [{event["key_id"] for event in stage if event["event"] == "task_authz_allow"} for stage in stages]
    assert signed_with == [{"old"}, {"old", "new"}, {"old", "new"}, {"new"}, {"new"}]


def _audited(worker: Worker) -> list[dict[str, Any]]:
    return [json.loads(line) for line in worker.output.splitlines() if line[:1] == "{"]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        process.kill()


async def _forget(environment: str) -> None:
    async with Redis.from_url(REDIS_URL, socket_timeout=None) as redis:
        async for key in redis.scan_iter(f"{RedisKeys(environment).policy().removesuffix('policy')}*", count=1000):
            await redis.delete(key)
