"""Nobody keeps a connection without a good credential, an accepted origin, and a place that is left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from taskiq_flow_security import current_principal
from taskiq_flow_security.http import Rule
from taskiq_flow_security.http.rules import WEBSOCKET
from tests.edge import ADMIN, API_KEYS, NOW, PROXY, VIEWER, Edge, bearer, connect, key, token

LATE = {"websocket_auth_timeout": 0.05}

MANY = "key-with-a-larger-limit-0123456789"
OFTEN = {"websocket_connect": "100/minute"}


async def test_a_credential_in_the_handshake_connects() -> None:
    edge = Edge()
    for headers, subject in ((key(), "viewer"), (bearer(), "carol")):
        async with connect(edge.app, headers) as client:
            await client.accepted()
            client.subscribe("p1")
            assert await client.receive() == {"type": "received"}
        assert edge.reached[-1][1] == subject


@pytest.mark.parametrize(
    ("credential", "subject"), [(VIEWER, "viewer"), (token(), "carol"), (f"Bearer {token()}", "carol")]
)
async def test_a_credential_in_the_first_message_connects_and_is_not_passed_on(credential: str, subject: str) -> None:
    edge = Edge()
    async with connect(edge.app) as client:
        await client.accepted()
        client.send({"type": "connect", "auth": credential})
        assert await client.receive() == {"type": "connected", "subject": subject}
        client.subscribe("p1")
        assert await client.receive() == {"type": "received"}
    assert [name for _, name in edge.reached] == [subject]
    assert credential not in repr(edge.reached)


async def test_an_api_key_may_have_dots() -> None:
    dotted = "a.key.with-two-dots-0123456789"
    edge = Edge(settings={"api_keys": {dotted: {"role": "viewer", "permissions": ["read"], "subject": "dotted"}}})
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": dotted})
        assert (await client.receive())["subject"] == "dotted"


async def test_a_client_that_never_authenticates_is_disconnected_and_its_place_is_free() -> None:
    edge = Edge(settings={**LATE, "websocket_max_connections": 1})
    for _ in range(2):
        async with connect(edge.app) as client:
            await client.accepted()
            assert (await client.receive())["reason"] == "no_credentials"
            assert await client.close_code() == 4401
    assert edge.reached == []


FIRST_MESSAGES: list[Any] = [
    "",
    "{",
    "null",
    "[]",
    '"connect"',
    b"",
    json.dumps({"type": "connect", "auth": VIEWER}).encode(),
    {"type": "connect"},
    {"type": "connect", "auth": None},
    {"type": "connect", "auth": [VIEWER]},
    {"type": "connect", "auth": {"api_key": VIEWER}},
    {"type": "connect", "Auth": VIEWER},
    {"type": "CONNECT", "auth": VIEWER},
    {"auth": VIEWER},
    {"type": "subscribe", "pipeline_id": "p1", "auth": VIEWER},
    [{"type": "connect", "auth": VIEWER}],
    "[" * 10_000,
    '{"a":' * 3_000,
    '\ufeff{"type": "connect", "auth": "x"}',
    '{"type": "connect", "auth": "\\ud800',
]


@pytest.mark.parametrize("message", FIRST_MESSAGES, ids=lambda message: ascii(message)[:50])
async def test_another_first_message_is_no_login(message: Any) -> None:
    edge = Edge()
    async with connect(edge.app) as client:
        await client.accepted()
        client.send(message)
        assert (await client.receive())["type"] == "error"
        assert await client.close_code() == 4401
        client.subscribe("p1")
    assert edge.reached == []


@pytest.mark.parametrize(
    "auth", ["", "wrong", "a" * 16_000, "eyJ.x.y", "\ud800", "\x00", token(exp=1), f"Bearer {VIEWER}"]
)
async def test_a_bad_credential_in_the_first_message_ends_the_connection(auth: str) -> None:
    edge = Edge()
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": auth})
        assert (await client.receive())["type"] == "error"
        assert await client.close_code() == 4401
    assert edge.reached == []
    assert edge.trail.last.event == "authn_login_fail"


async def test_a_first_message_that_is_too_big_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge()
    login = json.dumps({"type": "connect", "auth": VIEWER})
    async with connect(edge.app) as client:
        client.send(login.ljust(16 * 1024))
        assert (await client.receive())["type"] == "connected"
    monkeypatch.setattr("taskiq_flow_security.http.messages.from_json", None)
    for message in (login.ljust(16 * 1024 + 1), b"x" * 20_000):
        async with connect(edge.app) as client:
            client.send(message)
            assert (await client.receive())["reason"] == "message_too_big"
            assert await client.close_code() == 1009


@pytest.mark.parametrize(
    ("headers", "scope", "status", "reason"),
    [
        (key("wrong"), {}, 403, "unknown_api_key"),
        (bearer(exp=1), {}, 401, "expired"),
        ([*key(), *key()], {}, 400, "several_credentials"),
        (key(), {"query_string": b"token=1&api_key=x"}, 400, "credentials_in_query"),
        (key(), {"scheme": "ws"}, 403, "https_required"),
        ([*key(), ("x-forwarded-proto", "https")], {"scheme": "ws"}, 403, "https_required"),
        (key(), {"path": "/nothing"}, 403, "no_rule"),
        (key(), {"path": "/ws/"}, 403, "no_rule"),
        (key(), {"path": "/pipelines"}, 403, "no_rule"),
        ([("authorization", "Basic x")], {}, 401, "unknown_scheme"),
    ],
)
async def test_a_bad_handshake_is_denied_before_it_is_accepted(
    headers: Any, scope: Any, status: int, reason: str
) -> None:
    edge = Edge()
    async with connect(edge.app, headers, **scope) as client:
        answer = await client.denial()
        assert (answer.status, answer.reason) == (status, reason)
    async with connect(edge.app, headers, **{**scope, "extensions": {}}) as client:
        assert await client.close_code() in (4401, 4403)
        assert client.sent == []
    assert edge.reached == []


async def test_behind_a_trusted_proxy_the_connection_is_secure_if_the_proxy_says_so() -> None:
    edge = Edge()
    async with connect(edge.app, [*key(), ("x-forwarded-proto", "https")], client=PROXY, scheme="ws") as client:
        await client.accepted()


@pytest.mark.parametrize(
    "origins",
    [
        ["https://evil.example"],
        ["null"],
        [""],
        ["https://edge.example.evil.example"],
        ["https://edge.example:8443"],
        ["http://edge.example"],
        ["wss://edge.example"],
        ["https://edge.example/"],
        ["https://edge.example, https://evil.example"],
        ["https://edge.example", "https://evil.example"],
        ["https://edge.example", "https://edge.example"],
        [b"\xff"],
        ["None"],
    ],
    ids=ascii,
)
async def test_a_page_from_elsewhere_may_not_connect_even_with_a_good_key(origins: list[str | bytes]) -> None:
    edge = Edge()
    headers = [*key(), ("host", "edge.example"), *(("origin", origin) for origin in origins)]
    async with connect(edge.app, headers) as client:
        assert (await client.denial()).reason == "origin"
    assert edge.reached == []


@pytest.mark.parametrize("hosts", [[], ["edge.example", "evil.example"], [""]])
async def test_without_one_host_no_origin_is_the_own_one(hosts: list[str]) -> None:
    headers = [*key(), *(("host", host) for host in hosts), ("origin", "https://evil.example")]
    async with connect(Edge().app, headers) as client:
        assert (await client.denial()).reason == "origin"


@pytest.mark.parametrize("origin", ["https://edge.example", "HTTPS://EDGE.example", "https://app.example"])
async def test_the_own_origin_and_those_of_the_settings_may_connect(origin: str) -> None:
    edge = Edge(settings={"websocket_origins": ["https://app.example"]})
    async with connect(edge.app, [*key(), ("host", "edge.example"), ("origin", origin)]) as client:
        await client.accepted()


async def test_one_connection_too_many_is_denied_until_another_one_ends() -> None:
    edge = Edge(settings={"websocket_max_connections": 2, "rate_limits": {"websocket_connect": "100/minute"}})
    async with connect(edge.app, key()) as one, connect(edge.app) as two:
        await one.accepted()
        two.send({"type": "connect", "auth": VIEWER})
        assert (await two.receive())["type"] == "connected"
        async with connect(edge.app, key(ADMIN)) as third:
            answer = await third.denial()
            assert (answer.status, answer.reason) == (503, "too_many_connections")
        async with connect(edge.app) as third:
            third.send({"type": "connect", "auth": ADMIN})
            assert (await third.receive())["reason"] == "too_many_connections"
            assert await third.close_code() == 1013
    async with connect(edge.app, key(ADMIN)) as fourth:
        await fourth.accepted()


async def test_clients_that_prove_nothing_take_no_place_of_those_that_do() -> None:
    edge = Edge(settings={"websocket_max_connections": 20})
    async with connect(edge.app) as one, connect(edge.app) as two:
        await one.accepted()
        await two.accepted()
        async with connect(edge.app) as third:
            assert (await third.denial()).reason == "too_many_connections"
        async with connect(edge.app, key()) as known:
            await known.accepted()
        one.send({"type": "connect", "auth": VIEWER})
        assert (await one.receive())["type"] == "connected"
        async with connect(edge.app) as fourth:
            await fourth.accepted()


@pytest.mark.parametrize("headers", [[], key()])
async def test_the_connect_limit_of_the_guide_holds_however_somebody_logs_in(headers: Any) -> None:
    edge = Edge(settings={"api_keys": {**API_KEYS, MANY: API_KEYS[VIEWER] | {"subject": "x", "rate_limits": OFTEN}}})
    for number in range(7):
        async with connect(edge.app, headers) as client:
            if not headers:
                client.send({"type": "connect", "auth": VIEWER})
                answer = await client.receive()
                assert answer.get("reason") == (None if number < 5 else "rate_limit")
            elif number < 5:
                await client.accepted()
            else:
                assert (await client.denial()).status == 429
    for _ in range(20):  # a key with a larger limit, from the same address
        async with connect(edge.app) as client:
            client.send({"type": "connect", "auth": MANY})
            assert (await client.receive())["type"] == "connected"


async def test_handshakes_without_credentials_have_a_limit_for_each_address() -> None:
    edge = Edge(settings={"rate_limits": {"websocket_login": "2/minute"}})
    for number in range(3):
        async with connect(edge.app) as client:
            if number < 2:
                await client.accepted()
            else:
                assert (await client.denial()).status == 429
    async with connect(edge.app, client=("198.51.100.77", 1)) as client:
        await client.accepted()


@pytest.mark.parametrize("headers", [[*key(), *key()], [("authorization", "Basic x")]])
async def test_handshakes_without_a_usable_credential_are_counted_by_their_address(headers: Any) -> None:
    edge = Edge(settings={"rate_limits": {"websocket_connect": "2/minute"}})
    reasons = []
    for _ in range(3):
        async with connect(edge.app, headers) as client:
            reasons.append((await client.denial()).reason)
    assert "rate_limit" not in reasons[:2]
    assert reasons[2] == "rate_limit"
    async with connect(edge.app, headers, client=PROXY) as client:
        assert (await client.denial()).reason != "rate_limit"


async def test_failed_logins_by_first_message_are_counted_with_those_over_http() -> None:
    edge = Edge(settings={"rate_limit_failed_logins": "2/minute"})
    for _ in range(2):
        async with connect(edge.app) as client:
            client.send({"type": "connect", "auth": "wrong"})
            assert await client.close_code() == 4401
    assert (await edge.get("/pipelines", key("wrong"))).status == 429
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": VIEWER})
        assert await client.close_code() == 4429


@pytest.mark.parametrize(("how", "end", "reason"), [("token", 70, "expired"), ("key", 60, "api_key_expired")])
async def test_a_connection_ends_when_its_login_does(
    how: str, end: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow_security.http.websocket._CHECKED_EVERY", 0.01)
    expiring = {"role": "viewer", "permissions": ["read"], "expires_at": "2027-01-15T08:01:00Z"}
    edge = Edge(settings={"api_keys": {"expiring-key-0123456789": expiring}})
    headers = bearer(exp=NOW + 60) if how == "token" else key("expiring-key-0123456789")
    async with connect(edge.app, headers) as client:
        await client.accepted()
        client.subscribe("p1")
        assert await client.receive() == {"type": "received"}
        edge.clock.now = NOW + end
        assert (await client.receive())["reason"] == reason
        assert await client.close_code() == 4401
        client.subscribe("p1")
    assert len(edge.reached) == 1


async def test_a_login_that_cannot_be_watched_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskiq_flow_security.http.websocket._CHECKED_EVERY", 0.01)
    edge = Edge()
    async with connect(edge.app, key()) as client:
        await client.accepted()
        monkeypatch.setattr(edge.security.authorization, "login_ended", lambda _: 1 / 0)
        assert (await client.receive())["reason"] == "internal_error"
        assert await client.close_code() == 1011
    assert edge.trail.last.outcome == "deny"


async def test_without_required_authentication_everybody_connects_anonymously_and_it_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edge = Edge(settings={"websocket_require_auth": False})
    async with connect(edge.app) as client:
        await client.accepted()
        client.subscribe("p2")
        assert await client.receive() == {"type": "received"}
    assert edge.reached[-1][1] == "anonymous"
    assert edge.trail.last.reason == "public"
    assert "websocket_require_auth is False" in caplog.text
    async with connect(edge.app, key()) as client:
        client.subscribe("p2")
        assert await client.close_code() == 4403
    async with connect(edge.app, key("wrong")) as client:
        assert (await client.denial()).status == 403


NOT_REQUIRED = {"websocket_require_auth": False}


@pytest.mark.parametrize("auth", ["a-wrong-key-0123456789", token(exp=NOW - 3600)])
async def test_without_required_authentication_a_credential_in_a_message_must_be_a_good_one(auth: str) -> None:
    edge = Edge(settings=NOT_REQUIRED)
    async with connect(edge.app) as client:
        await client.accepted()
        client.send({"type": "connect", "auth": auth})
        assert (await client.receive())["type"] == "error"
        assert await client.close_code() == 4401
    assert edge.trail.last.event == "authn_login_fail"


async def test_without_required_authentication_whoever_logs_in_is_held_to_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskiq_flow_security.http.websocket._CHECKED_EVERY", 0.01)
    edge = Edge(settings=NOT_REQUIRED)
    async with connect(edge.app) as client:
        await client.accepted()
        client.send({"type": "connect", "auth": token(exp=NOW + 60)})
        assert await client.receive() == {"type": "connected", "subject": "carol"}
        client.subscribe("p1")
        assert await client.receive() == {"type": "received"}
        assert edge.trail.last.sub == "carol"
        edge.clock.now = NOW + 75
        assert (await client.receive())["reason"] == "expired"
        assert await client.close_code() == 4401
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": VIEWER})
        assert (await client.receive())["subject"] == "viewer"
        client.subscribe("p2")
        assert await client.close_code() == 4403


async def test_whoever_logs_in_later_is_counted_and_may_do_what_the_rule_of_the_handshake_asks() -> None:
    rules = [Rule(WEBSOCKET, "/ws", "websocket_connect", permission="read", pipeline="p1")]
    limited = {**NOT_REQUIRED, "rate_limits": {"websocket_connect": "2/minute"}}
    edge = Edge(rules=rules, settings=limited)
    stranger = {"sub": "mallory", "pipelines": ["another"]}
    logins = ((token(**stranger), "whitelist"), (token(), None), (token(), None), (token(), "rate_limit"))
    for number, (auth, reason) in enumerate(logins):
        # From another address each time, so that only the caller is counted.
        async with connect(edge.app, client=(f"198.51.100.{number}", 1)) as client:
            client.send({"type": "connect", "auth": auth})
            answer = await client.receive()
            assert answer.get("reason") == reason, answer
            assert (answer["type"] == "connected") is (reason is None)


async def test_what_a_public_websocket_is_sent_is_its_own_matter_also_where_it_looks_like_a_login() -> None:
    rules = [Rule(WEBSOCKET, "/ws", "news", public=True)]
    edge = Edge(rules=rules, settings=NOT_REQUIRED)
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": "a key of its own"})
        assert await client.receive() == {"type": "received"}


async def test_whoever_logs_in_later_acts_from_then_on() -> None:
    acting: list[str] = []

    async def tell(websocket: WebSocket) -> None:
        await websocket.accept()
        async for _ in websocket.iter_text():
            acting.append(current_principal().subject)
            await websocket.send_text('{"type": "received"}')

    edge = Edge(routes=[WebSocketRoute("/ws", tell)], settings=NOT_REQUIRED)
    async with connect(edge.app) as client:
        await client.accepted()
        client.send({"type": "connect", "auth": VIEWER})
        assert (await client.receive())["type"] == "connected"
        client.send("who am I?")
        assert await client.receive() == {"type": "received"}
    assert acting == ["viewer"]


async def test_a_message_that_logs_nobody_in_is_passed_on_while_monitoring() -> None:
    edge = Edge(settings={**NOT_REQUIRED, "enforcement": "monitor"})
    async with connect(edge.app) as client:
        client.send({"type": "connect", "auth": "a-wrong-key-0123456789"})
        assert await client.receive() == {"type": "received"}
    assert "authz_shadow_fail" in [event.event for event in edge.trail.events]


async def test_a_public_rule_opens_its_websocket_and_no_other() -> None:
    edge = Edge(
        rules=[Rule(WEBSOCKET, "/news", "news", public=True), Rule(WEBSOCKET, "/ws", "ws")],
        settings=LATE,
    )
    edge.app.router.routes.append(WebSocketRoute("/news", edge.converse))  # type: ignore[attr-defined]  # Starlette's
    async with connect(edge.app, path="/news") as client:
        await client.accepted()
        client.send("hello")
        assert await client.receive() == {"type": "received"}
    async with connect(edge.app, path="/ws") as client:
        assert await client.close_code() == 4401


async def test_a_rule_can_ask_for_a_pipeline_at_the_handshake() -> None:
    rules = [Rule(WEBSOCKET, "/ws/{pipeline}", "ws", "read", "{pipeline}")]
    edge = Edge(rules=rules)
    edge.app.router.routes.append(WebSocketRoute("/ws/{pipeline}", edge.converse))  # type: ignore[attr-defined]
    async with connect(edge.app, key(), path="/ws/p1") as client:
        await client.accepted()
    async with connect(edge.app, key(), path="/ws/p2") as client:
        assert (await client.denial()).status == 403


async def test_what_is_only_monitored_connects_and_loses_no_message() -> None:
    edge = Edge(settings={"enforcement": "monitor", **LATE})
    for message in ({"type": "subscribe", "pipeline_id": "p2"}, {"type": "connect", "auth": "wrong"}):
        async with connect(edge.app) as client:
            await client.accepted()
            client.send(message)
            if message["type"] == "subscribe":
                assert await client.receive() == {"type": "received"}
                assert json.loads(edge.reached[-1][0]) == message
            client.send("more")
            assert await client.receive() == {"type": "received"}
    assert {name for _, name in edge.reached} == {"anonymous"}
    assert edge.trail.last.event == "authz_shadow_fail"


async def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind() -> None:
    edge = Edge(settings={"websocket_max_connections": 1, "rate_limits": {"websocket_connect": "100/minute"}})
    for headers in ([], key(), key("wrong")):
        for _ in range(3):
            async with connect(edge.app, headers):
                await asyncio.sleep(0)
    async with connect(edge.app, key()) as client:
        await client.accepted()
