"""Receives events from Redis, for as long as somebody here wants them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress

from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.order import RunOrder
from taskiq_flow_security.runs.signatures import RunSignatures
from taskiq_flow_security.stores.redis import UNAVAILABLE, RedisKeys

_logger = logging.getLogger(__name__)

_CONFIRM_SECONDS = 2.0
"""How long a subscription waits until Redis says that it holds; it goes on without if Redis is away."""
_PING_SECONDS = 10.0
"""Silence after which Redis is asked whether it is still there; after as much again, it is not."""
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between two attempts to connect."""
_MAX_SOURCES = 10_000
"""Publishing processes that are remembered, the oldest forgotten first."""


class _Channel:
    def __init__(self, pipeline_id: str) -> None:
        self.pipeline_id = pipeline_id
        self.subscribers: set[object] = set()
        self.confirmed = asyncio.Event()


class Listener:
    """One connection for all subscriptions of a process. All of it runs in the background."""

    def __init__(
        self,
        client: Redis,
        names: RedisKeys,
        signatures: RunSignatures,
        clock: Callable[[], float],
        deliver: Callable[[RunEvent], None],
    ) -> None:
        self._client = client
        self._names = names
        self._signatures = signatures
        self._clock = clock
        self._order = RunOrder(deliver, _call_later, time.monotonic)
        self._channels: dict[str, _Channel] = {}
        self._changed = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._numbers: OrderedDict[str, int] = OrderedDict()
        """By source, the number of the last batch."""
        self._losses = Losses(_logger, "batches of run events in Redis are not believed")
        self._breaks = Losses(_logger, "times the connection for run events broke; it is made again")

    def add(self, pipeline_id: str, subscriber: object) -> None:
        """Listen to a pipeline for somebody."""
        name = self._names.channel(pipeline_id)
        self._channels.setdefault(name, _Channel(pipeline_id)).subscribers.add(subscriber)
        self._changed.set()
        if self._listening is None or self._listening.done():
            self._listening = asyncio.ensure_future(self._listen())

    def remove(self, pipeline_id: str, subscriber: object) -> None:
        """Listen no longer for somebody."""
        name = self._names.channel(pipeline_id)
        channel = self._channels.get(name)
        if channel is None:
            return  # closed meanwhile
        channel.subscribers.discard(subscriber)
        if not channel.subscribers:
            del self._channels[name]
            self._changed.set()

    async def confirmed(self, pipeline_id: str) -> None:
        """Wait until Redis has said that it will send the events of a pipeline, or does not say anything."""
        channel = self._channels.get(self._names.channel(pipeline_id))
        if channel is not None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(channel.confirmed.wait(), _CONFIRM_SECONDS)

    async def close(self) -> None:
        """Listen to nothing any more."""
        self._channels.clear()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while self._channels:
            connected_at = time.monotonic()
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.connect()
                    await _until_one_ends(self._follow(pubsub), self._receive(pubsub))
                    continue
            except UNAVAILABLE as error:
                self._breaks.add(type(error).__name__)
            except Exception:
                _logger.exception("Run events cannot be received because of an unexpected error; trying again.")
            for channel in self._channels.values():
                channel.confirmed.clear()
            lasted = time.monotonic() - connected_at > _LAST_PAUSE
            pause = _FIRST_PAUSE if lasted else min(pause * 2, _LAST_PAUSE)
            await asyncio.sleep(pause)

    async def _follow(self, pubsub: PubSub) -> None:
        """Subscribe to what is wanted, until nothing is."""
        subscribed: dict[str, _Channel] = {}
        while wanted := dict(self._channels):
            self._changed.clear()
            # Also what was given up and is wanted again meanwhile, so that it is confirmed again.
            added = [name for name, channel in wanted.items() if subscribed.get(name) is not channel]
            if added:
                await pubsub.subscribe(*added)
            if removed := subscribed.keys() - wanted.keys():
                await pubsub.unsubscribe(*removed)
            subscribed = wanted
            await self._changed.wait()

    async def _receive(self, pubsub: PubSub) -> None:
        asked = False
        while True:
            message = await pubsub.get_message(timeout=_PING_SECONDS)
            if message is not None:
                asked = False
                self._handle(message)
                await asyncio.sleep(0)  # others have their turn, also while one message follows the other
            elif asked:
                raise TimeoutError
            else:
                asked = True
                await pubsub.ping()

    def _handle(self, message: Mapping[str, object]) -> None:
        name = message["channel"]
        channel = self._channels.get(name.decode() if isinstance(name, bytes) else str(name))
        if channel is None:
            return
        if message["type"] == "subscribe":
            channel.confirmed.set()
        elif message["type"] == "message":
            self._handle_batch(message["data"], channel.pipeline_id)

    def _handle_batch(self, text: object, pipeline_id: str) -> None:
        try:
            batch = self._signatures.read_events(text, pipeline_id, self._clock())
        except AuthenticationError as error:
            self._losses.add(error.reason)
            return
        if batch.number <= self._numbers.get(batch.source, 0):
            self._losses.add("they came before")
            return
        self._numbers[batch.source] = batch.number
        self._numbers.move_to_end(batch.source)
        if len(self._numbers) > _MAX_SOURCES:
            self._numbers.popitem(last=False)
        for event in batch.events:
            self._order.put(batch.source, event)


def _call_later(seconds: float, function: Callable[[], None]) -> object:
    return asyncio.get_running_loop().call_later(seconds, function)


async def _until_one_ends(*coroutines: Coroutine[object, object, None]) -> None:
    """Run these until the first one returns or raises, and end the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
