"""The WebSocket sends the events of runs, as they happen, to whoever may read their pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from taskiq_flow_security import BackendUnavailableError
from taskiq_flow_security.http import HTTPSecurityMiddleware
from taskiq_flow_security.http.api import live as live_module
from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from tests.integration.api.pipelines import Deployment
from tests.integration.api.server import PROCESSOR, STRANGER, VIEWER, Client, Live, config, serving
from tests.integration.waiting import until


def places_taken(deployment: Deployment) -> bool:
    middleware = deployment.api._app
    assert isinstance(middleware, HTTPSecurityMiddleware)
    return bool(middleware._websockets._places._taken)


each_path = pytest.mark.parametrize("path", ["/ws", "/api/ws"])


@pytest.fixture
def served() -> Deployment:
    return Deployment(config())


@pytest_asyncio.fixture
async def client(served: Deployment) -> AsyncIterator[Client]:
    async with serving(served.api) as client:
        yield client


@each_path
async def test_a_subscriber_sees_each_step_of_a_run(client: Client, path: str) -> None:
    async with client.live(VIEWER, path) as live:
        assert (await live.ask(type="connect"))["type"] == "connected"
        assert await live.ask(type="subscribe", pipeline_id="tables") == {"type": "subscribed", "pipeline_id": "tables"}
        run = await client.run("tables", PROCESSOR, [1])
        events = [await live.receive() for _ in range(3)]
    assert [event["kind"] for event in events] == ["enqueued", "started", "completed"]
    assert {(event["type"], event["pipeline_id"], event["task"]) for event in events} == {("event", "tables", "clean")}
    assert {(event["run_id"], event["subject"]) for event in events} == {(run["run_id"], run["subject"])}


async def test_a_client_that_cannot_set_headers_connects_with_its_first_message(client: Client) -> None:
    async with client.live(None) as live:
        assert (await live.ask(type="connect", auth=VIEWER))["type"] == "connected"
        assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"


async def test_nothing_comes_after_unsubscribing(client: Client) -> None:
    async with client.live(VIEWER) as live:
        await live.ask(type="subscribe", pipeline_id="tables")
        assert await live.ask(type="unsubscribe", pipeline_id="tables") == {
            "type": "unsubscribed",
            "pipeline_id": "tables",
        }
        await client.run("tables", PROCESSOR, [1])
        assert (await live.ask(type="connect"))["type"] == "connected"


async def test_subscribing_twice_sends_events_once(client: Client) -> None:
    async with client.live(VIEWER) as live:
        for _ in range(2):
            assert (await live.ask(type="subscribe", pipeline_id="tables"))["type"] == "subscribed"
        await client.run("tables", PROCESSOR, [1])
        events = [await live.receive() for _ in range(3)]
        assert [event["kind"] for event in events] == ["enqueued", "started", "completed"]
        assert (await live.ask(type="connect"))["type"] == "connected"


async def test_a_pipeline_that_may_not_be_read_ends_the_connection_also_after_one_that_may(client: Client) -> None:
    async with client.live(VIEWER) as live:
        await live.ask(type="subscribe", pipeline_id="tables")
        assert (await live.ask(type="subscribe", pipeline_id="forbidden"))["type"] == "error"
        with pytest.raises(ConnectionClosed):
            await live.receive()
    assert live.connection.close_code == 4403


async def test_while_nobody_knows_the_policy_the_connection_ends_with_a_code_to_try_again(
    served: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nowhere() -> bytes:
        raise BackendUnavailableError("The store is away.")

    security = served.api.security
    async with client.live(VIEWER) as live, client.live(VIEWER) as other:
        await live.ask(type="subscribe", pipeline_id="tables")
        monkeypatch.setattr(security.live._stored._store, "mark", nowhere)
        security.live.stale = True
        security.run_events.publish(RunEvent("tables", "run", RunEventKind.STARTED, 0.0, "clean", "1"))
        refusals = [await live.receive(), await other.ask(type="subscribe", pipeline_id="tables")]
    assert {(refusal["type"], refusal["reason"]) for refusal in refusals} == {("error", "policy_stale")}
    assert live.connection.close_code == other.connection.close_code == 1013


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "is refused"])
async def test_whoever_does_not_wait_for_an_answer_leaves_no_connection_behind(leaves: bool) -> None:
    deployment = Deployment(config(websocket_max_connections=1, rate_limits={"websocket_connect": "100/minute"}))
    async with serving(deployment.api) as client:
        for _ in range(10):
            async with client.live(VIEWER) as live:
                await live.send(type="subscribe", pipeline_id="tables")
                if not leaves:
                    await live.send(type="subscribe", pipeline_id="forbidden")
                    with suppress(ConnectionClosed):
                        while True:
                            await live.receive()
            await until(lambda: not places_taken(deployment))


async def test_unsubscribing_is_answered_while_events_flow(served: Deployment, client: Client) -> None:
    async def flow() -> None:
        while True:
            served.api.security.run_events.publish(RunEvent("tables", "run", RunEventKind.STARTED, 0.0, "clean", "1"))
            await asyncio.sleep(0)

    flowing = asyncio.create_task(flow())
    try:
        async with client.live(VIEWER) as live:
            for _ in range(30):
                for asked, answer in (("subscribe", "subscribed"), ("unsubscribe", "unsubscribed")):
                    await live.send(type=asked, pipeline_id="tables")
                    while (await live.receive())["type"] != answer:
                        pass
    finally:
        flowing.cancel()


async def test_a_pipeline_that_there_is_not_is_an_error_and_the_connection_goes_on(client: Client) -> None:
    async with client.live(STRANGER) as live:
        answer = await live.ask(type="subscribe", pipeline_id="elsewhere")
        assert (answer["type"], answer["reason"]) == ("error", "not_found")
        assert (await live.ask(type="connect"))["type"] == "connected"


@pytest.mark.parametrize(
    "message",
    ["hello", '"connect"', '{"type": "shout"}', '{"type": "subscribe"}', "7", "", b"\x00\xff"],
)
async def test_a_message_of_no_use_is_an_error_and_the_connection_goes_on(client: Client, message: str | bytes) -> None:
    async with client.live(VIEWER) as live:
        await live.connection.send(message)
        answer = await live.receive()
        assert (answer["type"], answer["reason"]) == ("error", "invalid_message")
        assert (await live.ask(type="connect"))["type"] == "connected"


async def test_a_message_may_be_as_big_as_the_setting_says(client: Client) -> None:
    padding = "x" * (config().websocket_max_message_size - 100)
    async with client.live(VIEWER) as live:
        assert (await live.ask(type="connect", more=padding))["type"] == "connected"
        answer = await live.ask(type="connect", more=padding + "x" * 100)
        assert (answer["type"], answer["reason"]) == ("error", "message_too_big")
        with pytest.raises(ConnectionClosed):
            await live.receive()
    assert live.connection.close_code == 1009


async def test_a_connection_has_only_so_many_subscriptions(
    served: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "MAX_SUBSCRIPTIONS", 1)
    served.api.add_pipeline("flow", served.double)
    async with client.live(VIEWER) as live:
        await live.ask(type="subscribe", pipeline_id="tables")
        answer = await live.ask(type="subscribe", pipeline_id="flow")
        assert (answer["type"], answer["reason"]) == ("error", "too_many_subscriptions")
        await live.ask(type="unsubscribe", pipeline_id="tables")
        assert (await live.ask(type="subscribe", pipeline_id="flow"))["type"] == "subscribed"


async def test_a_client_that_does_not_read_is_cut_off_and_keeps_nobody_waiting(
    served: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "SEND_SECONDS", 0.5)
    async with client.live(VIEWER, receive_buffer=4096) as slow, client.live(VIEWER) as quick:
        for live in (slow, quick):
            await live.ask(type="subscribe", pipeline_id="tables")
        slow.connection.transport.pause_reading()
        flood = asyncio.create_task(publish(served, number=2_000))
        assert await asyncio.wait_for(last_of(quick), 60) == "last"
        await flood
        await asyncio.sleep(3 * live_module.SEND_SECONDS)
        slow.connection.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(last_of(slow), 60)


async def publish(served: Deployment, number: int) -> None:
    """Publish so many events of 20 kilobytes, and a last one."""
    for sent in range(number):
        served.api.security.run_events.publish(event("x" * 20_000))
        if sent % 10 == 0:
            await asyncio.sleep(0.005)  # for who reads
    served.api.security.run_events.publish(event("last"))


def event(task: str) -> RunEvent:
    return RunEvent("tables", "a-run", RunEventKind.STARTED, 0.0, task, "an-id")


async def last_of(live: Live) -> str:
    """Read until the last event."""
    while True:
        task: str = (await live.receive())["task"]
        if task == "last":
            return task


async def test_the_server_itself_ends_who_sends_more_than_it_was_told_to_take(served: Deployment) -> None:
    async with serving(served.api, ws_max_size=65_536) as client, client.live(None) as live:
        await live.connection.send("x" * 65_537)
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(live.connection.recv(), 10)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
