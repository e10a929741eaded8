"""Deployments and ways to Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis

from tests.integration.runs.processes import Deployment
from tests.integration.runs.proxy import Proxy
from tests.services import REDIS_URL, require


@pytest_asyncio.fixture
async def redis() -> AsyncIterator[Redis]:
    """A connection such as whoever can write to Redis has."""
    require("redis")
    async with Redis.from_url(REDIS_URL, socket_timeout=None) as client:
        yield client


@pytest_asyncio.fixture
async def deployment(redis: Redis) -> AsyncIterator[Deployment]:
    """An environment for this test alone."""
    deployment = Deployment()
    yield deployment
    await deployment.end()
    async for key in redis.scan_iter(f"*{deployment.environment}*", count=1000):
        await redis.delete(key)


@pytest_asyncio.fixture
async def proxy(redis: Redis) -> AsyncIterator[Proxy]:
    """A way to Redis that can be closed."""
    async with Proxy() as proxy:
        yield proxy
