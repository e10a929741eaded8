"""The signed policy in Redis (extra ``redis``)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from taskiq_flow_security.errors import BackendUnavailableError
from taskiq_flow_security.live_policy.signature import MAX_BYTES
from taskiq_flow_security.stores.background import PerProcess
from taskiq_flow_security.stores.redis import TIMEOUT, UNAVAILABLE, Names, new_client
from taskiq_flow_security.tokens import jws

# Compares as much as `read` returns: whoever can write to Redis can put gigabytes there, which must be replaceable.
_REPLACE = """
if redis.call('GETRANGE', KEYS[1], 0, ARGV[3]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

T = TypeVar("T")


class RedisPolicyStore:
    """Keeps it under one key, without an end."""

    shared = True

    def __init__(self, url: str, names: Names) -> None:
        new_client(url)  # says now what is wrong with the URL
        self._clients = PerProcess(lambda: new_client(url, retries=1))
        self._key = names.policy()

    async def head(self) -> bytes | None:
        """As `PolicyStore`."""
        return (await self._range(jws.MAX_BYTES)).partition(b"\n")[0] or None

    async def read(self) -> bytes | None:
        """As `PolicyStore`."""
        return await self._range(MAX_BYTES) or None

    async def replace(self, old: bytes | None, new: bytes) -> bool:
        """As `PolicyStore`."""
        return bool(await _do(self._clients.get().eval(_REPLACE, 1, self._key, old or b"", new, MAX_BYTES)))

    async def _range(self, end: int) -> bytes:
        kept = await _do(self._clients.get().getrange(self._key, 0, end))
        assert isinstance(kept, bytes)  # the client decodes nothing
        return kept


async def _do(operation: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(operation, 2 * TIMEOUT)
    except UNAVAILABLE as error:
        raise BackendUnavailableError(
            f"The store of the policy cannot be reached ({type(error).__name__}); try again later."
        ) from None
