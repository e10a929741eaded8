"""Processes of one deployment that share a Redis, and how to look at what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from taskiq_flow_security import FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.runs.events import RunEvent
from tests.integration.inmemory.harness import SECRET, Clock
from tests.services import REDIS_URL

SECONDS = 20.0


class Deployment:
    """An environment with a name of its own, so that tests do not meet in Redis."""

    def __init__(self) -> None:
        self.environment = f"runs-{uuid4().hex}"
        self.clock = Clock()
        self._members: list[FlowSecurity] = []

    def process(self, url: str = REDIS_URL, **settings: Any) -> FlowSecurity:
        """What stands for another process."""
        common = {"jwt_secret": SECRET, "principal_audience": self.environment, "shared_store": url}
        security = FlowSecurity(TaskiqFlowConfig(**(common | settings)), clock=self.clock)
        self._members.append(security)
        return security

    async def end(self) -> None:
        """Disconnect all."""
        for member in self._members:
            await member.run_events.close()


async def take(events: AsyncIterator[RunEvent], number: int) -> list[RunEvent]:
    """The next events."""
    return [await asyncio.wait_for(anext(events), SECONDS) for _ in range(number)]


async def kill_clients(redis: Redis, name: str) -> int:
    """End the connections that have this name, as an administrator can; how many there were."""
    clients = [client for client in await redis.client_list() if client["name"] == name]
    for client in clients:
        await redis.client_kill_filter(_id=client["id"])
    return len(clients)
