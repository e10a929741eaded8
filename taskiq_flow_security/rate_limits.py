"""How often: counted in memory, or by the `limits` package in a store that processes share."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache, partial
from operator import itemgetter
from typing import NamedTuple
from urllib.parse import quote

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
from taskiq_flow_security.stores import background
from taskiq_flow_security.stores.background import PerProcess

_parse = lru_cache(maxsize=1024)(parse_many)

_TIMEOUT = 2.0
"""Seconds in which a store must have counted, or it is away."""

_REMEMBERED = 100_000
"""How many identities are counted in memory at most, for each length of a window; the ones longest unseen go first."""


_Counted = tuple[int, tuple[str, ...]]
"""Whose hits are counted, against which amount."""


class Hit(NamedTuple):
    """One use of what is limited."""

    limit: str
    identifiers: tuple[str, ...]
    name: str | None = None
    """What the error calls the limit."""


class MemoryWindows:
    """Moving windows in memory, for many identities.

    Those of `limits` (5.8) keep a sweep over all their keys going, one thread switch for each, and set no bound to
    them. Here each hit drops what it finds expired: no identity costs more for all the others that there are.
    """

    def __init__(self) -> None:
        self._windows: defaultdict[int, OrderedDict[_Counted, list[float]]] = defaultdict(OrderedDict)
        self._expiring: defaultdict[int, float] = defaultdict(float)
        """For each length of a window, the moment before which no identity has had its last use long enough ago."""

    @property
    def remembered(self) -> int:
        """How many identities are counted."""
        return sum(map(len, self._windows.values()))

    def hit(self, amount: int, seconds: int, identifiers: tuple[str, ...]) -> float | None:
        """Count one use, if the last `seconds` saw less than `amount`; else, seconds until the next one can be."""
        now = time.time()
        expired = now - seconds
        windows = self._windows[seconds]
        key = amount, identifiers
        hits = windows.get(key)
        if hits is None:
            if amount == 0:
                return float(seconds)
            windows[key] = [now]
        else:
            if hits[0] <= expired:
                del hits[: bisect_right(hits, expired)]
            if len(hits) >= amount:
                return hits[0] - expired
            hits.append(now)
            windows.move_to_end(key)
        if now >= self._expiring[seconds] or len(windows) > _REMEMBERED:
            self._drop_old(seconds, expired)
        return None

    def wait(self, amount: int, seconds: int, identifiers: tuple[str, ...]) -> float | None:
        """Seconds until the next use can be, where `hit` would deny it now."""
        expired = time.time() - seconds
        windows = self._windows.get(seconds)
        hits = [] if windows is None else windows.get((amount, identifiers), [])
        if len(hits) - bisect_right(hits, expired) < amount:
            return None
        return hits[-amount] - expired if amount else float(seconds)

    def _drop_old(self, seconds: int, expired: float) -> None:
        """Drop two of the identities whose last use is over, or that are too many: more than a hit can have added."""
        windows = self._windows[seconds]
        for _ in range(2):
            oldest, hits = next(iter(windows.items()))
            if hits[-1] > expired and len(windows) <= _REMEMBERED:
                self._expiring[seconds] = hits[-1] + seconds
                break
            del windows[oldest]


class RateLimits:
    """Counts hits against limits such as ``"10/minute"`` or ``"10/minute;100/hour"``."""

    def __init__(self, storage_url: str) -> None:
        asynchronous = storage_url if storage_url.startswith("async+") else f"async+{storage_url}"
        try:
            storage = storage_from_string(asynchronous)
            # Its connections are those of one event loop: that of the background.
            self._limiters = PerProcess(lambda: MovingWindowRateLimiter(storage_from_string(asynchronous)))
            self._windows = MemoryWindows() if type(storage) is MemoryStorage else None
        except (
            StorageConfigurationError,
            NotImplementedError,
            AssertionError,
            TypeError,
            ValueError,
        ):
            problem = (
                "rate_limit_storage: is not an asynchronous storage of the limits package; "
                'use "memory://" or "redis://host:6379" (extra: redis)'
            )
        else:
            return
        raise ConfigurationError(problem)  # out here, so that it does not carry the URL with its password along

    async def hit(self, limit: str, *identifiers: str, name: str | None = None) -> None:
        """Count one use by `identifiers`. `name` is what the error calls the limit.

        Raises `RateLimitExceededError` if that is one too many, `BackendUnavailableError` if it cannot be counted.
        """
        hit = Hit(limit, identifiers, name)
        count = self.at_once(hit)
        if count is None:
            await self.hit_all((hit,))
        else:
            count()

    def at_once(self, hit: Hit) -> Callable[[], None] | None:
        """What counts such a hit each time that it is called; ``None`` where that has to be awaited.

        It raises `RateLimitExceededError` as `hit`.
        """
        items = _parse(hit.limit)
        if self._windows is None or len(items) > 1:
            return None
        return partial(_hit_at_once, self._windows, items[0], hit)

    async def hit_all(self, hits: Iterable[Hit]) -> None:
        """Count one use against several limits if all allow it. Raises as `hit`.

        Of several at the same moment, one that is denied may be counted against those of the limits that allow it.
        """
        items = [(item, hit) for hit in hits for item in _parse(hit.limit)]
        # None is asked beforehand where there is only one: it counts nothing if it denies.
        denied = await self._denied(items, only_ask=True) if len(items) > 1 else []
        denied = denied or await self._denied(items)
        if denied:
            retry_after, item, hit = max(denied, key=itemgetter(0))
            raise RateLimitExceededError(retry_after, f"The limit is {item}.", str(item), hit.name)

    async def _denied(
        self, items: list[tuple[RateLimitItem, Hit]], *, only_ask: bool = False
    ) -> list[tuple[float, RateLimitItem, Hit]]:
        """Count one use against each limit, or ask whether they allow it; those that deny it, and for how long."""
        if self._windows is not None:
            ask = self._windows.wait if only_ask else self._windows.hit
            waits = [ask(item.amount, item.get_expiry(), hit.identifiers) for item, hit in items]
        else:
            waits = await self._shared(self._wait if only_ask else self._count, items)
        return [(wait, item, hit) for wait, (item, hit) in zip(waits, items, strict=True) if wait is not None]

    async def _shared(
        self, ask: Callable[[RateLimitItem, Hit], Awaitable[float | None]], items: list[tuple[RateLimitItem, Hit]]
    ) -> list[float | None]:
        """The answers of a store that processes share, all asked at once."""
        try:
            return await background.run(_all_of([ask(item, hit) for item, hit in items]))
        except Exception as error:  # noqa: BLE001 (each storage raises its client's own errors)
            raise BackendUnavailableError(
                f"The store of the rate limits cannot be reached ({type(error).__name__}); try again later."
            ) from None

    async def _count(self, item: RateLimitItem, hit: Hit) -> float | None:
        """As `MemoryWindows.hit`."""
        identifiers = _quoted(hit)
        limiter = self._limiters.get()
        if await limiter.hit(item, *identifiers):
            return None
        window = await limiter.get_window_stats(item, *identifiers)
        return max(window.reset_time - time.time(), 0.0)

    async def _wait(self, item: RateLimitItem, hit: Hit) -> float | None:
        """As `MemoryWindows.wait`."""
        window = await self._limiters.get().get_window_stats(item, *_quoted(hit))
        return None if window.remaining > 0 else max(window.reset_time - time.time(), 0.0)


def _hit_at_once(windows: MemoryWindows, item: RateLimitItem, hit: Hit) -> None:
    retry_after = windows.hit(item.amount, item.get_expiry(), hit.identifiers)
    if retry_after is not None:
        raise RateLimitExceededError(retry_after, f"The limit is {item}.", str(item), hit.name)


async def _all_of(answers: list[Awaitable[float | None]]) -> list[float | None]:
    return await asyncio.wait_for(asyncio.gather(*answers), _TIMEOUT)


def _quoted(hit: Hit) -> tuple[str, ...]:
    """The identifiers of a hit, none of which is taken for two: `limits` joins them by slashes, as they are."""
    return tuple(quote(identifier, safe="", errors="surrogatepass") for identifier in hit.identifiers)
