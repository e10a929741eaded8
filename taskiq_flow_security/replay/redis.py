"""What processes remember together of messages, in Redis (extra ``redis``).

Whoever can write there can make a message look completed, so that it is refused, and can make one look new again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextvars import Context
from typing import NamedTuple

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from taskiq_flow_security.errors import BackendUnavailableError
from taskiq_flow_security.replay.records import Progress
from taskiq_flow_security.stores.redis import UNAVAILABLE, RedisKeys, new_client
from taskiq_flow_security.tokens.message_signature import MessageSignature

_logger = logging.getLogger(__name__)

_COMPLETED = "completed"

_GATHER_SECONDS, _IDLE_SECONDS = 0.002, 0.0002
"""How long operations wait for others at most, and how long while the event loop has nothing to do."""

_IDLE_PASS = 20e-6
"""An event loop that comes round within so many seconds has nothing to do."""

# For each key: for how many milliseconds to write what there, if anything. Answers, in one letter for each, what is
# there then: nothing (-), what was to be written (m, "mine"), that it has completed (c), or that it has started (s).
# What is no string was put there by somebody else. One argument and one answer for all take the least time to be read.
_SCRIPT = """
local found, i = {}, 0
for ttl, value in string.gmatch(ARGV[1], '(%d+):(%w*)') do
  i = i + 1
  local key = KEYS[i]
  if value == 'completed' then
    redis.call('SET', key, value, 'PX', ttl)
  elseif value ~= '' then
    redis.call('SET', key, value, 'NX', 'PX', ttl)
  end
  local kept = redis.pcall('GETRANGE', key, 0, 63)
  if type(kept) ~= 'string' or kept == 'completed' then
    found[i] = 'c'
  elseif kept == '' then
    found[i] = '-'
  else
    found[i] = kept == value and 'm' or 's'
  end
end
return table.concat(found)
"""

_FOUND = {"-": None, "m": None, "c": Progress.COMPLETED, "s": Progress.STARTED}


class RedisReplays:
    """Remembers each message under a key of its own, which Redis drops `margin` seconds after it has expired."""

    def __init__(self, url: str, names: RedisKeys, clock: Callable[[], float], margin: float) -> None:
        new_client(url)  # says now what is wrong with the URL
        self._url = url
        self._names = names
        self._clock = clock
        self._margin = margin
        self._prefixes: dict[str, str] = {}
        self._trips: dict[asyncio.AbstractEventLoop, _Trips] = {}

    def progress(self, message: MessageSignature) -> asyncio.Future[Progress | None]:
        """As `SharedReplays`."""
        return self._exchange(message, "")

    def claim(self, message: MessageSignature, claimant: str) -> asyncio.Future[Progress | None]:
        """As `SharedReplays`."""
        return self._exchange(message, claimant)

    def complete(self, message: MessageSignature) -> asyncio.Future[Progress | None]:
        """As `SharedReplays`."""
        return self._exchange(message, _COMPLETED)

    async def close(self) -> None:
        """Let go of the connection of this event loop."""
        trips = self._trips.pop(asyncio.get_running_loop(), None)
        if trips is not None:
            await trips.close()

    def _exchange(self, message: MessageSignature, value: str) -> asyncio.Future[Progress | None]:
        prefix = self._prefixes.get(message.kid)
        if prefix is None:
            prefix = self._prefixes[message.kid] = self._names.messages(message.kid)
        # For how long, not until when, so that the clock of Redis does not matter.
        ttl = max(int((message.expires_at + self._margin - self._clock()) * 1000), 1)
        return self._of_this_loop().add(prefix + message.jti, value, ttl)

    def _of_this_loop(self) -> _Trips:
        loop = asyncio.get_running_loop()
        trips = self._trips.get(loop)
        if trips is None:
            for other in [other for other in list(self._trips) if other.is_closed()]:
                self._trips.pop(other, None)
            trips = self._trips[loop] = _Trips(new_client(self._url))
        return trips


class _Operation(NamedTuple):
    key: str
    value: str
    """Letters and digits."""
    ttl: int
    """Milliseconds."""
    found: asyncio.Future[Progress | None]


class _Trips:
    """Goes to Redis and back. What comes while it is under way goes together with the next trip."""

    def __init__(self, client: Redis) -> None:
        # Without the pool around it, which takes as long as all else.
        self._connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._waiting: list[_Operation] = []
        self._going: asyncio.Task[None] | None = None
        self._expected = 1

    def add(self, key: str, value: str, ttl: int) -> asyncio.Future[Progress | None]:
        """How far the message of a key has come, after this value is written there, if there is one to write.

        ``None`` also where that is what is there.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Progress | None] = loop.create_future()
        self._waiting.append(_Operation(key, value, ttl, found))
        if self._going is None:
            self._going = Context().run(loop.create_task, self._go())  # for many, and in the context of none
        return found

    async def close(self) -> None:
        """Wait for what is under way, then let go of the connection."""
        if self._going is not None:
            await asyncio.wait([self._going])
        await self._connection.disconnect()

    async def _go(self) -> None:
        operations: list[_Operation] = []
        try:
            while self._waiting:
                await self._gather()
                operations, self._waiting = self._waiting, []
                await self._carry(operations)
                self._expected = len(operations) + len(self._waiting)
        finally:
            self._going = None
            for operation in (*operations, *self._waiting):  # none, unless this was cancelled
                operation.found.cancel()

    async def _gather(self) -> None:
        """Let as many come along as came together of late, unless the event loop has nothing else to do."""
        passed = started = time.perf_counter()
        idle = 0.0
        while len(self._waiting) < self._expected:
            await asyncio.sleep(0)
            now = time.perf_counter()
            if now - passed < _IDLE_PASS:
                idle += now - passed
            if idle > _IDLE_SECONDS or now - started > _GATHER_SECONDS:
                return
            passed = now

    async def _carry(self, operations: list[_Operation]) -> None:
        keys = [operation.key for operation in operations]
        values = " ".join([f"{operation.ttl}:{operation.value}" for operation in operations])
        try:
            answer = await self._eval(len(keys), *keys, values)
            found = [_FOUND[letter] for letter in answer.decode()]
            if len(found) != len(operations):
                raise ValueError("not as many answers as questions")
        except UNAVAILABLE as error:
            self._fail(operations, type(error).__name__)
        except Exception:
            _logger.exception("Redis cannot be asked because of an unexpected error.")
            self._fail(operations, "an unexpected error")
        else:
            for operation, progress in zip(operations, found, strict=True):
                if not operation.found.done():
                    operation.found.set_result(progress)

    async def _eval(self, *arguments: str | int) -> bytes:
        """The answer of the script. Asked twice where the connection may have been closed since it was last used."""
        reused = self._connection.is_connected
        try:
            await self._connection.send_command("EVAL", _SCRIPT, *arguments, check_health=False)
            answer: bytes = await self._connection.read_response()
            return answer
        except BaseException as error:
            await self._connection.disconnect(nowait=True)  # or what is still to come would be taken for other answers
            if reused and isinstance(error, (RedisConnectionError, OSError)):
                return await self._eval(*arguments)
            raise

    def _fail(self, operations: list[_Operation], why: str) -> None:
        for operation in operations:
            if not operation.found.done():
                operation.found.set_exception(
                    BackendUnavailableError(f"The store of the messages that have run cannot be reached ({why}).")
                )
