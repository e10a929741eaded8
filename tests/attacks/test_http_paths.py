"""No way to write a path, a method or an address gets around the rule that it stands for."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from taskiq_flow_security.http import HTTPSecurityMiddleware, Rule
from tests.edge import ADMIN, PROXY, SECRET, Edge, key, request

TRICKS = [
    "/secret",
    "//pipelines/p2/dag",
    "/pipelines//p2/dag",
    "/pipelines/p1/../p2/dag",
    "/pipelines/p1/./dag",
    "/pipelines/p1/..",
    "/pipelines/p1/dag/",
    "/pipelines/",
    "/PIPELINES",
    "/Pipelines/p1/dag",
    "/pipelines/p1/DAG",
    "/pipelines/p1\\dag",
    "/pipelines/p1/dag\n",
    "/pipelines/p1/dag\x00",
    "/pipelines/p1/dag;x",
    "/pipelines/p1;/../p2/dag",
    "/pipelines/p1\u2044dag",
    "/pipelines/\ufffd/dag",
    "/api//pipelines",
    "/",
    "",
    "pipelines",
    "http://edge.example/pipelines",
    "/pipelines/" + "a" * 100_000 + "/dag",
    "/" * 10_000,
]


@pytest.mark.parametrize("path", TRICKS, ids=lambda path: ascii(path[:30]))
async def test_a_path_that_no_rule_knows_is_denied_to_everybody(path: str) -> None:
    edge = Edge()
    for headers in (key(), key(ADMIN)):
        answer = await edge.get(path, headers)
        assert (answer.status, answer.reason) == (403, "no_rule")
        assert edge.trail.last.event == "authz_fail"
        assert edge.trail.last.ip == "203.0.113.9"
    assert (await edge.get(path)).status == 401
    assert edge.reached == []


@pytest.mark.parametrize("raw", [b"/pipelines/p1%2fdag", b"/pipelines%2Fp1/dag", b"/pipelines/%2e%2e/dag", b"/%5c"])
async def test_an_encoded_separator_opens_nothing(raw: bytes) -> None:
    edge = Edge()
    answer = await edge.get("/pipelines/p1/dag", key(), raw_path=raw)
    assert (answer.status, answer.reason) == (403, "no_rule")


async def test_without_a_raw_path_the_decoded_one_decides() -> None:
    edge = Edge()
    for missing in (None, b""):
        assert (await edge.get("/pipelines/p1/dag", key(), raw_path=missing)).status == 200
        assert (await edge.get("/pipelines/p2/dag", key(), raw_path=missing)).status == 403
        assert (await edge.get("/pipelines/p1/../p2/dag", key(ADMIN), raw_path=missing)).status == 403


@pytest.mark.parametrize(
    "name", ["*", "task:purge", "endpoint:whoami", "P1", "p1 ", " p1", "p1\u00ad", "\uff501", "%70%31"]
)
async def test_no_other_name_passes_for_a_pipeline_in_the_whitelist(name: str) -> None:
    edge = Edge()
    assert (await edge.get(f"/pipelines/{name}/dag", key())).status == 403
    assert edge.reached == []


@pytest.mark.parametrize("root", ["/prefix", "/pipelines", "/prefix/", "prefix", "/pre"])
async def test_under_a_prefix_the_rest_of_the_path_decides_as_it_does_for_the_router(root: str) -> None:
    edge = Edge()
    for path in ("/pipelines/p2/dag", "/prefix/pipelines/p2/dag", "/prefix/prefix/pipelines/p1/dag", "/prefix/secret"):
        assert (await edge.get(path, key(), root_path=root)).status == 403
    assert edge.reached == []
    assert (await edge.get("/prefix/pipelines/p1/dag", key(), root_path="/prefix")).status == 200


async def test_an_application_that_is_mounted_is_secured_by_its_own_paths() -> None:
    edge = Edge()
    outer = Mount("/sub", app=edge.app)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        _, child = outer.matches(scope)
        scope.update(child)
        await outer.handle(scope, receive, send)

    assert (await request(app, "GET", "/sub/pipelines/p1/dag", key())).status == 200
    assert (await request(app, "GET", "/sub/pipelines/p2/dag", key())).status == 403
    assert (await request(app, "GET", "/sub/secret", key(ADMIN))).status == 403


@pytest.mark.parametrize(
    "method", ["OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "get", "Post", "", "WEBSOCKET", "\xff"]
)
async def test_a_method_that_no_rule_knows_is_denied(method: str) -> None:
    edge = Edge()
    for path in ("/pipelines", "/ws", "/secret"):
        answer = await request(edge.app, method, path, key(ADMIN))
        assert (answer.status, answer.reason) == (403, "no_rule")


async def test_no_word_for_a_method_makes_a_request_a_handshake() -> None:
    async def anything(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("reached")(scope, receive, send)

    edge = Edge(routes=[Mount("/", app=anything)])
    assert (await request(edge.app, "WEBSOCKET", "/ws", key())).status == 403
    assert (await request(edge.app, "GET", "/pipelines", key())).status == 200


async def test_head_needs_the_same_as_get() -> None:
    edge = Edge()
    assert (await request(edge.app, "HEAD", "/pipelines/p1/dag")).status == 401
    assert (await request(edge.app, "HEAD", "/pipelines/p2/dag", key())).status == 403
    assert (await request(edge.app, "HEAD", "/pipelines/p1/dag", key())).status == 200


async def test_a_header_cannot_change_the_method_or_the_path() -> None:
    edge = Edge()
    headers = [
        *key(),
        ("x-http-method-override", "GET"),
        ("x-original-url", "/pipelines"),
        ("x-rewrite-url", "/pipelines"),
    ]
    assert (await edge.post("/pipelines/p1/execute", headers)).status == 403
    assert (await edge.get("/secret", headers)).status == 403


@pytest.mark.parametrize("digits", ["9" * 2000, "9" * 5000])
async def test_a_number_in_a_path_that_python_will_not_read_is_denied(digits: str) -> None:
    edge = Edge(rules=[Rule("GET", "/numbers/{number:int}", "number", "read", "{number}")], routes=[])
    answer = await edge.get(f"/numbers/{digits}", key())
    assert answer.status == 403
    assert edge.trail.last.outcome == "deny"


async def test_a_thousand_different_paths_are_counted_together() -> None:
    edge = Edge(settings={"rate_limit_default": "50/minute"})
    statuses = [(await edge.get(f"/guess-{number}")).status for number in range(60)]
    assert statuses == [401] * 50 + [429] * 10


SPOOFS: list[list[tuple[str | bytes, str | bytes]]] = [
    [("x-forwarded-proto", "https")],
    [("x-forwarded-proto", "https"), ("x-forwarded-for", "127.0.0.1")],
    [("x-forwarded-proto", "https"), ("forwarded", "for=127.0.0.1;proto=https")],
    [("x-forwarded-ssl", "on"), ("front-end-https", "on"), ("x-url-scheme", "https")],
]


@pytest.mark.parametrize("headers", SPOOFS)
async def test_a_stranger_cannot_say_that_the_connection_is_secure(headers: Any) -> None:
    edge = Edge()
    answer = await edge.get("/pipelines", [*key(), *headers], scheme="http")
    assert (answer.status, answer.reason) == (403, "https_required")
    assert "strict-transport-security" not in answer.headers
    assert edge.trail.last.ip == "203.0.113.9"


@pytest.mark.parametrize("name", ["x-forwarded-for", "x-real-ip", "forwarded", "true-client-ip", "cf-connecting-ip"])
async def test_a_stranger_cannot_be_counted_as_somebody_else(name: str) -> None:
    edge = Edge(settings={"rate_limits": {"list_pipelines": "3/minute"}})
    statuses = [(await edge.get("/pipelines", [(name, f"198.51.100.{number}")])).status for number in range(5)]
    assert statuses == [401, 401, 401, 429, 429]


async def test_behind_a_proxy_what_a_client_invents_stands_left_of_its_own_address() -> None:
    edge = Edge(settings={"rate_limits": {"list_pipelines": "3/minute"}})
    secure = ("x-forwarded-proto", "https")
    statuses = []
    for number in range(5):
        forwarded = ("x-forwarded-for", f"10.0.0.{number}, 198.51.100.7")
        answer = await edge.get("/pipelines", [secure, forwarded], client=PROXY, scheme="http")
        statuses.append(answer.status)
        assert edge.trail.last.ip == "198.51.100.7"
    assert statuses == [401, 401, 401, 429, 429]


async def test_a_proxy_that_says_nothing_of_https_is_not_secure() -> None:
    answer = await Edge().get("/pipelines", key(), client=PROXY, scheme="http")
    assert answer.reason == "https_required"


async def test_a_middleware_around_the_application_secures_it_as_well() -> None:
    edge = Edge()
    bare: Any = edge.app
    around = HTTPSecurityMiddleware(bare, Edge(settings={"jwt_secret": SECRET}).security)
    assert (await request(around, "GET", "/pipelines")).status == 401


async def test_routes_without_rules_are_no_way_around_public_ones() -> None:
    edge = Edge(
        rules=[Rule("GET", "/health", "health", public=True)],
        routes=[Route("/health", lambda _: PlainTextResponse("ok"))],
    )
    assert (await edge.get("/health")).status == 200
    for path in ("/health/", "/health/../secret", "/health/x", "//health", "/healthz"):
        assert (await edge.get(path)).status == 401
        assert (await edge.get(path, key(ADMIN))).status == 403
    assert (await edge.post("/health", key(ADMIN))).status == 403


@pytest.mark.parametrize(
    ("settings", "level", "said"),
    [
        ({}, "INFO", "which is denied; if it is to be served, give it a Rule."),
        ({"enforcement": "monitor"}, "WARNING", "which would be denied; give it a Rule."),
        ({"security_enabled": False}, None, ""),
    ],
)
async def test_what_no_rule_knows_is_logged_once_each_and_bounded(
    settings: dict[str, Any], level: str | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    edge = Edge(settings=settings)
    for path in ("/orders", "/orders", "/a\nb", f"/{'x' * 10_000}", *(f"/{number}" for number in range(200))):
        await edge.get(path, key())
    for method in ("POST", "M" * 10_000):
        await request(edge.app, method, "/orders", key())
    told = [record for record in caplog.records if record.getMessage().startswith("No rule knows")]
    assert {record.levelname for record in told} == ({level} if level else set())
    assert len(told) == (100 if level else 0)
    expected = [f"No rule knows 'GET' '/orders', {said}", f"No rule knows 'GET' '/a\\nb', {said}"]
    assert [record.getMessage() for record in told[:2]] == (expected if level else [])
    assert max((len(record.getMessage()) for record in told), default=0) < 400


async def test_of_a_method_that_no_rule_knows_only_the_beginning_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await request(Edge().app, "M" * 10_000, "/orders", key())
    assert f"No rule knows '{'M' * 20}' '/orders'" in caplog.text
