"""The deployment of ``examples/deploy``, through the front door: nginx, by real HTTPS and WSS."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.integration.deploy.stack import ADMIN, HOST, JWT_SECRET, PASSWORD, VIEWER, Stack, running
from tests.services import require


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def stack(directory: Path) -> Iterator[Stack]:
    require("nginx")
    require("redis-server")
    with running(directory) as stack:
        yield stack


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with stack.client() as client:
        yield client


def get(client: httpx.Client, path: str, key: str | None = None, **headers: str) -> httpx.Response:
    given = headers if key is None else {"X-API-Key": key, **headers}
    return client.get(path, headers=given, extensions={"sni_hostname": HOST})


def execute(client: httpx.Client, key: str, *args: Any) -> httpx.Response:
    return client.post(
        "/pipelines/data-pipeline/execute",
        json={"args": args},
        headers={"X-API-Key": key},
        extensions={"sni_hostname": HOST},
    )


def test_plain_http_is_redirected_to_the_name_that_the_certificate_is_for(stack: Stack) -> None:
    answer = httpx.get(f"http://127.0.0.1:{stack.http_port}/pipelines?x=1", headers={"host": "evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (301, f"https://{HOST}/pipelines?x=1")


def test_the_checks_of_the_guide_hold(client: httpx.Client) -> None:
    assert get(client, "/pipelines").status_code == 401
    assert get(client, "/pipelines", "invalid-key").status_code == 403
    assert get(client, "/pipelines", VIEWER).status_code == 200
    assert get(client, "/api/pipelines", VIEWER).json() == get(client, "/pipelines", VIEWER).json()


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/pipelines", VIEWER),
        ("/pipelines", None),
        ("/nowhere", VIEWER),
        ("/", None),
        ("/docs", None),
        ("/health", None),
    ],
)
def test_every_answer_has_the_security_headers_once(client: httpx.Client, path: str, key: str | None) -> None:
    headers = get(client, path, key).headers
    for name, value in {
        "x-frame-options": "DENY",
        "x-content-type-options": "nosniff",
        "x-xss-protection": "1; mode=block",
        "strict-transport-security": "max-age=31536000; includeSubDomains",
    }.items():
        assert headers.get_list(name) == [value]
    assert headers["server"] == "nginx"  # without its version


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_new_versions_of_tls_are_spoken(stack: Stack, version: ssl.TLSVersion) -> None:
    context = stack.tls()
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", stack.https_port)) as raw,
        context.wrap_socket(raw, server_hostname=HOST) as secure,
    ):
        assert secure.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_versions_of_tls_are_refused(stack: Stack) -> None:
    context = stack.tls()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", stack.https_port)) as raw, pytest.raises(ssl.SSLError):
        context.wrap_socket(raw, server_hostname=HOST)


def test_a_run_that_is_started_through_nginx_runs_on_the_worker(client: httpx.Client) -> None:
    started = execute(client, ADMIN, [1, -2, 3])
    assert started.status_code == 202, started.text
    deadline = time.monotonic() + 30
    while True:
        run = get(client, f"/pipelines/data-pipeline/runs/{started.json()['run_id']}", ADMIN).json()
        if run["state"] != "running":
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)  # HTTP has nothing to await
    assert run["result"] == 2


def test_who_may_only_read_starts_nothing(client: httpx.Client) -> None:
    refused = execute(client, VIEWER, [1])
    assert (refused.status_code, refused.json()["reason"]) == (403, "permission")


async def test_events_of_a_run_arrive_by_wss(stack: Stack) -> None:
    async with stack.socket(VIEWER) as live:
        await live.send(json.dumps({"type": "subscribe", "pipeline_id": "data-pipeline"}))
        assert json.loads(await asyncio.wait_for(live.recv(), 20))["type"] == "subscribed"

        def start() -> None:
            with stack.client() as client:
                assert execute(client, ADMIN, [1]).status_code == 202

        await asyncio.to_thread(start)
        kinds: set[str] = set()
        while not kinds >= {"enqueued", "started", "completed"}:  # those of two processes may overtake each other
            event = json.loads(await asyncio.wait_for(live.recv(), 20))
            kinds.add(event["kind"])


async def test_a_wss_client_without_credentials_is_asked_for_them_and_one_with_wrong_ones_is_not_let_in(
    stack: Stack,
) -> None:
    async with stack.socket(None, "/api/ws") as live:
        await live.send(json.dumps({"type": "connect", "auth": VIEWER}))
        assert json.loads(await asyncio.wait_for(live.recv(), 20))["type"] == "connected"
    with pytest.raises(InvalidStatus) as refusal:
        async with stack.socket("invalid-key"):
            pass
    assert refusal.value.response.status_code == 403


def test_what_a_client_says_of_itself_goes_no_further_than_nginx(stack: Stack) -> None:
    with stack.client("127.0.0.2") as client:  # which will be shut out
        spoofed = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http", "X-Real-IP": "203.0.113.9"}
        assert get(client, "/pipelines", VIEWER, **spoofed).status_code == 200
        answers = [
            get(client, "/pipelines", "guessed", **{"X-Forwarded-For": f"203.0.113.{number}"}) for number in range(25)
        ]
    assert answers[0].status_code == 403
    assert answers[-1].status_code == 429


def test_plain_http_straight_to_the_api_is_refused(stack: Stack) -> None:
    answer = httpx.get(f"http://127.0.0.1:{stack.web_port}/pipelines", headers={"X-API-Key": VIEWER})
    assert (answer.status_code, answer.json()["reason"]) == (403, "https_required")


def test_http_2_is_spoken(stack: Stack) -> None:
    context = stack.tls()
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", stack.https_port)) as raw,
        context.wrap_socket(raw, server_hostname=HOST) as secure,
    ):
        assert secure.selected_alpn_protocol() == "h2"


def test_no_log_of_the_deployment_holds_a_secret(directory: Path, client: httpx.Client) -> None:
    get(client, "/pipelines", ADMIN)
    assert (
        get(client, f"/pipelines?api_key={ADMIN}", **{"Referer": f"https://{HOST}/?api_key={ADMIN}"}).status_code == 400
    )
    assert "/pipelines" in (directory / "access.log").read_text()
    for log in directory.glob("*.log"):
        text = log.read_text(errors="replace")
        for secret in (ADMIN, VIEWER, PASSWORD, JWT_SECRET):
            assert secret not in text, log.name
