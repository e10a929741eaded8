"""The id in a forged message does not choose what is written into the store of the results."""

from __future__ import annotations

from collections import OrderedDict
from uuid import uuid4

from taskiq import TaskiqMessage
from taskiq_redis import RedisAsyncResultBackend

from taskiq_flow_security import FlowSecurity, SecurityMiddleware
from tests.integration.inmemory.harness import Queue, config
from tests.integration.transports import redis_client
from tests.services import REDIS_URL, require


async def test_a_forged_message_makes_no_key_of_another_use_in_redis() -> None:
    require("redis")
    backend: RedisAsyncResultBackend[object] = RedisAsyncResultBackend(REDIS_URL, result_ex_time=30)
    broker = Queue()
    broker.with_result_backend(backend)
    broker.add_middlewares(SecurityMiddleware(FlowSecurity(config())))

    @broker.task("clean")
    async def clean() -> None: ...

    key = f"LIMITS:LIMITER/task/clean/{uuid4().hex}/10/1/minute"
    broker.result_backend.results = OrderedDict()  # which this broker's `deliver` looks at
    forged = TaskiqMessage(task_id=key, task_name="clean", labels={}, args=[], kwargs={})
    outcome = await broker.deliver(forged.model_dump_json().encode())
    assert outcome.acks == 1
    await backend.shutdown()
    with redis_client() as redis:
        assert not redis.exists(key)
