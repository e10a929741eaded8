"""How Redis is reached, and what things are called there."""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import quote

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from taskiq_flow_security.errors import ConfigurationError

TIMEOUT = 2.0
"""Seconds that Redis may take to answer a command."""

UNAVAILABLE = (RedisError, OSError, asyncio.TimeoutError)
"""What redis-py raises where Redis is away, slow, or will not have us."""


def new_client(url: str, *, retries: int = 0) -> Redis:
    """A client, not connected yet. Raises `ConfigurationError` for a URL that redis-py cannot use.

    The answer to a command is awaited for `TIMEOUT` seconds.
    """
    try:
        client = Redis.from_url(
            url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), retries),
            decode_responses=False,
        )
        # Only now does redis-py look at all parameters; the method has no types.
        client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        return client
    except (ValueError, TypeError):
        problem = "shared_store: is not a URL that redis-py can use; write it like redis://host:6379/0"
    raise ConfigurationError(problem)  # out here, so that it does not carry the URL with its password along


class RedisKeys(NamedTuple):
    """What is whose in Redis. Only for finding it: whose it is says its signature."""

    environment: str

    def channel(self, pipeline_id: str) -> str:
        """Where a pipeline's events are published."""
        return self._name("events", pipeline_id)

    def run(self, pipeline_id: str, run_id: str) -> str:
        """The key of a run."""
        return self._name("run", pipeline_id, run_id)

    def recent(self, pipeline_id: str) -> str:
        """The key of the list of a pipeline's latest runs."""
        return self._name("runs", pipeline_id)

    def messages(self, kid: str) -> str:
        """What the keys of all messages start with that are signed with a key. The `jti` follows."""
        return self._name("message", kid, "")

    def policy(self) -> str:
        """The key of what is changed at run time."""
        return self._name("policy")

    def _name(self, *parts: str) -> str:
        quoted = (quote(part, safe="", errors="surrogatepass") for part in (self.environment, *parts))
        return ":".join(("taskiq-flow-security", *quoted))
