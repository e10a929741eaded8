"""How often: counted by the `limits` package, in memory or in a store that processes share."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from operator import itemgetter

from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import ConfigurationError as StorageConfigurationError
from limits.storage import storage_from_string

from taskiq_flow_security.errors import (
    BackendUnavailableError,
    ConfigurationError,
    RateLimitExceededError,
)

_parse = lru_cache(maxsize=1024)(parse_many)

_Counted = tuple[RateLimitItem, tuple[str, ...]]
_UsedUp = tuple[float, RateLimitItem]

_TIMEOUT = 2.0
"""Seconds in which a store must have counted, or it is away."""

_REMEMBERED = 100_000
"""How many identities are counted in memory at most, for each length of a window; the ones longest unseen go first."""


class MemoryWindows(MemoryStorage):
    """The moving windows of `limits`, in memory, for many identities.

    `MemoryStorage` (limits 5.8) keeps a sweep over all its keys going, one thread switch for each, and sets no bound to
    them. Here each hit drops what it finds expired: no identity costs more for all the others that there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[int, OrderedDict[str, list[float]]] = {}

    @property
    def remembered(self) -> int:
        """How many identities are counted."""
        return sum(map(len, self._windows.values()))

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count `amount` uses, if the last `expiry` seconds have seen few enough; whether they have."""
        now = time.time()
        windows = self._windows.setdefault(expiry, OrderedDict())
        hits = windows.get(key, [])
        del hits[: bisect_right(hits, now - expiry)]
        if len(hits) + amount > limit:
            return False
        hits += [now] * amount
        windows[key] = hits
        windows.move_to_end(key)
        self._drop_old(windows, now - expiry)
        return True

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest use was that still counts, and how many there are."""
        now = time.time()
        windows = self._windows.get(expiry)
        hits = [] if windows is None else windows.get(key, [])
        expired = bisect_right(hits, now - expiry)
        return (hits[expired], len(hits) - expired) if expired < len(hits) else (now, 0)

    @staticmethod
    def _drop_old(windows: OrderedDict[str, list[float]], expired: float) -> None:
        """Drop two of the identities whose last use is over, if there are: more than a hit can have added."""
        for _ in range(2):
            oldest = next(iter(windows))
            if windows[oldest][-1] > expired and len(windows) <= _REMEMBERED:
                break
            del windows[oldest]


class RateLimits:
    """Counts hits against limits such as ``"10/minute"`` or ``"10/minute;100/hour"``."""

    def __init__(self, storage_url: str) -> None:
        self._timeout: float | None = _TIMEOUT
        asynchronous = storage_url if storage_url.startswith("async+") else f"async+{storage_url}"
        try:
            storage = storage_from_string(asynchronous)
            if type(storage) is MemoryStorage:
                storage, self._timeout = MemoryWindows(), None
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
        await self.hit_all(((limit, identifiers),))

    async def hit_all(self, uses: Iterable[tuple[str, tuple[str, ...]]]) -> None:
        """Count one use against several limits, each by its identifiers, if all allow it. Raises as `hit`.

        Of several uses at the same moment, one that is denied may be counted against those of the limits that allow it.
        """
        items = [(item, identifiers) for limit, identifiers in uses for item in _parse(limit)]
        try:
            # None is asked beforehand where there is only one: it counts nothing if it denies.
            used_up = await self._used_up(items) if len(items) > 1 else []
            if not used_up:
                used_up = await self._hit(items)
        except Exception as error:  # noqa: BLE001 (each storage raises its client's own errors)
            raise BackendUnavailableError(
                f"The store of the rate limits cannot be reached ({type(error).__name__}); try again later."
            ) from None
        if used_up:
            retry_after, item = max(used_up, key=itemgetter(0))
            raise RateLimitExceededError(retry_after, f"The limit is {item}.", str(item))

    async def _used_up(self, items: list[_Counted]) -> list[_UsedUp]:
        """The limits that deny the next use, each with the seconds until it allows one."""
        return await self._each(self._denial, items)

    async def _hit(self, items: list[_Counted]) -> list[_UsedUp]:
        """Count one use; those of the limits for which that is one too many."""
        return await self._each(self._count, items)

    async def _each(
        self, do: Callable[[RateLimitItem, tuple[str, ...]], Awaitable[float | None]], items: list[_Counted]
    ) -> list[_UsedUp]:
        if self._timeout is None:
            waits = [await do(*item) for item in items]
        else:
            waits = await asyncio.wait_for(asyncio.gather(*(do(*item) for item in items)), self._timeout)
        return [(wait, item) for wait, (item, _) in zip(waits, items, strict=True) if wait is not None]

    async def _count(self, item: RateLimitItem, identifiers: tuple[str, ...]) -> float | None:
        if await self._limiter.hit(item, *identifiers):
            return None
        window = await self._limiter.get_window_stats(item, *identifiers)
        return max(window.reset_time - time.time(), 0.0)

    async def _denial(self, item: RateLimitItem, identifiers: tuple[str, ...]) -> float | None:
        window = await self._limiter.get_window_stats(item, *identifiers)
        return None if window.remaining > 0 else max(window.reset_time - time.time(), 0.0)
