"""How often: counted by the `limits` package, in memory or in a store that processes share."""

from __future__ import annotations

import time
from functools import lru_cache

from limits import RateLimitItem, parse_many
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError as StorageConfigurationError
from limits.storage import storage_from_string

from taskiq_flow_security.errors import (
    BackendUnavailableError,
    ConfigurationError,
    RateLimitExceededError,
)

_parse = lru_cache(maxsize=1024)(parse_many)


class RateLimits:
    """Counts hits against limits such as ``"10/minute"`` or ``"10/minute;100/hour"``."""

    def __init__(self, storage_url: str) -> None:
        asynchronous = storage_url if storage_url.startswith("async+") else f"async+{storage_url}"
        try:
            storage = storage_from_string(asynchronous)
            self._limiter = MovingWindowRateLimiter(storage)
        except (
            StorageConfigurationError,
            NotImplementedError,
            AssertionError,
            TypeError,
            ValueError,
        ):
            problem = True
        else:
            problem = False
        if problem:
            raise ConfigurationError(
                "rate_limit_storage: is not an asynchronous storage of the limits package; "
                'use "memory://" or "redis://host:6379" (extra: redis)'
            )

    async def hit(self, limit: str, *identifiers: str) -> None:
        """Count one use by `identifiers`.

        Raises `RateLimitExceededError` if that is one too many, `BackendUnavailableError` if it cannot be counted.
        """
        for item in _parse(limit):
            try:
                if await self._limiter.hit(item, *identifiers):
                    continue
                retry_after = await self._retry_after(item, *identifiers)
            except Exception as error:  # noqa: BLE001 (each storage raises its client's own errors)
                raise BackendUnavailableError(
                    f"The store of the rate limits cannot be reached ({type(error).__name__}); try again later."
                ) from None
            raise RateLimitExceededError(retry_after, f"The limit is {item}.", str(item))

    async def _retry_after(self, item: RateLimitItem, *identifiers: str) -> float:
        window = await self._limiter.get_window_stats(item, *identifiers)
        return max(window.reset_time - time.time(), 0.0)
