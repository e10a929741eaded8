"""Whatever breaks, the request is refused, answered and recorded; what is only monitored is let through."""

from __future__ import annotations

import asyncio
import socket
from contextlib import nullcontext
from typing import Any

import anyio
import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from taskiq import InMemoryBroker

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    RateLimitExceededError,
    SecurityMiddleware,
    acting,
    current_principal,
)
from taskiq_flow_security.acting import Acting
from taskiq_flow_security.http import Rule
from taskiq_flow_security.http.asgi import Receive, Scope, Send
from tests.edge import ADMIN, VIEWER, Edge, bearer, connect, key

OPEN = [Rule("GET", "/", "index", public=True), Rule("GET", "/mine", "mine")]


@pytest.fixture
def nowhere() -> str:
    """A store at a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"redis://127.0.0.1:{free.getsockname()[1]}"


CHECKS = [
    "taskiq_flow_security.http.gate.select_headers",
    "taskiq_flow_security.http.clients.TrustedProxies.client",
    "taskiq_flow_security.http.gate.route_path",
    "taskiq_flow_security.http.gate.is_plain",
    "taskiq_flow_security.http.rules.RuleTable.find",
    "taskiq_flow_security.http.gate.find_credentials",
    "taskiq_flow_security.http.limits.FailedLogins.check",
    "taskiq_flow_security.http.limits.EndpointLimits.count",
    "taskiq_flow_security.rate_limits.RateLimits.hit",
    "taskiq_flow_security.authentication.Authentication.identify",
    "taskiq_flow_security.authorization.Authorization.decide",
    "taskiq_flow_security.authentication.Authentication.record_success",
    "taskiq_flow_security.http.gate.Gate.authorize",
    "taskiq_flow_security.http.gate.Gate.require_usable",
    "taskiq_flow_security.http.rules.Match.request",
]


@pytest.mark.parametrize("error", [RuntimeError, RecursionError, KeyError, AssertionError, AttributeError, MemoryError])
@pytest.mark.parametrize("check", CHECKS)
async def test_an_exception_in_any_check_denies(
    check: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Edge()

    def broken(*_: Any, **__: Any) -> Any:
        raise error("broken on purpose")

    monkeypatch.setattr(check, property(broken) if check.endswith("request") else broken)
    answer = await edge.get("/pipelines/p1/dag", key())
    assert answer.status in (500, 503)
    assert answer.reason in ("internal_error", "backend_unavailable")
    assert "broken on purpose" not in answer.body.decode()
    assert edge.reached == []
    assert edge.trail.last.outcome == "deny"
    async with connect(edge.app, key()) as client:
        if not check.endswith(("decide", "request")):  # this connection asks for no permission
            assert (await client.denial()).status in (500, 503)
    assert edge.reached == []


async def test_a_store_that_is_away_denies_and_says_when_to_try_again(nowhere: str) -> None:
    edge = Edge(settings={"rate_limit_storage": nowhere})
    answer = await edge.get("/pipelines", key())
    assert (answer.status, answer.reason) == (503, "backend_unavailable")
    assert answer.headers["retry-after"] == "1"
    assert edge.trail.last.reason == "backend_unavailable"
    assert (await edge.get("/pipelines", key("wrong"))).status == 503
    assert [event.reason for event in edge.trail.events[-2:]] == ["unknown_api_key", "backend_unavailable"]
    assert edge.reached == []


@pytest.mark.parametrize(
    ("settings", "status", "events"),
    [
        ({}, 503, [("authn_login_fail", "unknown_api_key"), ("authz_fail", "backend_unavailable")]),
        (
            {"unsafe_allow_uncounted": True},
            403,
            [("authz_shadow_fail", "backend_unavailable"), ("authn_login_fail", "unknown_api_key")],
        ),
        (
            {"enforcement": "monitor"},
            200,
            [("authz_shadow_fail", "unknown_api_key"), ("authz_shadow_fail", "backend_unavailable")],
        ),
        (
            {"enforcement": "monitor", "unsafe_allow_uncounted": True},
            200,
            [("authz_shadow_fail", "backend_unavailable"), ("authz_shadow_fail", "unknown_api_key")],
        ),
    ],
)
async def test_a_failed_login_is_recorded_once_while_the_store_is_away(
    nowhere: str, settings: dict[str, Any], status: int, events: list[tuple[str, str]]
) -> None:
    edge = Edge(settings={"rate_limit_storage": nowhere, **settings})
    assert (await edge.get("/pipelines", key("wrong"))).status == status
    assert [(event.event, event.reason) for event in edge.trail.events] == events


async def test_where_it_is_chosen_a_store_that_is_away_lets_through_what_is_allowed_and_records_it(
    nowhere: str,
) -> None:
    edge = Edge(settings={"rate_limit_storage": nowhere, "unsafe_allow_uncounted": True})
    assert (await edge.get("/pipelines", key())).status == 200
    uncounted = [event for event in edge.trail.events if event.reason == "backend_unavailable"]
    assert [event.event for event in uncounted] == ["authz_shadow_fail"]
    assert (await edge.get("/pipelines", key("wrong"))).status == 403
    assert (await edge.get("/pipelines/p2/dag", key())).status == 403
    assert (await edge.get("/pipelines")).status == 401


async def test_an_audit_log_that_cannot_be_written_denies() -> None:
    edge = Edge()

    def full(event: object) -> None:
        raise OSError("No space left on device")

    edge.trail.write = full  # type: ignore[method-assign]  # a disk that is full
    for headers in (key(), key("wrong"), []):
        answer = await edge.get("/pipelines", headers)
        assert answer.status in (401, 403, 500)
    assert (await edge.get("/pipelines", key())).status == 500
    assert edge.reached == []


@pytest.mark.parametrize(
    ("headers", "scope", "subject"),
    [
        ([], {}, "anonymous"),
        (key("wrong"), {}, "anonymous"),
        ([*key(), *key()], {}, "anonymous"),
        (bearer(exp=1), {}, "anonymous"),
        (key(), {}, "viewer"),
        (key(), {"scheme": "http"}, "anonymous"),
        (key(), {"query_string": b"api_key=x"}, "anonymous"),
    ],
)
async def test_what_is_only_monitored_goes_through_and_is_recorded(headers: Any, scope: Any, subject: str) -> None:
    edge = Edge(settings={"enforcement": "monitor"})
    answer = await edge.get("/pipelines/p2/dag", headers, **scope)
    assert answer.status == 200
    assert edge.reached == [("/pipelines/p2/dag", subject)]
    assert (edge.trail.last.event, edge.trail.last.outcome) == ("authz_shadow_fail", "deny")
    assert (await edge.get("/secret", headers, **scope)).status == 200


async def test_while_monitoring_no_limit_ends_and_no_failure_stops_a_request(nowhere: str) -> None:
    edge = Edge(settings={"enforcement": "monitor", "rate_limit_storage": nowhere})
    assert (await edge.get("/pipelines", key())).status == 200
    edge = Edge(settings={"enforcement": "monitor", "rate_limit_default": "1/minute"})
    assert [(await edge.get("/whoami", key())).status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("settings", [{"security_enabled": False}, {"enforcement": "monitor"}])
async def test_where_nothing_is_refused_an_unknown_caller_is_anonymous_to_the_application(settings: Any) -> None:
    async def mine(request: Request) -> JSONResponse:
        return JSONResponse([current_principal().subject, request.state.principal.subject])

    edge = Edge(settings=settings, routes=[Route("/mine", mine)], rules=OPEN)
    answer = await edge.get("/mine", scheme="http")
    assert answer.body == b'["anonymous","anonymous"]'


async def test_on_a_public_path_nobody_acts_whatever_credential_is_sent() -> None:
    async def index(request: Request) -> JSONResponse:
        assert request.state.principal.subject == "anonymous"
        return JSONResponse(current_principal().subject)

    edge = Edge(routes=[Route("/", index)], rules=OPEN)
    for headers in ([], key(ADMIN), key("wrong")):
        answer = await edge.get("/", headers)
        assert (answer.status, answer.reason) == (401, "no_principal")
    assert edge.trail.last.reason == "public"


async def test_two_hundred_requests_at_once_keep_their_principals_apart() -> None:
    turn = asyncio.Event()

    async def mine(request: Request) -> JSONResponse:
        before = current_principal().subject
        await turn.wait()
        await asyncio.sleep(0)
        return JSONResponse([before, current_principal().subject, request.state.principal.subject])

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN, settings={"rate_limit_default": "1000/minute"})
    asked = [asyncio.ensure_future(edge.get("/mine", key(VIEWER if n % 2 else ADMIN))) for n in range(200)]
    await asyncio.sleep(0)
    turn.set()
    answers = await asyncio.gather(*asked)
    for number, answer in enumerate(answers):
        subject = "viewer" if number % 2 else "admin"
        assert answer.body == f'["{subject}","{subject}","{subject}"]'.encode()


async def test_nothing_of_a_request_is_left_for_the_next_one_in_the_same_context() -> None:
    edge = Edge(routes=[Route("/mine", lambda _: JSONResponse(1))], rules=OPEN)
    for headers in (key(ADMIN), key("wrong"), key()):
        await edge.get("/mine", headers)
        with pytest.raises(AuthenticationError):
            current_principal()


async def test_where_security_is_off_nothing_of_a_request_is_left_either() -> None:
    edge = Edge(settings={"security_enabled": False})
    assert (await edge.get("/pipelines")).status == 200
    with pytest.raises(AuthenticationError):
        current_principal()


async def test_nothing_of_a_websocket_is_left_for_what_its_server_does_next() -> None:
    edge, left = Edge(), list[Acting | None]()

    async def server(scope: Scope, receive: Receive, send: Send) -> None:
        await edge.app(scope, receive, send)
        left.append(acting.current())

    async with connect(server, key()) as client:
        await client.accepted()
    assert left == [None]


async def test_what_an_endpoint_leaves_in_the_state_of_its_request_an_outer_middleware_finds() -> None:
    async def mine(request: Request) -> JSONResponse:
        request.state.inner = request.state.outer + 1
        return JSONResponse(1)

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    state: dict[str, Any] = {"outer": 1}
    await edge.get("/mine", key(), state=state)
    assert state["inner"] == 2
    assert state["principal"].subject == "viewer"


async def test_no_request_brings_a_principal_along_in_its_state() -> None:
    edge = Edge()
    await edge.get("/pipelines", key(), state={"principal": "admin"})
    assert edge.reached == [("/pipelines", "viewer")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AccessDeniedError("guard", "Not you."), 403),
        (AuthenticationError("expired"), 401),
        (RateLimitExceededError(5.0), 429),
    ],
)
async def test_an_error_of_a_route_becomes_its_problem(error: Exception, status: int) -> None:
    async def mine(request: Request) -> JSONResponse:
        raise error

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    answer = await edge.get("/mine", key())
    assert answer.status == status
    assert answer.reason is not None
    assert "strict-transport-security" in answer.headers


async def _fail_together(errors: list[Exception]) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async with anyio.create_task_group() as group:
        for error in errors:
            group.start_soon(fail, error)


@pytest.mark.parametrize(
    ("errors", "status"),
    [
        ([AccessDeniedError("guard", "Not you."), AuthenticationError("expired")], 403),
        ([AccessDeniedError("guard", "Not you."), LookupError()], None),
    ],
)
async def test_a_group_of_nothing_but_denials_becomes_the_problem_of_its_first(
    errors: list[Exception], status: int | None
) -> None:
    async def mine(request: Request) -> JSONResponse:
        await _fail_together(errors)
        raise AssertionError("nothing has failed")

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    if status is None:
        with pytest.raises(Exception, match="unhandled errors in a TaskGroup"):
            await edge.get("/mine", key())
    else:
        assert (await edge.get("/mine", key())).status == status


class OddError(Exception):
    """An error that has, of a group, nothing but a name."""

    exceptions: Any = None


_Named = type("ExceptionGroup", (OddError,), {})


@pytest.mark.parametrize(
    ("kind", "exceptions"),
    [
        *((kind, what) for kind in (OddError, _Named) for what in (None, (), [AccessDeniedError("guard")])),
        (OddError, (AccessDeniedError("guard"),)),
        (_Named, (AccessDeniedError("guard"), LookupError())),
    ],
)
async def test_an_error_that_only_looks_like_a_group_stays_itself(kind: type[OddError], exceptions: Any) -> None:
    async def mine(request: Request) -> JSONResponse:
        error = kind("the real problem")
        error.exceptions = exceptions
        raise error

    with pytest.raises(OddError, match="the real problem"):
        await Edge(routes=[Route("/mine", mine)], rules=OPEN).get("/mine", key())


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([AccessDeniedError("guard", "Not you.")], 4403),
        ([AuthenticationError("cannot_issue", "No key.")], 1011),
        ([AccessDeniedError("guard", "Not you."), AuthenticationError("expired")], 4403),
        ([LookupError("a bug")], None),
    ],
)
async def test_an_error_of_a_websocket_ends_it_as_it_says_and_a_bug_stays_one(
    errors: list[Exception], code: int | None
) -> None:
    async def converse(socket: WebSocket) -> None:
        await socket.accept()
        if len(errors) == 1:
            raise errors[0]
        await _fail_together(errors)

    edge = Edge(routes=[WebSocketRoute("/ws", converse)])
    with pytest.raises(LookupError, match="a bug") if code is None else nullcontext():
        async with connect(edge.app, key()) as client:
            await client.accepted()
            if code is not None:
                assert await client.close_code() == code


async def test_an_error_after_the_answer_has_begun_does_not_begin_another() -> None:
    async def mine(request: Request) -> StreamingResponse:
        async def rows() -> Any:
            yield b"row"
            raise AccessDeniedError("guard")

        return StreamingResponse(rows())

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    with pytest.raises(AccessDeniedError):
        await edge.get("/mine", key())


async def test_a_task_that_is_kicked_runs_as_the_caller_also_from_the_background() -> None:
    broker, ran = InMemoryBroker(), list[tuple[str, str]]()

    @broker.task(task_name="tell")
    async def tell(where: str) -> None:
        ran.append((where, current_principal().subject))

    async def later() -> None:
        await (await tell.kiq("background")).wait_result()

    async def mine(request: Request) -> JSONResponse:
        await (await tell.kiq("route")).wait_result()
        return JSONResponse(1, background=BackgroundTask(later))

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    broker.add_middlewares(SecurityMiddleware(edge.security))
    await broker.startup()
    assert (await edge.get("/mine", key(ADMIN))).status == 200
    assert ran == [("route", "admin"), ("background", "admin")]
    txns = {event.txn for event in edge.trail.events if event.event != "sys_startup"}
    assert len(txns) == 1
    await broker.shutdown()


async def test_hsts_is_on_every_secure_answer_and_on_no_other() -> None:
    edge = Edge(settings={"require_https": False})
    expected = "max-age=31536000; includeSubDomains"
    for path, headers in (("/pipelines", key()), ("/pipelines", []), ("/secret", key())):
        assert (await edge.get(path, headers)).headers["strict-transport-security"] == expected
        assert "strict-transport-security" not in (await edge.get(path, headers, scheme="http")).headers
    silent = Edge(settings={"hsts_max_age": 0})
    assert "strict-transport-security" not in (await silent.get("/pipelines", key())).headers


async def test_hsts_is_put_on_the_headers_of_an_answer_whatever_they_come_in() -> None:
    async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
        headers = ((name, b"x") for name in (b"set-cookie", b"x-other"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    edge = Edge(routes=[Mount("/mine", streamed)], rules=[Rule("GET", "/mine/", "mine")])
    headers = (await edge.get("/mine/", key())).headers
    assert {"set-cookie", "x-other", "strict-transport-security"} <= headers.keys()


@pytest.mark.parametrize("name", ["strict-transport-security", "Strict-Transport-Security"])
async def test_hsts_of_the_application_itself_stays_as_it_is(name: str) -> None:
    async def mine(_: Request) -> JSONResponse:
        answer = JSONResponse(1)
        answer.raw_headers.append((name.encode(), b"max-age=1"))
        return answer

    edge = Edge(routes=[Route("/mine", mine)], rules=OPEN)
    headers = (await edge.get("/mine", key())).headers
    assert [value for header, value in headers.items() if header.lower() == name.lower()] == ["max-age=1"]


async def test_hsts_is_on_a_handshake_that_is_denied() -> None:
    edge = Edge()
    async with connect(edge.app, key("wrong")) as client:
        assert "strict-transport-security" in (await client.denial()).headers


async def test_ten_thousand_headers_and_a_megabyte_of_query_are_read_in_no_time() -> None:
    edge = Edge()
    headers = [("x-forwarded-for", "1.2.3.4")] * 10_000 + key()
    start = asyncio.get_running_loop().time()
    await edge.get("/pipelines", headers, client=("127.0.0.1", 1))
    await edge.get("/pipelines", key(), query_string=b"a=%41&" * 170_000)
    assert asyncio.get_running_loop().time() - start < 5
