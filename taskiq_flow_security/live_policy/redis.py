"""The signed policy in Redis (extra ``redis``)."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq_flow_security.errors import BackendUnavailableError
from taskiq_flow_security.live_policy.signature import MAX_BYTES
from taskiq_flow_security.live_policy.stores import Found
from taskiq_flow_security.stores.background import PerProcess
from taskiq_flow_security.stores.redis import TIMEOUT, UNAVAILABLE, RedisKeys, new_client

# Whoever can write to Redis can put anything there, gigabytes or a list, which must be told apart and replaceable.
_MARK = f"""
local function mark()
  local kind = redis.call('TYPE', KEYS[1]).ok
  if kind == 'none' then return '' end
  if kind ~= 'string' then return kind end
  if redis.call('STRLEN', KEYS[1]) > {MAX_BYTES} then return 'long' end
  return redis.sha1hex(redis.call('GET', KEYS[1]))
end
"""
_READ = f"""{_MARK}
local found = mark()
return {{found, #found == 40 and redis.call('GET', KEYS[1]) or ''}}
"""
_REPLACE = f"""{_MARK}
if mark() == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]) end
return mark() == redis.sha1hex(ARGV[2])
"""
_MARK += "return mark()"


class RedisPolicyStore:
    """Keeps it under one key, without an end."""

    shared = True

    def __init__(self, url: str, names: RedisKeys) -> None:
        new_client(url)  # says now what is wrong with the URL
        # Nothing is tried again unseen: whoever has lost the answer to a change has to know that.
        self._clients = PerProcess(lambda: new_client(url))
        self._key = names.policy()

    async def mark(self) -> bytes:
        """As `PolicyStore`."""
        mark = await self._eval(_MARK)
        assert isinstance(mark, bytes)  # the client decodes nothing
        return mark

    async def read(self) -> Found:
        """As `PolicyStore`."""
        return Found(*await self._eval(_READ))

    async def replace(self, mark: bytes, new: bytes) -> bool:
        """As `PolicyStore`."""
        return bool(await self._eval(_REPLACE, mark, new))

    async def _eval(self, script: str, *arguments: bytes) -> Any:
        """The answer of a script."""
        try:
            return await asyncio.wait_for(self._clients.get().eval(script, 1, self._key, *arguments), 2 * TIMEOUT)
        except UNAVAILABLE as error:
            raise BackendUnavailableError(
                f"The store of the policy cannot be reached ({type(error).__name__}); try again later."
            ) from None
