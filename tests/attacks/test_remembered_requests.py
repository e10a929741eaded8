"""That a request was allowed before lets none through that is not allowed now."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from taskiq_flow_security import Principal
from taskiq_flow_security.core.policy import AccessRequest, Decision
from taskiq_flow_security.http import Rule, precedents
from taskiq_flow_security.http.precedents import Precedents
from taskiq_flow_security.live_policy import InForce, PolicyChange, Revocation
from tests.edge import ADMIN, API_KEYS, NOW, PEER, VIEWER, Answer, Edge, Headers, bearer, key

ROOT = Principal("root", permissions=["admin"])
DAG = "/pipelines/p1/dag"
ACL = {"p1": {"read": ["viewer", "admin"], "execute": ["admin"]}, "p2": {"read": ["viewer", "admin"]}}
ENDING = "ending-key-0123456789abcdef"


def acl(**roles: Any) -> dict[str, Any]:
    return {"pipeline_acls": {**ACL, **roles}}


async def settled(path: str = DAG, headers: Headers = (), edge: Edge | None = None, **others: Any) -> Edge:
    """An edge that remembers that this is allowed."""
    edge = edge or Edge(settings={**acl(), **others})
    headers = headers or key()
    assert (await edge.get(path, headers)).status == 200
    authentication, authorization = edge.security.authentication, edge.security.authorization
    with (
        patch.object(authentication, "identify", side_effect=AssertionError),
        patch.object(authorization, "decide", side_effect=AssertionError),
    ):
        assert (await edge.get(path, headers)).status == 200
    edge.reached.clear()
    edge.trail.events.clear()
    return edge


async def refuses(edge: Edge, status: int, reason: str, path: str = DAG, headers: Headers = (), **scope: Any) -> None:
    answer = await edge.get(path, headers or key(), **scope)
    assert (answer.status, answer.reason) == (status, reason)
    assert (edge.trail.last.outcome, edge.trail.last.reason) == ("deny", reason)
    assert edge.reached == []


async def _narrow(edge: Edge) -> None:
    await edge.security.administration.change(ROOT, PolicyChange(pipeline_acls={"p1": {"read": ["admin"]}}))


async def _take_roles(edge: Edge) -> None:
    await edge.security.administration.change(ROOT, PolicyChange(roles={"viewer": []}))


async def _revoke_subject(edge: Edge) -> None:
    await edge.security.administration.revoke(ROOT, Revocation(subject="viewer"))


async def _revoke_key(edge: Edge) -> None:
    key_id = edge.security.authentication.identify(api_key=VIEWER, txn="t").api_key_id
    await edge.security.administration.revoke(ROOT, Revocation(api_key=key_id))


CHANGES: dict[str, tuple[Callable[[Edge], Awaitable[None]], str]] = {
    "an ACL was narrowed": (_narrow, "acl"),
    "roles were taken": (_take_roles, "acl"),
    "the subject was revoked": (_revoke_subject, "api_key_revoked"),
    "the API key was revoked": (_revoke_key, "api_key_revoked"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
async def test_what_was_allowed_is_denied_once(change: Callable[[Edge], Awaitable[None]], reason: str) -> None:
    edge = await settled()
    await change(edge)
    await refuses(edge, 403, reason)


async def test_a_limit_that_is_changed_counts_from_the_next_request_on() -> None:
    edge = await settled()
    await edge.security.administration.change(ROOT, PolicyChange(rate_limits={"get_dag": "1/hour"}))
    assert (await edge.get(DAG, key())).status == 200
    edge.reached.clear()
    await refuses(edge, 429, "rate_limit")


@pytest.mark.parametrize(
    "limits",
    [
        {"rate_limits": {"get_dag": "5/hour"}},
        {"rate_limits": {"get_dag": "5/hour;100/day"}},
        {"role_rate_limits": {"viewer": {"get_dag": "5/hour"}}},
        {"api_keys": {**API_KEYS, VIEWER: {**API_KEYS[VIEWER], "rate_limits": {"get_dag": "5/hour"}}}},
    ],
)
async def test_each_request_counts_however_often_it_was_allowed(limits: dict[str, Any]) -> None:
    edge = Edge(settings={**acl(), **limits})
    statuses = [(await edge.get(path, key())).status for path in (DAG, "/pipelines/p1/status", DAG) for _ in range(3)]
    assert statuses == [200] * 8 + [429]
    assert (await edge.get(DAG, key(ADMIN))).status == 200


async def test_one_too_many_is_recorded_as_a_login_and_a_refusal() -> None:
    edge = await settled(rate_limits={"get_dag": "2/hour"})
    await refuses(edge, 429, "rate_limit")
    assert [event.event for event in edge.trail.events] == ["authn_login_success", "excess_rate_limit_exceeded"]
    assert {(event.sub, event.ip) for event in edge.trail.events} == {("viewer", PEER[0])}


async def test_what_was_allowed_with_an_api_key_ends_with_it() -> None:
    ends = datetime.fromtimestamp(NOW + 60, timezone.utc).isoformat()
    keys = {ENDING: {**API_KEYS[VIEWER], "expires_at": ends}}
    edge = await settled(headers=key(ENDING), api_keys=keys)
    edge.clock.now = NOW + 59.9
    assert (await edge.get(DAG, key(ENDING))).status == 200
    edge.reached.clear()
    edge.clock.now = NOW + 60
    await refuses(edge, 403, "api_key_expired", headers=key(ENDING))


async def test_what_was_allowed_is_not_while_nobody_knows_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing() -> None:
        """Nobody knows the policy."""

    edge = await settled()
    live = edge.security.live
    monkeypatch.setattr(live, "catch_up", nothing)
    monkeypatch.setattr(live, "caught_up", lambda: False)
    live.stale = True
    await refuses(edge, 503, "backend_unavailable")


async def test_a_revocation_that_has_ended_holds_again_when_the_clock_is_put_back() -> None:
    edge = Edge(settings=acl())
    await edge.security.administration.revoke(ROOT, Revocation(subject="viewer", until=NOW + 60))
    edge.clock.now = NOW + 60
    await settled(edge=edge)
    edge.clock.now = NOW + 59
    await refuses(edge, 403, "api_key_revoked")


async def test_what_is_allowed_while_the_policy_is_replaced_is_remembered_under_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edge = Edge(settings=acl())
    decide = edge.security.authorization.decide

    def decide_too_late(principal: Principal, request: AccessRequest) -> Decision:
        decision = decide(principal, request)
        _replace(edge, pipeline_acls={"p1": {}})
        return decision

    monkeypatch.setattr(edge.security.authorization, "decide", decide_too_late)
    assert (await edge.get(DAG, key())).status == 200
    monkeypatch.undo()
    edge.reached.clear()
    await refuses(edge, 403, "acl")


async def test_who_logs_in_while_roles_are_replaced_is_remembered_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = Edge(settings=acl())
    identify = edge.security.authentication.identify

    def identify_too_early(**given: Any) -> Principal:
        principal = identify(**given)
        _replace(edge, roles={"viewer": ["other"]})
        return principal

    monkeypatch.setattr(edge.security.authentication, "identify", identify_too_early)
    await edge.get("/pipelines", key())
    monkeypatch.undo()
    await edge.get("/pipelines", key())
    assert edge.trail.last.roles == {"other"}


def _replace(edge: Edge, **changes: Any) -> None:
    """Put another policy in force, as another thread may at any time."""
    live = edge.security.live
    live.in_force = InForce.of(edge.security.config, live.document.model_copy(update=changes))


async def test_others_are_not_taken_for_who_was_allowed() -> None:
    edge = await settled(headers=key(ADMIN), pipeline_acls={"p1": {"read": ["admin"]}})
    await refuses(edge, 403, "acl")
    await refuses(edge, 403, "acl", headers=bearer())
    await refuses(edge, 403, "unknown_api_key", headers=key(ADMIN[:-1]))
    await refuses(edge, 403, "unknown_api_key", headers=key(ADMIN + "0"))
    await refuses(edge, 401, "no_credentials", headers=[("x-other", ADMIN)])
    await refuses(edge, 401, "malformed", headers=[("authorization", f"Bearer {ADMIN}")])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/pipelines/p2/dag", "whitelist"),
        ("/pipelines/p1/execute", "no_rule"),
        ("/pipelines//p1/dag", "no_rule"),
        ("/pipelines/p1/dag/", "no_rule"),
        ("/secret", "no_rule"),
    ],
)
async def test_another_path_is_another_request(path: str, reason: str) -> None:
    await refuses(await settled(), 403, reason, path)


async def test_another_method_is_another_request() -> None:
    rules = [Rule("GET", "/secret", "secret", "read", "p1"), Rule("POST", "/secret", "secret", "execute", "p1")]
    edge = await settled("/secret", edge=Edge(settings=acl(), rules=rules))
    for answer in (await edge.post("/secret", key()), await edge.post("/secret", key())):
        assert (answer.status, answer.reason) == (403, "permission")
    assert edge.reached == []


async def test_a_path_that_can_be_read_in_two_ways_is_refused_whatever_was_allowed() -> None:
    await refuses(await settled(), 403, "no_rule", raw_path=b"/pipelines%2Fp1/dag")


async def test_plain_http_is_refused_whatever_was_allowed() -> None:
    await refuses(await settled(), 403, "https_required", scheme="http")


@pytest.mark.parametrize("query", [b"api_key=x", b"page=1&access_token=x", b"api_%6Bey=x", b"X-API-KEY=x"])
async def test_a_credential_in_the_query_string_is_refused_whatever_was_allowed(query: bytes) -> None:
    edge = await settled()
    await refuses(edge, 400, "credentials_in_query", query_string=query)
    assert (await edge.get(DAG, key(), query_string=b"page=1")).status == 200


async def test_a_second_credential_is_refused_whatever_was_allowed() -> None:
    edge = await settled()
    for headers in ([*key(), *key()], [*key(), *key(ADMIN)], [*key(), *bearer()], [*key(), ("authorization", "")]):
        await refuses(edge, 400, "several_credentials", headers=headers)


async def test_who_is_shut_out_is_so_with_a_remembered_key_and_learns_nothing_about_it() -> None:
    edge = await settled(rate_limit_failed_logins="2/minute")
    for number in range(3):
        await edge.get(DAG, key(f"guess-{number}"))
    with patch.object(edge.security.api_keys, "presented", side_effect=AssertionError):
        await refuses(edge, 429, "rate_limit")
    assert (await edge.get(DAG, key(), client=("198.51.100.77", 1))).status == 200


async def test_what_cannot_be_recorded_is_denied_whatever_was_allowed() -> None:
    edge = await settled()

    def full(event: object) -> None:
        raise OSError("No space left on device")

    edge.trail.write = full  # type: ignore[method-assign]  # a disk that is full
    assert (await edge.get(DAG, key())).status == 500
    assert edge.reached == []


async def test_each_request_is_recorded_as_the_first_one_was_in_a_transaction_of_its_own() -> None:
    edge = Edge(settings=acl())
    for path in (DAG, "/pipelines"):
        edge.trail.events.clear()
        for number in range(3):
            edge.clock.now = NOW + number
            await edge.get(path, key(), client=(f"198.51.100.{number}", 1))
        events = edge.trail.events
        assert [event.event for event in events] == ["authn_login_success", "authz_allow"] * 3
        assert [event.time - NOW for event in events] == [0, 0, 1, 1, 2, 2]
        assert [event.ip for event in events] == [f"198.51.100.{number}" for number in (0, 0, 1, 1, 2, 2)]
        txns = [event.txn for event in events]
        assert txns[::2] == txns[1::2]
        assert len(set(txns)) == 3
        alike = {event._replace(time=0, txn=None, ip=None) for event in events}
        assert len(alike) == 2


async def test_each_request_has_a_principal_of_its_own() -> None:
    seen: list[Principal] = []

    async def mine(request: Request) -> JSONResponse:
        seen.append(request.state.principal)
        return JSONResponse(1)

    edge = Edge(routes=[Route("/mine", mine)], rules=[Rule("GET", "/mine", "mine")])
    for _ in range(3):
        await edge.get("/mine", key())
    assert seen[0] == seen[1] == seen[2]
    assert len({principal.txn for principal in seen}) == 3
    assert [principal.txn for principal in seen] == [event.txn for event in edge.trail.events[::2]]


async def test_paths_that_ask_for_the_same_are_remembered_as_one_and_never_too_many() -> None:
    edge = Edge(settings={"rate_limit_default": "1000/minute"}, routes=[])
    remembered = edge_precedents(edge)
    for number in range(10):
        await edge.get(f"/pipelines/p1/runs/{number}", key())
    assert len(remembered) == 1
    with patch.object(precedents, "_REMEMBERED", 3):
        for number in range(10):
            await edge.get(f"/pipelines/{number}/dag", key(ADMIN))
            assert len(remembered) <= 3


def edge_precedents(edge: Edge) -> dict[Any, Any]:
    app: Any = edge.app
    app.middleware_stack = app.build_middleware_stack()
    remembered: dict[Any, Any] = app.middleware_stack.app._gate._precedents._remembered
    return remembered


async def test_no_key_is_kept_for_having_been_allowed() -> None:
    secret = secrets.token_hex()
    hashed = f"sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    edge = await settled(headers=key(secret), api_keys={hashed: API_KEYS[VIEWER]})
    gc.collect()
    kept = [
        holder
        for holder in gc.get_objects()
        if isinstance(holder, (dict, list, tuple, set))
        and any(text in (secret, secret.encode()) for text in _values(holder))
    ]
    assert kept == []
    assert edge.reached == []


def _values(holder: Any) -> list[Any]:
    values = [*holder, *holder.values()] if isinstance(holder, dict) else list(holder)
    return [value for value in values if type(value) in (str, bytes)]


class Step(NamedTuple):
    """Something that happens."""

    what: str
    which: Any
    headers: Headers = ()
    scope: Mapping[str, Any] = {}


BEARER = bearer(exp=NOW + 10_000)
HEADERS = [key(), key(), key(), key(ADMIN), key(ENDING), BEARER, key("wrong"), [], [*key(), *BEARER]]
PATHS = [DAG, DAG, "/pipelines/p2/dag", "/pipelines", "/pipelines/p1/status", "/secret", "/health"]
SCOPES: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"scheme": "http"},
    {"query_string": b"page=1"},
    {"client": ("10.0.0.1", 1)},
]
ACLS: list[dict[str, list[str]] | None] = [None, {}, {"read": ["viewer"]}, {"read": ["admin"]}]


def happens(what: str, *which: Any) -> st.SearchStrategy[Step]:
    return st.builds(Step, st.just(what), st.sampled_from(which), st.just(()), st.just({}))


asked = st.builds(Step, st.just("get"), st.sampled_from(PATHS), st.sampled_from(HEADERS), st.sampled_from(SCOPES))
changes = st.one_of(
    happens("acl", *ACLS),
    happens("roles", [], ["viewer"], ["admin"], None),
    happens("limit", None, "2/hour", "2/hour;9/day"),
    happens("revoke", "viewer", "admin"),
    happens("reinstate", "viewer", "admin"),
    happens("wait", 20.0, 500.0),
)


async def _do(edge: Edge, step: Step) -> Answer | None:
    administration = edge.security.administration
    if step.what == "get":
        return await edge.get(step.which, step.headers, **step.scope)
    if step.what == "wait":
        edge.clock.now += step.which
    elif step.what == "acl":
        await administration.change(ROOT, PolicyChange(pipeline_acls={"p1": step.which}))
    elif step.what == "roles":
        await administration.change(ROOT, PolicyChange(roles={"viewer": step.which}))
    elif step.what == "limit":
        await administration.change(ROOT, PolicyChange(rate_limits={"get_dag": step.which}))
    elif step.what == "revoke":
        await administration.revoke(ROOT, Revocation(subject=step.which))
    else:
        await administration.reinstate(ROOT, Revocation(subject=step.which))
    return None


async def _all(steps: list[Step]) -> list[object]:
    """All that becomes of these steps, but for the names of the transactions."""
    ends = datetime.fromtimestamp(NOW + 600, timezone.utc).isoformat()
    keys = {**API_KEYS, ENDING: {**API_KEYS[VIEWER], "expires_at": ends}}
    edge = Edge(
        settings={**acl(), "api_keys": keys, "rate_limit_failed_logins": "3/minute"},
        rules=[Rule("GET", "/health", "health", public=True)],
    )
    answers = [await _do(edge, step) for step in steps]
    said = [None if answer is None else (answer.status, answer.reason) for answer in answers]
    return [said, edge.reached, [event._replace(txn=None) for event in edge.trail.events]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(asked, min_size=4, max_size=12), changes), min_size=2, max_size=6))
def test_with_and_without_remembered_requests_all_comes_out_alike(rounds: list[tuple[list[Step], Step]]) -> None:
    steps = [step for requests, change in rounds for step in (*requests, change)]
    remembered = asyncio.run(_all(steps))
    with patch.object(Precedents, "cover", lambda *_: None):
        assert asyncio.run(_all(steps)) == remembered
