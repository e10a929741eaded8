"""Sends events to Redis, away from where they happen."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from pydantic_core import to_json
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from taskiq_flow_security.errors import AuthenticationError
from taskiq_flow_security.losses import Losses
from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.signatures import RunSignatures
from taskiq_flow_security.stores import background
from taskiq_flow_security.stores.redis import UNAVAILABLE, RedisKeys

_logger = logging.getLogger(__name__)

_GATHER_SECONDS = 0.05
"""From one round trip to the next, so that events of a busy process are sent together."""
_AT_ONCE = 500
"""Events in one round trip."""
_PORTION_BYTES = 4000
"""Events that are signed together; with names and signature, and as base64url, they fit into `jws.MAX_BYTES`."""
_FIRST_PAUSE, _LAST_PAUSE = 0.1, 5.0
"""Seconds between two attempts."""


class _Batch(NamedTuple):
    pipeline_id: str
    events: list[RunEvent]
    number: int


class Publisher:
    """Sends what it is given, in that order, if anybody listens then. Where Redis is away, `buffer` events wait, and go
    on when it is back.
    """

    def __init__(
        self,
        client: Redis,
        names: RedisKeys,
        signatures: RunSignatures,
        clock: Callable[[], float],
        buffer: int,
    ) -> None:
        self._client = client
        self._names = names
        self._signatures = signatures
        self._clock = clock
        self._waiting: deque[RunEvent] = deque(maxlen=buffer)
        self._buffer = buffer
        self._sending: asyncio.Task[None] | None = None
        self._awake = False
        self._source = secrets.token_hex(8)
        self._last_number = 0
        self._losses = Losses(_logger, "run events were dropped")

    def put(self, event: RunEvent) -> None:
        """Send an event soon. From any thread."""
        if len(self._waiting) >= self._buffer:
            self._losses.add("Redis is away or too slow")
        self._waiting.append(event)
        if not self._awake:
            self._awake = True
            try:
                background.call_soon(self._wake)
            except RuntimeError:  # no thread can be started any more
                self._awake = False
                self._losses.add("the process is ending")

    async def flush(self, seconds: float) -> None:
        """Wait until all is sent, at most for so long. From any event loop."""
        if self._awake:
            await background.run(self._sent(seconds))

    async def close(self) -> None:
        """Stop sending; what is put later starts it again. In the background."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])

    async def _sent(self, seconds: float) -> None:
        if self._sending is not None:
            await asyncio.wait([self._sending], timeout=seconds)

    def _wake(self) -> None:
        if self._sending is None or self._sending.done():
            self._sending = asyncio.ensure_future(self._send_all())

    async def _send_all(self) -> None:
        try:
            while True:
                events = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                if events:
                    await self._send(events)
                    await asyncio.sleep(_GATHER_SECONDS)
                    continue
                self._awake = False  # from here on, `put` wakes; what it has put before that is seen now
                if not self._waiting:
                    return
                self._awake = True
        finally:
            self._awake = False

    async def _send(self, events: list[RunEvent]) -> None:
        """Send these, however long Redis is away. A batch that arrives twice is ignored by its number."""
        batches: list[_Batch] | None = None
        pause = _FIRST_PAUSE
        try:
            while True:
                try:
                    if batches is None:
                        events = await self._wanted(events)
                        batches = list(self._batches(events))
                    if batches:
                        await self._send_once(batches)
                    return
                except UNAVAILABLE:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, _LAST_PAUSE)
        except asyncio.CancelledError:
            self._losses.add("they were not sent before the end", len(events))
            raise
        except Exception:
            _logger.exception("Run events cannot be sent because of an unexpected error.")
            self._losses.add("an unexpected error", len(events))

    async def _wanted(self, events: list[RunEvent]) -> list[RunEvent]:
        """Those that anybody listens for: to ask takes less time than to sign them."""
        channels = {event.pipeline_id: self._names.channel(event.pipeline_id) for event in events}
        try:
            listeners = dict(await self._client.pubsub_numsub(*channels.values()))
        except ResponseError:  # Redis may be told not to say
            return events
        return [event for event in events if listeners.get(channels[event.pipeline_id].encode())]

    async def _send_once(self, batches: list[_Batch]) -> None:
        now = self._clock()
        async with self._client.pipeline(transaction=False) as pipeline:
            for pipeline_id, events, number in batches:
                try:
                    text = self._signatures.sign_events(pipeline_id, events, self._source, number, now)
                except AuthenticationError as error:
                    self._losses.add(f"they cannot be signed ({error.reason})", len(events))
                else:
                    pipeline.publish(self._names.channel(pipeline_id), text)
            await pipeline.execute()

    def _batches(self, events: list[RunEvent]) -> Iterator[_Batch]:
        """The events of each pipeline in their order, in portions that fit into a token."""
        portions: dict[str, list[RunEvent]] = {}
        sizes: dict[str, int] = {}
        for event in events:
            try:
                size = len(to_json(event))
            except ValueError:
                self._losses.add("they are not Unicode")
                continue
            portion = portions.get(event.pipeline_id)
            if portion is None or sizes[event.pipeline_id] + size > _PORTION_BYTES:
                if portion:
                    yield self._number(portion)
                portions[event.pipeline_id], sizes[event.pipeline_id] = [event], size
            else:
                portion.append(event)
                sizes[event.pipeline_id] += size
        for portion in portions.values():
            yield self._number(portion)

    def _number(self, events: list[RunEvent]) -> _Batch:
        self._last_number += 1
        return _Batch(events[0].pipeline_id, events, self._last_number)
