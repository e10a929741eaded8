"""Attacks on the API: its paths, its bodies, and other people's runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio

from taskiq_flow_security.http.api.bodies import MAX_BODY_BYTES
from taskiq_flow_security.http.api.live import MAX_SUBSCRIPTIONS
from tests.integration.api.pipelines import Deployment
from tests.integration.api.server import ADMIN, KEYS, PROCESSOR, STRANGER, VIEWER, Client, config, serving

PROBLEM = "application/problem+json"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def served() -> Deployment:
    served = Deployment(config())
    served.api.add_pipeline("flow", served.double)
    return served


@pytest_asyncio.fixture
async def client(served: Deployment) -> AsyncIterator[Client]:
    async with serving(served.api) as client:
        yield client


async def test_a_run_is_not_found_under_another_pipeline_also_by_who_may_read_both(client: Client) -> None:
    run = await client.run("flow", PROCESSOR, 1)
    for key in (PROCESSOR, VIEWER, ADMIN):
        answer = await client.get(f"/pipelines/tables/runs/{run['run_id']}", key)
        assert (answer.status_code, answer.json()["reason"]) == (404, "not_found")


async def test_a_run_is_nobodys_business_who_may_not_read_its_pipeline(client: Client) -> None:
    run = await client.run("flow", PROCESSOR, 1)
    for path in (f"/pipelines/flow/runs/{run['run_id']}", "/pipelines/flow/status"):
        answer = await client.get(path, STRANGER)
        assert (answer.status_code, answer.json()["reason"]) == (403, "whitelist")


async def test_the_run_of_somebody_else_cannot_be_reached_through_ones_own_pipeline(client: Client) -> None:
    run = await client.run("flow", PROCESSOR, 1)
    answer = await client.get(f"/pipelines/elsewhere/runs/{run['run_id']}", STRANGER)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "run_id",
    ["0", "*", "..%00", "a" * 5000, "%F0%9F%98%80", "%ff", "flow:1", "%2e%2e%2fflow", "..", "%7B%7D", "1%20OR%201=1"],
)
async def test_a_forged_run_id_finds_nothing(client: Client, run_id: str) -> None:
    await client.run("flow", PROCESSOR, 1)
    answer = await client.get(f"/pipelines/flow/runs/{run_id}", PROCESSOR)
    assert answer.status_code in (403, 404)
    assert answer.headers["content-type"] == PROBLEM


async def test_the_task_of_a_run_is_not_its_id(served: Deployment, client: Client) -> None:
    await client.run("flow", PROCESSOR, 1)
    (run,) = await served.api.security.runs.recent("flow")
    assert (await client.get(f"/pipelines/flow/runs/{run.task_id}", PROCESSOR)).status_code == 404


@pytest.mark.parametrize(
    "pipeline_id",
    [
        "../x",
        "..",
        ".",
        "task:clean",
        "task:flow",
        "endpoint:whoami",
        "*",
        "",
        " ",
        "flow ",
        "FLOW",
        "flow/",
        "flow\x00",
    ],
)
@pytest.mark.parametrize("encoded", [False, True])
async def test_no_odd_pipeline_id_leads_anywhere(
    served: Deployment, client: Client, pipeline_id: str, encoded: bool
) -> None:
    written = quote(pipeline_id, safe="") if encoded else quote(pipeline_id, safe="/.:*")
    for key in (PROCESSOR, ADMIN):
        url = httpx.URL(f"http://{client.address}").copy_with(raw_path=f"/pipelines/{written}/execute".encode())
        answer = await client.http.post(url, json={"args": [1]}, headers={"X-API-Key": key})
        assert answer.status_code in (403, 404)
        assert answer.headers["content-type"] == PROBLEM
    assert served.notes == []


@pytest.mark.parametrize("pipeline_id", ["../x", "task:clean", "*", "", "endpoint:whoami"])
async def test_no_odd_pipeline_id_can_be_watched(client: Client, pipeline_id: str) -> None:
    async with client.live(PROCESSOR) as live:
        assert (await live.ask(type="subscribe", pipeline_id=pipeline_id))["type"] == "error"


async def test_nobody_runs_what_they_may_only_read(served: Deployment, client: Client) -> None:
    answer = await client.execute("flow", VIEWER, 1)
    assert (answer.status_code, answer.json()["reason"]) == (403, "permission")
    assert served.notes == []


async def post(client: Client, content: bytes | AsyncIterator[bytes], headers: dict[str, str]) -> httpx.Response:
    return await client.http.post(
        "/pipelines/flow/execute", content=content, headers={"X-API-Key": PROCESSOR, **headers}
    )


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"null",
        b'"args"',
        b'{"args": {}}',
        b'{"args": [1], "kwargs": []}',
        b'{"kwargs": {"1": 1}, "more": 1}',
        b'{"args": [1], "kwargs": {"self": 1}}',
        b'{"args": [NaN]}',
        b'{"args": [Infinity]}',
        b'{"args": [-Infinity]}',
        b'{"args": ["\\ud800"]}',
        b'{"args": ["\xff"]}',
        b'{"args": [1]} {"args": [2]}',
        b"\xef\xbb\xbf{}",
        '{"args": [1]}'.encode("utf-16"),
        b'{"args": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"args": [' + b"9" * 5_000 + b"]}",
        b"\x00",
    ],
    ids=lambda content: f"{content[:20]!r}",
)
async def test_a_body_that_is_not_what_it_should_be_starts_nothing(
    served: Deployment, client: Client, content: bytes
) -> None:
    answer = await post(client, content, JSON)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid_input")
    assert answer.headers["content-type"] == PROBLEM
    assert served.notes == []
    assert (await client.run("flow", PROCESSOR, 1))["result"] == 2


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_that_says_to_be_something_else_starts_nothing(
    served: Deployment, client: Client, headers: dict[str, str]
) -> None:
    answer = await post(client, b'{"args": [1]}', headers)
    assert (answer.status_code, answer.json()["reason"]) == (415, "unsupported_media_type")
    assert served.notes == []


async def test_a_body_that_says_to_be_too_large_is_not_even_read(served: Deployment, client: Client) -> None:
    answer = await post(client, b"[" + b" " * MAX_BODY_BYTES, JSON)
    assert (answer.status_code, answer.json()["reason"]) == (413, "body_too_large")
    assert served.notes == []


async def test_a_body_without_a_length_is_read_up_to_the_limit(served: Deployment, client: Client) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 65_536

    try:
        answer = await post(client, endless(), JSON)
        assert (answer.status_code, answer.json()["reason"]) == (413, "body_too_large")
    except (httpx.WriteError, httpx.ReadError):
        pass  # the server has closed the connection that still sends
    assert served.notes == []
    assert (await client.run("flow", PROCESSOR, 1))["result"] == 2


async def test_a_body_that_does_not_come_is_not_waited_for(
    served: Deployment, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow_security.http.api.bodies.BODY_SECONDS", 0.1)

    host, port = client.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = "POST /pipelines/flow/execute HTTP/1.1", f"Host: {host}", f"X-API-Key: {PROCESSOR}", "Content-Length: 20"
    writer.write("\r\n".join((*head, "Content-Type: application/json", "", '{"args": ')).encode())
    answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 408")
    assert PROBLEM in answer
    assert served.notes == []


async def test_a_name_that_the_caller_makes_up_is_not_repeated(client: Client) -> None:
    answer = await post(client, b'{"<script>alert(1)</script>": 1}', JSON)
    assert answer.status_code == 422
    assert "script" not in answer.text


async def test_arguments_do_not_reach_labels_or_the_kick(served: Deployment, client: Client) -> None:
    run = await client.run("flow", PROCESSOR, 1, task_id="mine", labels={"pipeline": "forbidden"})
    assert (run["state"], run["error"]["type"]) == ("failed", "TypeError")
    assert served.notes == []


async def test_a_key_whose_rights_are_elsewhere_sees_no_pipeline_in_any_list(client: Client) -> None:
    assert (await client.get("/pipelines", STRANGER)).json() == {"pipelines": []}


async def test_answers_hold_no_key(client: Client) -> None:
    run = await client.run("flow", PROCESSOR, 1)
    paths = ("/whoami", "/pipelines", "/pipelines/flow/status", f"/pipelines/flow/runs/{run['run_id']}", "/nothing")
    for path in paths:
        for key in (*KEYS, "not-a-key-that-is-known"):
            assert key not in (await client.get(path, key)).text


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
async def test_other_methods_are_refused(client: Client, method: str) -> None:
    answer = await client.http.request(method, "/pipelines", headers={"X-API-Key": ADMIN})
    assert answer.status_code == 403


async def test_head_tells_no_more_than_get(client: Client) -> None:
    assert (await client.http.head("/pipelines/flow/dag")).status_code == 401
    assert (await client.http.head("/pipelines/flow/dag", headers={"X-API-Key": STRANGER})).status_code == 403
    assert (await client.http.head("/pipelines/flow/dag", headers={"X-API-Key": VIEWER})).status_code == 200


async def test_a_key_that_is_used_up_on_subscriptions_leaves_others_alone(served: Deployment, client: Client) -> None:
    for number in range(MAX_SUBSCRIPTIONS + 10):
        served.api.add_pipeline(f"watched-{number}", served.double)
    async with client.live(ADMIN) as greedy, client.live(VIEWER) as other:
        answers = [
            await greedy.ask(type="subscribe", pipeline_id=f"watched-{number}")
            for number in range(MAX_SUBSCRIPTIONS + 10)
        ]
        assert [answer["type"] for answer in answers].count("error") == 10
        await other.ask(type="subscribe", pipeline_id="flow")
        await client.run("flow", PROCESSOR, 1)
        assert (await other.receive())["kind"] == "enqueued"


async def test_a_hundred_runs_at_once_stay_apart(client: Client) -> None:
    runs = await asyncio.gather(*(client.run("flow", PROCESSOR, number) for number in range(100)))
    assert [run["result"] for run in runs] == [2 * number for number in range(100)]
