"""Whoever can write to Redis can neither invent a run or an event, nor change, move or repeat one."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from taskiq_flow_security import BackendUnavailableError, FlowSecurity
from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.signatures import EVENTS_TTL, RunSignatures
from taskiq_flow_security.tokens.keyring import Keyring
from tests.integration.inmemory.harness import SECRET, STRANGER_SECRET
from tests.integration.runs.conftest import deployment, redis
from tests.integration.runs.processes import Deployment, take
from tests.services import REDIS_URL
from tests.unit.runs.events import COMPLETED, NOW, event, run

__all__ = ["deployment", "redis"]


def signatures(deployment: Deployment, secret: str = SECRET, environment: str | None = None) -> RunSignatures:
    return RunSignatures(Keyring.derived(secret), environment or deployment.environment, 10)


def channel(deployment: Deployment, pipeline: str = "data") -> str:
    return f"taskiq-flow-security:{deployment.environment}:events:{pipeline}"


def run_key(deployment: Deployment, number: int, pipeline: str = "data") -> str:
    return f"taskiq-flow-security:{deployment.environment}:run:{pipeline}:{number}"


def recent_key(deployment: Deployment, pipeline: str = "data") -> str:
    return f"taskiq-flow-security:{deployment.environment}:runs:{pipeline}"


async def sees_nothing_but(there: FlowSecurity, subscription: AsyncIterator[RunEvent]) -> None:
    """Check that what was published so far has not arrived, and that a genuine event does."""
    genuine = event(4711)
    there.run_events.publish(genuine)
    assert await take(subscription, 1) == [genuine]


async def captured(deployment: Deployment, redis: Redis, *events: RunEvent) -> bytes:
    """What a process sends to Redis for these."""
    async with redis.pubsub() as tap:
        await tap.subscribe(channel(deployment, events[0].pipeline_id))
        await tap.get_message(timeout=5)
        there = deployment.process()
        for published in events:
            there.run_events.publish(published)
        message = await tap.get_message(timeout=5)
        assert message is not None
        data = message["data"]
        assert isinstance(data, bytes)
        return data


GARBAGE: list[bytes] = [
    b"",
    b"{}",
    b"...",
    b"\xff\xfe" * 50,
    b"null",
    b"[" * 6000 + b"." + b"." + b"",
    b'["data","run","started",1,"clean","id",null,null]',
    b"eyJhbGciOiJub25lIn0.e30.",
    b"x" * 100_000,
]


@pytest.mark.parametrize("forged", GARBAGE, ids=lambda forged: ascii(forged[:20]))
async def test_what_nobody_has_signed_is_not_shown(deployment: Deployment, redis: Redis, forged: bytes) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        assert await redis.publish(channel(deployment), forged) == 1
        await sees_nothing_but(there, subscription)
    await redis.set(run_key(deployment, 1), forged)
    await redis.lpush(recent_key(deployment), forged)
    assert await here.runs.get("data", "1") is None
    assert await here.runs.recent("data") == []


async def test_what_another_key_has_signed_is_not_believed(deployment: Deployment, redis: Redis) -> None:
    stranger = signatures(deployment, STRANGER_SECRET)
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.publish(channel(deployment), stranger.sign_events("data", [event(1)], "s", 1, NOW))
        await sees_nothing_but(there, subscription)
    await redis.set(run_key(deployment, 1), stranger.sign_run(run(1), NOW, 60))
    assert await here.runs.get("data", "1") is None


async def test_what_another_environment_has_signed_is_not_believed(deployment: Deployment, redis: Redis) -> None:
    staging = signatures(deployment, environment="staging")
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.publish(channel(deployment), staging.sign_events("data", [event(1)], "s", 1, NOW))
        await sees_nothing_but(there, subscription)
    await redis.set(run_key(deployment, 1), staging.sign_run(run(1), NOW, 60))
    assert await here.runs.get("data", "1") is None


async def test_events_of_another_pipeline_are_not_shown(deployment: Deployment, redis: Redis) -> None:
    secret = await captured(deployment, redis, event(1, "secret"))
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.publish(channel(deployment), secret)
        await sees_nothing_but(there, subscription)


async def test_events_are_shown_once(deployment: Deployment, redis: Redis) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        genuine = await captured(deployment, redis, event(1))
        assert await take(subscription, 1) == [event(1)]
        for _ in range(3):
            await redis.publish(channel(deployment), genuine)
        await sees_nothing_but(there, subscription)


async def test_old_events_are_not_shown_to_who_has_not_seen_them(deployment: Deployment, redis: Redis) -> None:
    genuine = await captured(deployment, redis, event(1))
    deployment.clock.now += EVENTS_TTL + 60
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.publish(channel(deployment), genuine)
        await sees_nothing_but(there, subscription)


async def test_a_record_moved_to_another_run_or_pipeline_is_not_found(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process().runs
    await store.add(run(1, "secret"))
    await store.add(run(1))
    await redis.copy(run_key(deployment, 1, "secret"), run_key(deployment, 1), replace=True)
    assert await store.get("data", "1") is None
    await redis.copy(recent_key(deployment, "secret"), recent_key(deployment), replace=True)
    assert await store.recent("data") == []
    await redis.copy(run_key(deployment, 1, "secret"), run_key(deployment, 2, "secret"))
    assert await store.get("secret", "2") is None
    assert await store.get("secret", "1") == run(1, "secret")


async def test_an_event_is_no_record_and_a_record_no_event(deployment: Deployment, redis: Redis) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.set(run_key(deployment, 1), await captured(deployment, redis, event(1)))
        assert await take(subscription, 1) == [event(1)]
        assert await here.runs.get("data", "1") is None
        await here.runs.add(run(2))
        record = await redis.get(run_key(deployment, 2))
        assert isinstance(record, bytes)
        await redis.publish(channel(deployment), record)
        await sees_nothing_but(there, subscription)


async def test_a_list_in_another_order_is_put_right(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process().runs
    for number in range(3):
        await store.add(run(number))
    first = await redis.rpop(recent_key(deployment))
    assert isinstance(first, bytes)
    await redis.lpush(recent_key(deployment), first, first)
    assert await store.recent("data") == [run(2), run(1), run(0)]


async def test_a_copy_of_a_record_does_not_take_back_what_has_become_of_its_run(
    deployment: Deployment, redis: Redis
) -> None:
    store = deployment.process().runs
    await store.add(run(1))
    before = await redis.lindex(recent_key(deployment), 0)
    assert isinstance(before, bytes)
    await store.update(run(1)._replace(outcome=COMPLETED))
    await redis.lpush(recent_key(deployment), before)
    await redis.rpush(recent_key(deployment), before)
    assert await store.recent("data") == [run(1)._replace(outcome=COMPLETED)]


async def test_keys_of_another_type_are_an_error_that_says_so(deployment: Deployment, redis: Redis) -> None:
    await redis.sadd(run_key(deployment, 1), "value")
    await redis.sadd(recent_key(deployment), "value")
    store = deployment.process().runs
    for attempt in (store.get("data", "1"), store.recent("data"), store.add(run(2))):
        with pytest.raises(BackendUnavailableError):
            await attempt


async def test_gigantic_records_stay_in_redis(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process().runs
    await store.add(run(1))
    gigantic = b"x" * 50_000_000
    await redis.set(run_key(deployment, 2), gigantic)
    await redis.lpush(recent_key(deployment), gigantic)
    del gigantic
    tracemalloc.start()
    try:
        assert await store.get("data", "2") is None
        assert await store.recent("data") == [run(1)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


async def test_a_gigantic_event_is_survived(deployment: Deployment, redis: Redis) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        await redis.publish(channel(deployment), b"x" * 20_000_000)
        await sees_nothing_but(there, subscription)


async def test_a_flood_of_forged_events_hides_no_genuine_one_and_is_two_lines_in_the_log(
    deployment: Deployment, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    forged = signatures(deployment, STRANGER_SECRET).sign_events("data", [event(1)], "s", 1, NOW)
    there, here = deployment.process(), deployment.process()

    async def flood() -> None:
        for _ in range(20):
            async with redis.pipeline(transaction=False) as pipeline:
                for _ in range(500):
                    pipeline.publish(channel(deployment), forged)
                await pipeline.execute()

    async with here.run_events.subscribe("data") as subscription:
        flooding = asyncio.ensure_future(flood())
        for number in range(100):
            there.run_events.publish(event(number))
            await asyncio.sleep(0)
        assert await take(subscription, 100) == [event(number) for number in range(100)]
        await flooding
    assert sum("not believed" in line for line in caplog.messages) == 1


async def test_a_flood_of_subscriptions_is_one_connection(deployment: Deployment, redis: Redis) -> None:
    here = deployment.process(f"{REDIS_URL}?client_name={deployment.environment}")
    subscriptions = [here.run_events.subscribe("data") for _ in range(500)]
    await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
    clients = [client["name"] for client in await redis.client_list()]
    assert 1 <= clients.count(deployment.environment) <= 2  # one listens, one may have sent
    await asyncio.gather(*(subscription.__aexit__(None, None, None) for subscription in subscriptions))


async def test_what_is_in_redis_holds_no_secret(deployment: Deployment, redis: Redis) -> None:
    assert SECRET.encode() not in await captured(deployment, redis, event(1))
    await deployment.process().runs.add(run(1))
    stored = await redis.get(run_key(deployment, 1))
    assert isinstance(stored, bytes)
    assert SECRET.encode() not in stored
