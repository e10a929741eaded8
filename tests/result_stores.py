"""Where results can lie: how to make a backend for it, and what whoever can write there can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar
from uuid import uuid4

import nats
from nats.js.errors import NotFoundError
from redis.asyncio import Redis
from taskiq import AsyncResultBackend
from taskiq.abc.serializer import TaskiqSerializer
from taskiq_nats import NATSObjectStoreResultBackend
from taskiq_redis import RedisAsyncResultBackend
from taskiq_redis.redis_backend import PROGRESS_KEY_SUFFIX

from tests.services import NATS_URL, REDIS_URL
from tests.shelf import Drawers, ShelfResultBackend, progress_key


class ResultStore(ABC):
    """A store, which everybody can write to."""

    service: ClassVar[str | None] = None

    def __init__(self, name: str | None = None) -> None:
        self.name = name or f"results-{uuid4().hex}"

    @abstractmethod
    def backend(
        self, serializer: TaskiqSerializer | None = None, *, keep_results: bool = True
    ) -> AsyncResultBackend[Any]:
        """A new result backend, not protected; it pickles where nothing else is said."""

    @abstractmethod
    def progress_key(self, task_id: str) -> str:
        """Under which name a task's progress lies; its result lies under its id."""

    @abstractmethod
    async def read(self, key: str) -> bytes:
        """What is stored."""

    @abstractmethod
    async def write(self, key: str, data: bytes) -> None:
        """Store this instead."""

    @abstractmethod
    async def remove(self) -> None:
        """Remove all that is stored."""


class Shelf(ResultStore):
    """A dictionary."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name)
        self._drawers: Drawers = {}

    def backend(
        self, serializer: TaskiqSerializer | None = None, *, keep_results: bool = True
    ) -> AsyncResultBackend[Any]:
        return ShelfResultBackend(self._drawers, serializer=serializer, keep_results=keep_results)

    def progress_key(self, task_id: str) -> str:
        return progress_key(task_id)

    async def read(self, key: str) -> bytes:
        return self._drawers[key]

    async def write(self, key: str, data: bytes) -> None:
        self._drawers[key] = data

    async def remove(self) -> None:
        self._drawers.clear()


class RedisStore(ResultStore):
    """A prefix in Redis."""

    service = "redis"

    def backend(
        self, serializer: TaskiqSerializer | None = None, *, keep_results: bool = True
    ) -> AsyncResultBackend[Any]:
        return RedisAsyncResultBackend(
            REDIS_URL, prefix_str=self.name, result_ex_time=600, serializer=serializer, keep_results=keep_results
        )

    def progress_key(self, task_id: str) -> str:
        return f"{task_id}{PROGRESS_KEY_SUFFIX}"

    async def read(self, key: str) -> bytes:
        async with Redis.from_url(REDIS_URL) as redis:
            data = await redis.get(f"{self.name}:{key}")
        assert isinstance(data, bytes)
        return data

    async def write(self, key: str, data: bytes) -> None:
        async with Redis.from_url(REDIS_URL) as redis:
            await redis.set(f"{self.name}:{key}", data, ex=600)

    async def remove(self) -> None:
        async with Redis.from_url(REDIS_URL) as redis:
            async for key in redis.scan_iter(f"{self.name}:*", count=1000):
                await redis.delete(key)


class NatsStore(ResultStore):
    """A bucket in NATS' object store."""

    service = "nats"

    def backend(
        self, serializer: TaskiqSerializer | None = None, *, keep_results: bool = True
    ) -> AsyncResultBackend[Any]:
        return NATSObjectStoreResultBackend(
            NATS_URL, bucket_name=self.name, serializer=serializer, keep_results=keep_results
        )

    def progress_key(self, task_id: str) -> str:
        return f"progress:{task_id}"

    async def read(self, key: str) -> bytes:
        client = await nats.connect(NATS_URL)
        try:
            store = await client.jetstream().object_store(self.name)
            data = (await store.get(key)).data
        finally:
            await client.close()
        assert data is not None
        return data

    async def write(self, key: str, data: bytes) -> None:
        client = await nats.connect(NATS_URL)
        try:
            store = await client.jetstream().object_store(self.name)
            await store.put(key, data)
        finally:
            await client.close()

    async def remove(self) -> None:
        client = await nats.connect(NATS_URL)
        try:
            await client.jetstream().delete_object_store(self.name)
        except NotFoundError:
            pass  # nothing was ever stored
        finally:
            await client.close()


STORES: dict[str, type[ResultStore]] = {"shelf": Shelf, "redis": RedisStore, "nats": NatsStore}
