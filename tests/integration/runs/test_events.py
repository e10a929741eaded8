"""Events reach those who watch in other processes, whatever happens to the connection between."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from itertools import count
from time import perf_counter
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from taskiq_flow_security import ConfigurationError, FlowSecurity, TaskiqFlowConfig
from taskiq_flow_security.runs.events import RunEventKind, RunEvents
from taskiq_flow_security.runs.redis import listener
from tests.integration.inmemory.harness import SECRET
from tests.integration.runs.processes import Deployment, kill_clients, take
from tests.integration.runs.proxy import Proxy
from tests.services import REDIS_URL
from tests.unit.runs.events import event


async def test_events_arrive_in_order_and_only_where_they_are_wanted(deployment: Deployment) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as data, here.run_events.subscribe("other") as other:
        for number in range(300):
            there.run_events.publish(event(number))
            there.run_events.publish(event(number, "other"))
            there.run_events.publish(event(number, "nobody's"))
        assert await take(data, 300) == [event(number) for number in range(300)]
        assert await take(other, 300) == [event(number, "other") for number in range(300)]


async def test_that_a_task_is_enqueued_comes_first_however_busy_who_enqueues_it_is(deployment: Deployment) -> None:
    api, worker, here = deployment.process(), deployment.process(), deployment.process()
    kinds = [RunEventKind.ENQUEUED, RunEventKind.STARTED, RunEventKind.COMPLETED]
    async with here.run_events.subscribe("data") as events:
        for number in range(5):
            told = [event(number)._replace(kind=kind) for kind in kinds]
            api.run_events.publish(event(-1)._replace(kind=RunEventKind.COMPLETED))  # it sends no more for a moment
            assert await take(events, 1) == [event(-1)._replace(kind=RunEventKind.COMPLETED)]
            api.run_events.publish(told[0])
            for later in told[1:]:
                worker.run_events.publish(later)
            assert await take(events, 3) == told


async def test_all_subscriptions_of_a_process_share_one_connection(deployment: Deployment, redis: Redis) -> None:
    here = deployment.process(f"{REDIS_URL}?client_name={deployment.environment}")
    async with here.run_events.subscribe("data") as one, here.run_events.subscribe("data") as two:
        async with here.run_events.subscribe("other"):
            clients = await redis.client_list()
            assert [client["name"] for client in clients].count(deployment.environment) == 1
        deployment.process().run_events.publish(event(1))
        assert await take(one, 1) == await take(two, 1) == [event(1)]


async def test_redis_sends_nothing_any_more_when_the_last_subscription_ends(
    deployment: Deployment, redis: Redis
) -> None:
    here = deployment.process()
    async with here.run_events.subscribe("data"), here.run_events.subscribe("data"):
        assert len(await redis.pubsub_channels(f"*{deployment.environment}*")) == 1
    there = deployment.process()
    async with here.run_events.subscribe("other") as other:  # what came before has been done by now
        assert await redis.pubsub_channels(f"*{deployment.environment}*:data") == []
        there.run_events.publish(event(1, "other"))
        assert await take(other, 1) == [event(1, "other")]


async def test_what_was_subscribed_to_while_another_subscription_ended_is_kept(deployment: Deployment) -> None:
    there, here = deployment.process(), deployment.process()
    for number in range(20):
        async with here.run_events.subscribe("data") as subscription:
            there.run_events.publish(event(number))
            assert await take(subscription, 1) == [event(number)]


async def test_a_subscription_that_is_cancelled_while_it_is_made_leaves_nothing(
    deployment: Deployment, redis: Redis
) -> None:
    here = deployment.process()

    async def subscribe() -> None:
        async with here.run_events.subscribe("data"):
            raise AssertionError("it was to be cancelled")

    for _ in range(10):
        subscribing = asyncio.ensure_future(subscribe())
        await asyncio.sleep(0)
        subscribing.cancel()
        await asyncio.wait([subscribing])
    async with here.run_events.subscribe("other"):
        assert await redis.pubsub_channels(f"*{deployment.environment}*:data") == []


async def resumed(there: RunEvents, here: RunEvents, pipeline: str = "data") -> None:
    """Wait until events flow again; those from before are lost, as they may be."""
    async with here.subscribe(pipeline) as subscription:
        for number in count():
            there.publish(event(number, pipeline))
            try:
                await asyncio.wait_for(anext(subscription), 0.2)
            except asyncio.TimeoutError:
                assert number < 100, "it does not go on"
            else:
                return


async def test_a_subscription_goes_on_after_its_connection_was_killed(deployment: Deployment, redis: Redis) -> None:
    there = deployment.process()
    here = deployment.process(f"{REDIS_URL}?client_name={deployment.environment}")
    async with here.run_events.subscribe("data") as subscription:
        assert await kill_clients(redis, deployment.environment) == 1
        await resumed(there.run_events, here.run_events)
        there.run_events.publish(event(1000))
        while (await take(subscription, 1)) != [event(1000)]:
            pass


async def test_a_connection_that_has_fallen_silent_is_given_up(
    deployment: Deployment, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_PING_SECONDS", 0.2)
    there, here = deployment.process(), deployment.process(proxy.url)
    async with here.run_events.subscribe("data") as subscription:
        await asyncio.sleep(0.5)  # silence alone is no reason: Redis answers
        there.run_events.publish(event(0))
        assert await take(subscription, 1) == [event(0)]
        proxy.strand()
        await resumed(there.run_events, here.run_events)


async def test_what_was_published_while_redis_was_away_is_sent_when_it_is_back(
    deployment: Deployment, proxy: Proxy
) -> None:
    there, here = deployment.process(proxy.url), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        there.run_events.publish(event(0))
        assert await take(subscription, 1) == [event(0)]
        await proxy.close()
        for number in range(1, 500):
            there.run_events.publish(event(number))
        await asyncio.sleep(0.3)  # for a few attempts
        await proxy.open()
        assert await take(subscription, 499) == [event(number) for number in range(1, 500)]


async def test_a_subscription_made_while_redis_is_away_begins_when_it_is_back(
    deployment: Deployment, proxy: Proxy
) -> None:
    there, here = deployment.process(), deployment.process(proxy.url)
    await proxy.close()
    async with here.run_events.subscribe("data"):
        await proxy.open()
        await resumed(there.run_events, here.run_events)


async def test_what_nobody_listens_for_is_not_sent(deployment: Deployment, proxy: Proxy) -> None:
    there, here = deployment.process(proxy.url), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        there.run_events.publish(event(0, "elsewhere"))
        there.run_events.publish(event(1))
        assert await take(subscription, 1) == [event(1)]
    assert b"elsewhere" in proxy.said  # it was asked for
    published = re.findall(rb"PUBLISH\r\n\$\d+\r\n\S+:(\w+)\r\n", proxy.said)
    assert published == [b"data"]


async def test_events_are_sent_where_redis_does_not_say_who_listens(deployment: Deployment, redis: Redis) -> None:
    await redis.acl_setuser(
        deployment.environment, enabled=True, nopass=True, keys=["*"], channels=["*"], commands=["+@all", "-pubsub"]
    )
    try:
        address = urlsplit(REDIS_URL)
        there = deployment.process(
            address._replace(netloc=f"{deployment.environment}:any@{address.netloc.rpartition('@')[2]}").geturl()
        )
        async with deployment.process().run_events.subscribe("data") as subscription:
            there.run_events.publish(event(0))
            assert await take(subscription, 1) == [event(0)]
    finally:
        await redis.acl_deluser(deployment.environment)


async def test_what_was_sent_but_not_confirmed_is_not_seen_twice(deployment: Deployment, proxy: Proxy) -> None:
    there, here = deployment.process(proxy.url), deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        there.run_events.publish(event(0))
        assert await take(subscription, 1) == [event(0)]
        await there.run_events.flush()  # until that is confirmed, which it may not be yet
        proxy.drop_answers(since=b"PUBLISH")
        there.run_events.publish(event(1))
        assert await take(subscription, 1) == [event(1)]
        await proxy.close()
        proxy.thaw()
        await proxy.open()
        there.run_events.publish(event(2))
        assert await take(subscription, 1) == [event(2)]


async def test_publishing_never_waits_and_drops_the_oldest_where_redis_is_away(
    deployment: Deployment, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    there, here = deployment.process(proxy.url), deployment.process()
    await proxy.close()
    before = perf_counter()
    for number in range(20_000):
        there.run_events.publish(event(number))
    assert perf_counter() - before < 5
    assert "run events were dropped: Redis is away or too slow" in caplog.text
    async with here.run_events.subscribe("data") as subscription:
        await proxy.open()
        last = event(19_999)
        numbers: list[int] = []
        while not numbers or numbers[-1] != int(last.task_id):
            numbers += [int(seen.task_id) for seen in await take(subscription, 1)]
    assert len(numbers) < 20_000
    assert numbers == sorted(set(numbers))


async def test_redis_that_does_not_answer_keeps_nobody_waiting(deployment: Deployment, proxy: Proxy) -> None:
    there = deployment.process(proxy.url)
    there.run_events.publish(event(0))
    await there.run_events.flush()
    proxy.freeze()
    there.run_events.publish(event(1))
    await asyncio.wait_for(there.run_events.flush(), 10)
    await asyncio.wait_for(there.run_events.close(), 10)


async def test_after_close_it_can_be_used_again(deployment: Deployment) -> None:
    there, here = deployment.process(), deployment.process()
    for number in range(2):
        async with here.run_events.subscribe("data") as subscription:
            there.run_events.publish(event(number))
            assert await take(subscription, 1) == [event(number)]
            await here.run_events.close()
            assert [seen async for seen in subscription] == []
        await there.run_events.close()


async def test_it_outlives_every_event_loop_and_works_in_any_thread(deployment: Deployment) -> None:
    there, here = deployment.process(), deployment.process()

    async def publish(number: int) -> None:
        there.run_events.publish(event(number))

    def publish_without_loop() -> None:
        there.run_events.publish(event(2))

    async with here.run_events.subscribe("data") as subscription:
        await asyncio.to_thread(asyncio.run, publish(0))
        await take(subscription, 1)
        await asyncio.to_thread(asyncio.run, publish(1))
        await take(subscription, 1)
        thread = threading.Thread(target=publish_without_loop)
        thread.start()
        assert await take(subscription, 1) == [event(2)]
        thread.join()

    async def subscribe_elsewhere() -> None:
        async with here.run_events.subscribe("data") as subscription:
            there.run_events.publish(event(3))
            assert await take(subscription, 1) == [event(3)]

    await asyncio.to_thread(asyncio.run, subscribe_elsewhere())
    await asyncio.to_thread(asyncio.run, subscribe_elsewhere())


def _publish_in_child(security: FlowSecurity) -> None:
    security.run_events.publish(event(2))
    asyncio.run(security.run_events.flush())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # that is what it is about
async def test_a_forked_process_has_a_connection_of_its_own(deployment: Deployment) -> None:
    there, here = deployment.process(), deployment.process()
    async with here.run_events.subscribe("data") as subscription, there.run_events.subscribe("data") as parents:
        there.run_events.publish(event(1))
        assert await take(subscription, 1) == [event(1)]
        child = multiprocessing.get_context("fork").Process(target=_publish_in_child, args=(there,))
        child.start()
        assert await take(subscription, 1) == [event(2)]
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0
        there.run_events.publish(event(3))  # the parent's is as it was
        assert await take(subscription, 1) == [event(3)]
        assert await take(parents, 3) == [event(1), event(2), event(3)]


async def test_a_process_that_ends_in_good_order_has_sent_everything(deployment: Deployment) -> None:
    program = (
        "import asyncio\n"
        "from taskiq import InMemoryBroker\n"
        "from taskiq_flow_security import FlowSecurity, SecurityMiddleware, TaskiqFlowConfig\n"
        "from tests.unit.runs.events import event\n"
        f"config = TaskiqFlowConfig(jwt_secret={SECRET!r}, shared_store={REDIS_URL!r},\n"
        f"                          principal_audience={deployment.environment!r})\n"
        "security = FlowSecurity(config, clock=lambda: 1_800_000_000.0)\n"
        "broker = InMemoryBroker().with_middlewares(SecurityMiddleware(security))\n"
        "async def main() -> None:\n"
        "    security.run_events.publish(event(1))\n"
        "    await broker.shutdown()\n"
        "asyncio.run(main())\n"
    )
    here = deployment.process()
    async with here.run_events.subscribe("data") as subscription:
        finished = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        assert await take(subscription, 1) == [event(1)]


async def test_the_log_names_no_password(deployment: Deployment, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    security = deployment.process("redis://:hunter2@127.0.0.1:1/0")
    security.run_events.publish(event(1))
    async with security.run_events.subscribe("data"):
        pass
    await security.run_events.close()
    assert "hunter2" not in caplog.text
    assert "the connection for run events broke" in caplog.text


def test_without_the_package_redis_the_configuration_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("taskiq_flow_security.runs.redis")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"taskiq-flow-security\[redis\]"):
        FlowSecurity(TaskiqFlowConfig(jwt_secret=SECRET, shared_store=REDIS_URL))


@pytest.mark.parametrize("url", ["redis://:hunter2@host:port", "redis://:hunter2@host/0?db=x", "redis://h?nonsense=1"])
def test_a_url_that_cannot_be_used_is_a_configuration_error_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="shared_store") as error:
        FlowSecurity(TaskiqFlowConfig(jwt_secret=SECRET, shared_store=url))
    assert "hunter2" not in str(error.value)
    assert error.value.__context__ is None


def test_without_security_everything_stays_in_memory() -> None:
    security = FlowSecurity(TaskiqFlowConfig(security_enabled=False, shared_store=REDIS_URL))
    assert not security.run_events.watched
