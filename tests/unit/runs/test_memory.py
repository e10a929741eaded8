"""In one process, everybody who watches sees what happens, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security.runs.events import RunEvent
from taskiq_flow_security.runs.memory import MemoryRunEvents, MemoryRunStore
from tests.unit.runs.events import COMPLETED, event, run


async def take(events: AsyncIterator[RunEvent], number: int) -> list[RunEvent]:
    return [await asyncio.wait_for(anext(events), 10) for _ in range(number)]


async def test_a_run_is_found_by_its_pipeline_and_its_id_only() -> None:
    store = MemoryRunStore()
    await store.add(run(1))
    assert await store.get("data", "1") == run(1)
    assert await store.get("other", "1") is None
    assert await store.get("data", "2") is None


async def test_the_latest_runs_come_first() -> None:
    store = MemoryRunStore()
    for number in range(30):
        await store.add(run(number))
    assert await store.recent("data", 3) == [run(29), run(28), run(27)]
    assert len(await store.recent("data")) == 20
    assert await store.recent("other") == []
    assert await store.recent("data", 0) == []


async def test_what_has_become_of_a_run_stays_with_it_in_its_place() -> None:
    store = MemoryRunStore(runs=2)
    for number in (1, 2):
        await store.add(run(number))
    await store.update(run(1)._replace(outcome=COMPLETED))
    assert await store.get("data", "1") == run(1)._replace(outcome=COMPLETED)
    assert await store.recent("data") == [run(2), run(1)._replace(outcome=COMPLETED)]


async def test_what_has_become_of_a_run_that_is_no_longer_kept_does_not_bring_it_back() -> None:
    store = MemoryRunStore(runs=1)
    for number in (1, 2):
        await store.add(run(number))
    await store.update(run(1)._replace(outcome=COMPLETED))
    await store.update(run(1, "other")._replace(outcome=COMPLETED))
    assert await store.recent("data") == [run(2)]
    assert await store.recent("other") == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9)), max_size=60))
def test_it_never_holds_more_than_it_may_and_always_the_last(added: list[tuple[str, int]]) -> None:
    async def check() -> None:
        store = MemoryRunStore(runs=3, pipelines=2)
        for pipeline, number in added:
            await store.add(run(number, pipeline))
        held = {pipeline: await store.recent(pipeline, 100) for pipeline in "abcdef"}
        assert sum(map(bool, held.values())) <= 2
        assert all(len(runs) <= 3 for runs in held.values())
        for pipeline, runs in held.items():
            kept = dict.fromkeys(run(n, name) for name, n in reversed(added) if name == pipeline)
            assert runs == list(islice(kept, len(runs)))  # the latest ones, each once
        if added:
            last, number = added[-1]
            assert held[last][0] == run(number, last)

    asyncio.run(check())


async def test_who_has_subscribed_gets_the_events_of_that_pipeline_in_order() -> None:
    events = MemoryRunEvents()
    events.publish(event(0))
    async with events.subscribe("data") as one, events.subscribe("data") as another:
        for number in range(1, 4):
            events.publish(event(number))
            events.publish(event(number, "other"))
        expected = [event(number) for number in range(1, 4)]
        assert await take(one, 3) == expected
        assert await take(another, 3) == expected


async def test_it_is_watched_while_somebody_has_subscribed() -> None:
    events = MemoryRunEvents()
    assert not events.watched
    async with events.subscribe("data"):
        async with events.subscribe("data"):
            assert events.watched
        assert events.watched
    assert not events.watched


async def test_an_event_is_seen_by_who_waits_for_it_already() -> None:
    events = MemoryRunEvents()
    async with events.subscribe("data") as subscription:
        waiting = asyncio.ensure_future(take(subscription, 2))
        await asyncio.sleep(0)
        events.publish(event(1))
        await asyncio.sleep(0)
        events.publish(event(2))
        assert await waiting == [event(1), event(2)]


async def test_events_come_from_any_thread() -> None:
    events = MemoryRunEvents()

    def publish(thread: int) -> None:
        for number in range(100):
            events.publish(event(thread * 100 + number))

    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(4)]
    async with events.subscribe("data") as subscription:
        for thread in threads:
            thread.start()
        seen = [int(seen.task_id) for seen in await take(subscription, 400)]
        for thread in threads:
            thread.join()
    assert sorted(seen) == list(range(400))
    for thread_number in range(4):
        own = [number for number in seen if number // 100 == thread_number]
        assert own == sorted(own)


async def test_who_is_slow_misses_the_oldest_events_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    events = MemoryRunEvents(buffer=10)
    async with events.subscribe("data") as slow:
        for number in range(1000):
            events.publish(event(number))
        assert await take(slow, 10) == [event(number) for number in range(990, 1000)]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "dropped: a subscriber is too slow" in record.getMessage()


async def test_a_subscriber_that_has_gone_without_a_word_hinders_nobody() -> None:
    events = MemoryRunEvents()
    abandoned = events.subscribe("data")

    def subscribe_and_leave() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(abandoned.__aenter__())
        loop.close()

    await asyncio.to_thread(subscribe_and_leave)
    async with events.subscribe("data") as subscription:
        events.publish(event(1))
        assert await take(subscription, 1) == [event(1)]


async def test_close_ends_every_subscription() -> None:
    events = MemoryRunEvents()
    async with events.subscribe("data") as one, events.subscribe("other") as another:
        events.publish(event(1))
        await events.close()
        assert [seen async for seen in one] == [event(1)]
        assert [seen async for seen in another] == []
        assert [seen async for seen in another] == []
    assert not events.watched
