"""Processes share the runs that were started."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from taskiq_flow_security import AuthenticationError, BackendUnavailableError
from taskiq_flow_security.runs.records import RunOutcome
from taskiq_flow_security.runs.redis.store import RECENT_RUNS, RUN_TTL
from tests.integration.runs.processes import Deployment, kill_clients
from tests.integration.runs.proxy import Proxy
from tests.services import REDIS_URL
from tests.unit.runs.events import COMPLETED, REFUSED, run
from tests.unit.tokens.keys import PRIVATE, private_pem, public_pem


async def test_what_one_process_adds_another_finds(deployment: Deployment) -> None:
    one, another = deployment.process(), deployment.process()
    await one.runs.add(run(1))
    assert await another.runs.get("data", "1") == run(1)
    assert await another.runs.recent("data") == [run(1)]
    assert await another.runs.get("other", "1") is None
    assert await another.runs.get("data", "2") is None
    assert await another.runs.recent("other") == []


@pytest.mark.parametrize("name", ["a:b", "", "*", "ü\n\0", "\ud800", "x" * 2000], ids=ascii)
async def test_names_of_any_kind_are_told_apart(deployment: Deployment, name: str) -> None:
    store = deployment.process().runs
    assert await store.get(name, "1") is None
    assert await store.get("data", name) is None
    assert await store.recent(name) == []


async def test_colons_in_names_do_not_mix_pipelines_up(deployment: Deployment) -> None:
    store = deployment.process().runs
    await store.add(run(1, "a:b"))
    assert await store.recent("a") == []
    assert await store.get("a", "b:1") is None
    assert await store.get("a:b", "1") == run(1, "a:b")


async def test_the_latest_runs_come_first_and_are_bounded(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process().runs
    for number in range(RECENT_RUNS + 20):
        await store.add(run(number))
    newest_first = [run(number) for number in reversed(range(RECENT_RUNS + 20))]
    assert await store.recent("data") == newest_first[:20]
    assert await store.recent("data", 1000) == newest_first[:RECENT_RUNS]
    assert await store.recent("data", 0) == []
    [recent] = [key async for key in redis.scan_iter(f"*{deployment.environment}:runs:*")]
    assert await redis.llen(recent) == RECENT_RUNS


async def test_a_run_that_was_added_twice_is_listed_once(deployment: Deployment) -> None:
    store = deployment.process().runs
    await asyncio.gather(*(store.add(run(1)) for _ in range(5)))
    assert await store.recent("data") == [run(1)]


@pytest.mark.parametrize("outcome", [COMPLETED, REFUSED])
async def test_what_has_become_of_a_run_is_known_to_all_processes(deployment: Deployment, outcome: RunOutcome) -> None:
    one, another = deployment.process(), deployment.process()
    for number in range(3):
        await one.runs.add(run(number))
    ended = run(1)._replace(outcome=outcome)
    await another.runs.update(ended)
    assert await one.runs.get("data", "1") == ended
    assert await one.runs.recent("data") == [run(2), ended, run(0)]


async def test_what_has_become_of_a_run_takes_no_place_of_another(deployment: Deployment) -> None:
    store = deployment.process().runs
    for number in range(RECENT_RUNS):
        await store.add(run(number))
    ended = [run(number)._replace(outcome=COMPLETED) for number in reversed(range(RECENT_RUNS))]
    for half in (ended[:60], ended[40:]):
        await asyncio.gather(*(store.update(each) for each in half))
    assert await store.recent("data", 1000) == ended


async def test_nothing_stays_in_redis_for_ever(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process().runs
    await store.add(run(1))
    await store.update(run(1)._replace(outcome=COMPLETED))
    keys = [key async for key in redis.scan_iter(f"*{deployment.environment}*")]
    assert len(keys) == 2
    for key in keys:
        assert 0 < await redis.ttl(key) <= RUN_TTL


async def test_a_run_whose_time_is_over_is_not_found_even_if_somebody_has_kept_it(deployment: Deployment) -> None:
    store = deployment.process().runs
    await store.add(run(1))
    deployment.clock.now += RUN_TTL + 60
    assert await store.get("data", "1") is None
    assert await store.recent("data") == []


async def test_a_process_that_cannot_mint_principals_adds_no_runs(deployment: Deployment) -> None:
    key = {"alg": "EdDSA", "private_key": private_pem(PRIVATE["EdDSA"])}
    issuing, sending = {**key, "kid": "api", "uses": ["issue"]}, {**key, "kid": "worker", "uses": ["send"]}
    verifying = {"alg": "EdDSA", "public_key": public_pem(PRIVATE["EdDSA"]), "kid": "api", "uses": ["issue"]}
    worker = deployment.process(signing_keys=[verifying, sending])
    for attempt in (worker.runs.add(run(1)), worker.runs.update(run(1)._replace(outcome=COMPLETED))):
        with pytest.raises(AuthenticationError) as refusal:
            await attempt
        assert refusal.value.reason == "cannot_issue"
    api = deployment.process(signing_keys=[issuing, sending])
    await api.runs.add(run(1))
    assert await worker.runs.get("data", "1") == run(1)


async def test_redis_away_is_said_so_and_is_forgotten_when_it_is_back(deployment: Deployment, proxy: Proxy) -> None:
    store = deployment.process(proxy.url).runs
    await store.add(run(1))
    await proxy.close()
    for attempt in (
        lambda: store.add(run(2)),
        lambda: store.update(run(1)),
        lambda: store.get("data", "1"),
        lambda: store.recent("data"),
    ):
        with pytest.raises(BackendUnavailableError, match="cannot be reached") as refusal:
            await attempt()
        assert str(proxy.url) not in str(refusal.value)
        assert refusal.value.__suppress_context__
    await proxy.open()
    assert await store.get("data", "1") == run(1)


async def test_redis_that_does_not_answer_is_not_waited_for_long(deployment: Deployment, proxy: Proxy) -> None:
    store = deployment.process(proxy.url).runs
    await store.add(run(1))
    proxy.freeze()
    with pytest.raises(BackendUnavailableError):
        await asyncio.wait_for(store.get("data", "1"), 8)
    proxy.thaw()
    assert await store.get("data", "1") == run(1)


async def test_a_connection_that_was_killed_is_made_again_at_once(deployment: Deployment, redis: Redis) -> None:
    store = deployment.process(f"{REDIS_URL}?client_name={deployment.environment}").runs
    await store.add(run(1))
    assert await kill_clients(redis, deployment.environment) > 0
    assert await store.get("data", "1") == run(1)


async def test_the_store_outlives_every_event_loop(deployment: Deployment) -> None:
    store = deployment.process().runs
    await asyncio.to_thread(asyncio.run, store.add(run(1)))
    assert await asyncio.to_thread(asyncio.run, store.get("data", "1")) == run(1)
