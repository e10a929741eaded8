"""What has run, written down in Redis, where the tests and every worker process can see it.

Each entry is under a marker, a name that a test makes up and passes to the task as an argument.
"""

from __future__ import annotations

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from tests.integration.transports import redis_client
from tests.services import REDIS_URL


def note_run(marker: str) -> None:
    """Write down that a task's function has started."""
    with redis_client() as redis:
        redis.rpush(f"{marker}:runs", "started")


def runs(marker: str) -> int:
    """How often a function has started."""
    with redis_client() as redis:
        count = redis.llen(f"{marker}:runs")
    assert isinstance(count, int)
    return count


def wait_for(redis: Redis, event: str, seconds: float) -> str | None:
    """Wait until an event is announced, and take it; ``None`` if it is not in time."""
    announced = redis.blpop([event], timeout=seconds)
    if announced is None:
        return None
    assert isinstance(announced, (list, tuple))
    value = announced[1]
    return value.decode() if isinstance(value, bytes) else str(value)


async def held(marker: str) -> None:
    """Say that a function is in its middle, and stay there until it is let go."""
    async with AsyncRedis.from_url(REDIS_URL, socket_timeout=None) as redis:
        await redis.rpush(f"{marker}:held", "held")
        await redis.blpop([f"{marker}:let-go"])
        await redis.rpush(f"{marker}:let-go", "go")  # a copy may have been delivered, whose function is held, too


def let_go(marker: str) -> None:
    """Let a held function go on, however often it has started or will."""
    with redis_client() as redis:
        redis.rpush(f"{marker}:let-go", "go")


def wait_until_held(marker: str, seconds: float) -> bool:
    """Wait until a function is in its middle."""
    with redis_client() as redis:
        return wait_for(redis, f"{marker}:held", seconds) is not None
