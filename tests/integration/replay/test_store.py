"""What processes remember together, in Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from taskiq_flow_security import BackendUnavailableError, ConfigurationError
from taskiq_flow_security.replay import Progress
from taskiq_flow_security.replay.redis import RedisReplays
from taskiq_flow_security.stores.redis import RedisKeys
from taskiq_flow_security.tokens.message_signature import MessageSignature
from tests.integration.replay.server import RedisServer
from tests.integration.runs.proxy import Proxy
from tests.services import REDIS_URL

MARGIN = 20


def message(jti: str = "j", *, kid: str = "k", seconds: float = 60) -> MessageSignature:
    """The signature of a message that expires in so many seconds."""
    now = time.time()
    return MessageSignature(kid, jti, int(now), int(now + seconds))


@pytest_asyncio.fixture
async def names(redis: Redis) -> AsyncIterator[RedisKeys]:
    """An environment for this test alone."""
    names = RedisKeys(f"replays-{uuid4().hex}")
    yield names
    async for key in redis.scan_iter(f"*{names.environment}*", count=1000):
        await redis.delete(key)


@pytest_asyncio.fixture
async def store(names: RedisKeys) -> AsyncIterator[RedisReplays]:
    """One process."""
    store = RedisReplays(REDIS_URL, names, time.time, MARGIN)
    yield store
    await store.close()


@pytest_asyncio.fixture
async def other(names: RedisKeys) -> AsyncIterator[RedisReplays]:
    """Another process."""
    store = RedisReplays(REDIS_URL, names, time.time, MARGIN)
    yield store
    await store.close()


async def test_what_one_process_has_completed_all_know(store: RedisReplays, other: RedisReplays) -> None:
    assert await other.progress(message()) is None
    await store.complete(message())
    assert await other.progress(message()) is Progress.COMPLETED
    assert await other.claim(message(), "b") is Progress.COMPLETED


async def test_one_claims_a_message_and_may_ask_again(store: RedisReplays, other: RedisReplays) -> None:
    assert await store.claim(message(), "a") is None
    assert await store.claim(message(), "a") is None
    assert await other.claim(message(), "b") is Progress.STARTED
    assert await other.progress(message()) is Progress.STARTED
    await store.complete(message())
    assert await other.claim(message(), "b") is Progress.COMPLETED


async def test_of_many_at_the_same_moment_one_gets_it(store: RedisReplays, other: RedisReplays) -> None:
    claims = [process.claim(message(), f"{number}") for number in range(100) for process in (store, other)]
    claimed = await asyncio.gather(*claims)
    assert claimed.count(None) == 2  # each number stands for one claimant, in either process
    assert claimed.count(Progress.STARTED) == 198


@pytest.mark.parametrize("different", [message("other"), message(kid="other"), message("j:", kid="k")])
async def test_messages_are_told_apart_by_their_id_and_their_key(
    store: RedisReplays, different: MessageSignature
) -> None:
    await store.complete(message())
    assert await store.progress(different) is None


async def test_environments_are_told_apart(store: RedisReplays) -> None:
    await store.complete(message())
    elsewhere = RedisReplays(REDIS_URL, RedisKeys("replays-elsewhere"), time.time, MARGIN)
    assert await elsewhere.progress(message()) is None
    await elsewhere.close()


async def test_a_message_is_forgotten_when_it_has_expired(store: RedisReplays, redis: Redis, names: RedisKeys) -> None:
    await store.complete(message("completed"))
    await store.claim(message("claimed"), "a")
    for jti in ("completed", "claimed"):
        milliseconds = await redis.pttl(names.messages("k") + jti)
        assert 58_000 + MARGIN * 1000 < milliseconds <= 60_000 + MARGIN * 1000


async def test_what_comes_together_goes_together(server: RedisServer) -> None:
    store = RedisReplays(server.url, RedisKeys("replays"), time.time, MARGIN)
    await store.complete(message("first"))
    await asyncio.gather(*(store.complete(message(f"{number}")) for number in range(1000)))
    await store.close()
    async with Redis.from_url(server.url) as redis:
        assert (await redis.info("commandstats"))["cmdstat_eval"]["calls"] == 2


@pytest.mark.parametrize("put", ["huge", "list", "text"])
async def test_what_somebody_else_puts_there_makes_a_message_be_refused_and_nothing_worse(
    store: RedisReplays, redis: Redis, names: RedisKeys, put: str
) -> None:
    key = names.messages("k") + "j"
    if put == "list":
        await redis.rpush(key, "x")
    else:
        await redis.set(key, b"x" * (50_000_000 if put == "huge" else 1))
    found = await store.progress(message())
    assert found is (Progress.COMPLETED if put == "list" else Progress.STARTED)
    assert await store.claim(message(), "a") is not None
    assert await store.progress(message("another")) is None


async def test_a_store_that_is_away_says_so_to_each_and_is_there_again_when_it_is_back(
    names: RedisKeys, proxy: Proxy
) -> None:
    store = RedisReplays(proxy.url, names, time.time, MARGIN)
    await store.complete(message())
    await proxy.close()
    answers = await asyncio.gather(*(store.progress(message(f"{n}")) for n in range(10)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {BackendUnavailableError}
    await proxy.open()
    assert await store.progress(message()) is Progress.COMPLETED
    await store.close()


async def test_a_store_that_does_not_answer_is_away(names: RedisKeys, proxy: Proxy) -> None:
    store = RedisReplays(proxy.url, names, time.time, MARGIN)
    await store.complete(message())
    proxy.freeze()
    with pytest.raises(BackendUnavailableError):
        await store.progress(message())
    proxy.thaw()
    assert await store.progress(message()) is Progress.COMPLETED
    await store.close()


async def test_a_claim_whose_answer_was_lost_is_still_its_own(
    names: RedisKeys, proxy: Proxy, other: RedisReplays
) -> None:
    store = RedisReplays(proxy.url, names, time.time, MARGIN)
    await store.claim(message("first"), "a")
    proxy.drop_answers()
    with pytest.raises(BackendUnavailableError):
        await store.claim(message(), "a")
    assert await other.claim(message(), "b") is Progress.STARTED
    proxy.thaw()
    assert await store.claim(message(), "a") is None
    await store.close()


async def test_whoever_no_longer_waits_disturbs_nobody(store: RedisReplays) -> None:
    waiting = asyncio.ensure_future(store.complete(message("cancelled")))
    others = [asyncio.ensure_future(store.complete(message(f"{number}"))) for number in range(10)]
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(*others)
    assert await store.progress(message("5")) is Progress.COMPLETED


def test_each_event_loop_has_its_own_connection(names: RedisKeys) -> None:
    store = RedisReplays(REDIS_URL, names, time.time, MARGIN)

    async def complete(jti: str) -> Progress | None:
        await store.complete(message(jti))
        found = await store.progress(message("first"))
        await store.close()
        return found

    for jti in ("first", "second"):
        assert asyncio.run(complete(jti)) is Progress.COMPLETED


def test_a_url_that_cannot_be_used_is_said_at_once(names: RedisKeys) -> None:
    with pytest.raises(ConfigurationError, match="shared_store"):
        RedisReplays("redis://localhost:port", names, time.time, MARGIN)
