"""The brokers under test: how to connect to each, what it still has to deliver, and how to remove its traces."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import aio_pika
import nats
from nats.js.api import ConsumerConfig
from redis import Redis
from taskiq import AsyncBroker
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import JSONSerializer, PickleSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType
from taskiq_nats import PullBasedJetStreamBroker
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

from tests.services import AMQP_URL, NATS_URL, REDIS_URL

ResultFormat = Literal["pickle", "json"]

_SERIALIZERS: dict[str, type[TaskiqSerializer]] = {
    "pickle": PickleSerializer,
    "json": JSONSerializer,
}
_ENVIRONMENT = "INTEGRATION_TRANSPORT_"


@contextmanager
def redis_client() -> Iterator[Redis]:
    """A connection to Redis for as long as the block."""
    # redis-py's default timeout would end a blocking read before its own.
    with Redis.from_url(REDIS_URL, socket_timeout=None) as client:
        yield client


@dataclass(frozen=True)
class Transport(ABC):
    """One queue on one kind of broker, with a result backend in Redis. All that it makes has `name` in its name."""

    name: str
    redelivery_seconds: float
    """How long the broker waits for an acknowledgement before it delivers again, where it cannot tell otherwise."""
    results: ResultFormat

    kind: ClassVar[str]
    service: ClassVar[str]

    @abstractmethod
    def _queue(self) -> AsyncBroker: ...

    @abstractmethod
    async def unfinished(self) -> int:
        """How many messages wait for a worker or, where the broker tells while one is connected, for its ack."""

    async def remove(self) -> None:
        """Remove all that is left of it."""
        with redis_client() as redis:
            for key in redis.scan_iter(f"*{self.name}*", count=1000):
                redis.delete(key)

    def broker(self) -> AsyncBroker:
        """A new broker object for this queue, not secured."""
        backend: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(
            REDIS_URL,
            prefix_str=self._result_prefix,
            serializer=_SERIALIZERS[self.results](),
        )
        return self._queue().with_result_backend(backend)

    def stored_result(self, task_id: str) -> bytes | None:
        """The result of a task as it lies in Redis."""
        with redis_client() as redis:
            value = redis.get(f"{self._result_prefix}:{task_id}")
        assert value is None or isinstance(value, bytes)
        return value

    def environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        fields = {
            "KIND": self.kind,
            "NAME": self.name,
            "REDELIVERY_SECONDS": str(self.redelivery_seconds),
            "RESULTS": self.results,
        }
        return {f"{_ENVIRONMENT}{key}": value for key, value in fields.items()}

    @property
    def _result_prefix(self) -> str:
        return f"{self.name}:result"


class RedisList(Transport):
    """A Redis list, which knows no acknowledgements."""

    kind = "redis-list"
    service = "redis"

    def _queue(self) -> AsyncBroker:
        return ListQueueBroker(REDIS_URL, queue_name=self.name, socket_timeout=None)

    async def unfinished(self) -> int:
        with redis_client() as redis:
            length = redis.llen(self.name)
        assert isinstance(length, int)
        return length


class RedisStream(Transport):
    """A Redis stream with a consumer group."""

    kind = "redis-stream"
    service = "redis"

    def _queue(self) -> AsyncBroker:
        return RedisStreamBroker(
            REDIS_URL,
            queue_name=self.name,
            idle_timeout=int(self.redelivery_seconds * 1000),
            unacknowledged_lock_timeout=self.redelivery_seconds,
            xread_block=200,
            socket_timeout=None,
        )

    async def unfinished(self) -> int:
        with redis_client() as redis:
            [group] = redis.xinfo_groups(self.name)
        return int(group["pending"]) + int(group["lag"])


class RabbitMQ(Transport):
    """A RabbitMQ queue."""

    kind = "rabbitmq"
    service = "rabbitmq"

    def _queue(self) -> AsyncBroker:
        return AioPikaBroker(
            AMQP_URL,
            exchange=Exchange(name=self.name),
            # A classic queue counts its messages exactly, a quorum queue with a delay.
            task_queues=[Queue(name=self.name, type=QueueType.CLASSIC)],
            dead_letter_queue=Queue(name=self._dead_letters, type=QueueType.CLASSIC),
            delay_queue=Queue(name=self._delayed, type=QueueType.CLASSIC),
        )

    async def unfinished(self) -> int:
        """Messages held by a connected worker do not count here; stop the worker, and they do."""
        async with await aio_pika.connect(AMQP_URL) as connection:
            channel = await connection.channel()
            counts = []
            for name in (self.name, self._dead_letters):
                queue = await channel.declare_queue(name, passive=True)
                counts.append(queue.declaration_result.message_count or 0)
        return sum(counts)

    async def remove(self) -> None:
        await super().remove()
        async with await aio_pika.connect(AMQP_URL) as connection:
            channel = await connection.channel()
            await channel.queue_delete(self.name)
            await channel.queue_delete(self._dead_letters)
            await channel.queue_delete(self._delayed)
            await channel.exchange_delete(self.name)

    @property
    def _dead_letters(self) -> str:
        return f"{self.name}.dead"

    @property
    def _delayed(self) -> str:
        return f"{self.name}.delayed"


class NatsJetStream(Transport):
    """A NATS JetStream stream with a pull consumer."""

    kind = "nats-jetstream"
    service = "nats"

    def _queue(self) -> AsyncBroker:
        return PullBasedJetStreamBroker(
            NATS_URL,
            subject=self.name,
            stream_name=self.name,
            durable=self.name,
            consumer_config=ConsumerConfig(durable_name=self.name, ack_wait=self.redelivery_seconds),
        )

    async def unfinished(self) -> int:
        client = await nats.connect(NATS_URL)
        try:
            consumer = await client.jetstream().consumer_info(self.name, self.name)
        finally:
            await client.close()
        return (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)

    async def remove(self) -> None:
        await super().remove()
        client = await nats.connect(NATS_URL)
        try:
            await client.jetstream().delete_stream(self.name)
        finally:
            await client.close()


TRANSPORTS: dict[str, type[Transport]] = {
    transport.kind: transport for transport in (RedisList, RedisStream, RabbitMQ, NatsJetStream)
}
ACKABLE = [kind for kind in TRANSPORTS if kind != RedisList.kind]


def from_environment() -> Transport:
    """The transport that `Transport.environment` of the parent process describes."""
    return TRANSPORTS[os.environ[f"{_ENVIRONMENT}KIND"]](
        os.environ[f"{_ENVIRONMENT}NAME"],
        float(os.environ[f"{_ENVIRONMENT}REDELIVERY_SECONDS"]),
        "json" if os.environ[f"{_ENVIRONMENT}RESULTS"] == "json" else "pickle",
    )
