"""Events over Redis pub/sub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.memory import MemoryRunEvents
from taskiq_flow_security.runs.redis.listener import Listener
from taskiq_flow_security.runs.redis.publisher import Publisher
from taskiq_flow_security.runs.signatures import RunSignatures
from taskiq_flow_security.stores import background
from taskiq_flow_security.stores.background import PerProcess
from taskiq_flow_security.stores.redis import RedisKeys, new_client

_FLUSH_SECONDS = 2.0


@dataclass
class _Ends:
    """What one process has of it."""

    client: Redis
    publisher: Publisher
    listener: Listener
    subscribers: MemoryRunEvents


class RedisRunEvents:
    """Carries events between processes. `buffer` of them wait at most, here and for each subscriber."""

    watched = True
    """Somebody in another process may have subscribed."""

    def __init__(
        self,
        url: str,
        names: RedisKeys,
        signatures: RunSignatures,
        clock: Callable[[], float],
        *,
        buffer: int = 10_000,
    ) -> None:
        new_client(url)  # says now what is wrong with the URL

        def connect() -> _Ends:
            client = new_client(url)
            subscribers = MemoryRunEvents(buffer=buffer)
            return _Ends(
                client,
                Publisher(client, names, signatures, clock, buffer),
                Listener(client, names, signatures, clock, subscribers.publish),
                subscribers,
            )

        self._ends = PerProcess(connect)

    def publish(self, event: RunEvent) -> None:
        """Send it to all processes in which somebody has subscribed."""
        self._ends.get().publisher.put(event)

    @asynccontextmanager
    async def subscribe(self, pipeline_id: str) -> AsyncIterator[AsyncIterator[RunEvent]]:
        """The pipeline's events from here on; from later on, if Redis is away."""
        ends = self._ends.get()
        async with ends.subscribers.subscribe(pipeline_id) as events:
            background.call_soon(partial(ends.listener.add, pipeline_id, events))
            try:
                await background.run(ends.listener.confirmed(pipeline_id))
                yield events
            finally:
                background.call_soon(partial(ends.listener.remove, pipeline_id, events))

    async def flush(self) -> None:
        """Wait until what was published has been sent, for `_FLUSH_SECONDS` at most."""
        await self._ends.get().publisher.flush(_FLUSH_SECONDS)

    async def close(self) -> None:
        """Flush, end all subscriptions, and disconnect."""
        ends = self._ends.get()
        await self.flush()
        await background.run(ends.publisher.close())
        await background.run(ends.listener.close())
        await background.run(ends.client.aclose())
        await ends.subscribers.close()
