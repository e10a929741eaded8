"""Limits that processes share, counted in Redis."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from taskiq_flow_security import RateLimitExceededError
from taskiq_flow_security.rate_limits import RateLimits
from tests.services import REDIS_URL, require


@pytest.fixture
def limits() -> RateLimits:
    require("redis")
    return RateLimits(REDIS_URL)


def test_they_count_from_any_event_loop_one_after_the_other(limits: RateLimits) -> None:
    who = uuid4().hex
    for _ in range(3):
        asyncio.run(limits.hit("3/minute", who))
    with pytest.raises(RateLimitExceededError):
        asyncio.run(limits.hit("3/minute", who))


async def test_they_count_from_many_threads_at_the_same_time(limits: RateLimits) -> None:
    who = uuid4().hex

    def hit() -> None:
        for _ in range(25):
            asyncio.run(limits.hit("200/minute", who))

    await asyncio.gather(
        *(asyncio.to_thread(hit) for _ in range(4)), *(limits.hit("200/minute", who) for _ in range(100))
    )
    with pytest.raises(RateLimitExceededError):
        await limits.hit("200/minute", who)
