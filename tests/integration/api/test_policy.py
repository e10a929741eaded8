"""The policy is changed over HTTP, by who may, while the API runs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from taskiq_flow_security import ConfigurationError
from tests.integration.api.pipelines import Deployment
from tests.integration.api.server import ADMIN, PROCESSOR, STRANGER, VIEWER, Client, config, serving

NARROWED = {"pipeline_acls": {"tables": {"execute": ["nobody"]}}}


async def send(
    client: Client, method: str, path: str, body: object, key: str = ADMIN, **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.request(method, path, json=body, headers={"x-api-key": key, **named})


async def test_a_changed_acl_counts_for_the_next_request_until_it_is_put_back() -> None:
    async with serving(Deployment(config()).api) as client:
        changed = await send(client, "PATCH", "/policy", NARROWED)
        denied = await client.execute("tables", PROCESSOR)
        shown = await client.get("/api/policy", ADMIN)
        back = await send(client, "PATCH", "/api/policy", {"pipeline_acls": {"tables": None}})
        allowed = await client.execute("tables", PROCESSOR)
    assert (changed.status_code, changed.headers["etag"], changed.json()["version"]) == (200, '"1"', 1)
    assert (denied.status_code, denied.json()["reason"]) == (403, "acl")
    assert shown.json() == changed.json()
    assert (back.json()["version"], back.json()["pipeline_acls"]) == (2, {})
    assert allowed.status_code == 202


async def test_a_revoked_key_is_refused_until_it_is_reinstated() -> None:
    deployment = Deployment(config())
    viewer = await deployment.api.security.authenticate(api_key=VIEWER)
    body = {"api_key": viewer.api_key_id}
    async with serving(deployment.api) as client:
        assert (await send(client, "POST", "/policy/revocations", body)).status_code == 200
        refused = await client.get("/pipelines", VIEWER)
        assert (await send(client, "POST", "/policy/reinstatements", body)).status_code == 200
        served = await client.get("/pipelines", VIEWER)
    assert (refused.status_code, refused.json()["reason"]) == (403, "api_key_revoked")
    assert served.status_code == 200


async def test_the_limit_of_what_has_none_of_its_own_is_changed_for_the_next_request() -> None:
    async with serving(Deployment(config(rate_limits={})).api) as client:
        before = [(await client.get("/whoami", VIEWER)).status_code for _ in range(2)]
        await send(client, "PATCH", "/policy", {"rate_limit_default": "1/minute"})
        after = [(await client.get("/whoami", VIEWER)).status_code for _ in range(2)]
    assert (before, after) == ([200, 200], [200, 429])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/policy", b'{"roles": {"u": ["a"], "u": ["b"]}}'),
        ("PATCH", "/policy", b'{"roles": {"u": ["a"]}, "roles": {"v": ["b"]}}'),
        ("POST", "/policy/revocations", b'{"subject": "ada", "subject": "bob"}'),
        ("POST", "/policy/reinstatements", b'{"subject": "ada", "subject": "bob"}'),
    ],
)
async def test_a_name_that_stands_twice_changes_nothing(method: str, path: str, body: bytes) -> None:
    deployment = Deployment(config())
    headers = {"x-api-key": ADMIN, "content-type": "application/json"}
    async with serving(deployment.api) as client:
        answer = await client.http.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid_input")
    assert "twice" in answer.json()["detail"]
    assert deployment.api.security.live.document.version == 0


async def test_the_connection_of_somebody_who_is_revoked_ends() -> None:
    deployment = Deployment(config())
    viewer = await deployment.api.security.authenticate(api_key=VIEWER)
    async with serving(deployment.api) as client, client.live(VIEWER) as live:
        await live.ask(type="subscribe", pipeline_id="tables")
        await send(client, "POST", "/policy/revocations", {"subject": viewer.subject})
        assert (await live.receive())["type"] == "error"
        with pytest.raises(ConnectionClosed):
            await live.receive()
    assert live.connection.close_code == 4401


async def test_who_may_no_longer_read_a_pipeline_is_told_by_the_code_of_every_such_denial() -> None:
    async with serving(Deployment(config()).api) as client, client.live(VIEWER) as live, client.live(VIEWER) as other:
        await live.ask(type="subscribe", pipeline_id="tables")
        acl = {"read": ["processor"], "execute": ["processor"]}
        await send(client, "PATCH", "/policy", {"pipeline_acls": {"tables": acl}})
        await client.execute("tables", PROCESSOR, [1])
        refusals = [await live.receive(), await other.ask(type="subscribe", pipeline_id="tables")]
        over_http = (await client.get("/pipelines/tables/dag", VIEWER)).json()
    assert {(refusal["type"], refusal["pipeline_id"]) for refusal in refusals} == {("error", "tables")}
    assert {refusal["reason"] for refusal in refusals} == {over_http["reason"]} == {"acl"}
    assert live.connection.close_code == other.connection.close_code == 4403


async def test_a_change_to_another_version_than_was_read_is_not_made() -> None:
    async with serving(Deployment(config()).api) as client:
        read = await client.get("/policy", ADMIN)
        first = await send(client, "PATCH", "/policy", NARROWED, if_match=read.headers["etag"])
        second = await send(client, "PATCH", "/policy", NARROWED, if_match=read.headers["etag"])
        unreadable = await send(client, "PATCH", "/policy", NARROWED, if_match="1")
    assert first.status_code == 200
    assert (second.status_code, second.json()["reason"]) == (412, "policy_conflict")
    assert unreadable.status_code == 422


@pytest.mark.parametrize("key", [PROCESSOR, VIEWER, STRANGER])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/policy"), ("PATCH", "/policy"), ("POST", "/policy/revocations"), ("POST", "/policy/reinstatements")],
)
async def test_nobody_without_admin_sees_or_changes_anything(key: str, method: str, path: str) -> None:
    deployment = Deployment(config())
    async with serving(deployment.api) as client:
        answer = await send(client, method, path, {"subject": "x"}, key)
    assert answer.status_code == 403
    assert deployment.api.security.live.document.version == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/policy", {"pipeline_acls": {"task:x": {"execute": ["a"]}}}),
        ("/policy", {"pipeline_acls": {"x": {"fly": ["a"]}}}),
        ("/policy", {"api_keys": {}}),
        ("/policy", {"version": 9}),
        ("/policy", []),
        ("/policy/revocations", {}),
        ("/policy/revocations", {"subject": "a", "token": "b"}),
        ("/policy/revocations", {"signing_key": "derived"}),
        ("/policy/revocations", None),
    ],
)
async def test_what_cannot_be_meant_changes_nothing(path: str, body: Any) -> None:
    deployment = Deployment(config(signing_keys=[], jwt_secret="the-secret-of-this-deployment-0123456789"))
    if body == {"signing_key": "derived"}:
        (kid,) = {key.kid for key in deployment.api.security.principals._keyring._keys}
        body = {"signing_key": kid}
    async with serving(deployment.api) as client:
        answer = await send(client, "PATCH" if path == "/policy" else "POST", path, body)
    assert (answer.status_code, answer.json()["reason"]) == (422, "invalid_input")
    assert deployment.api.security.live.document.version == 0


@pytest.mark.parametrize("path", ["/policy", "/policy/revocations", "/policy/reinstatements"])
async def test_a_change_that_could_not_be_in_force_is_said_to_be_one(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = Deployment(config())

    async def change(*_: object) -> None:
        raise ConfigurationError("revoked: no key would be left.")

    async with serving(deployment.api) as client:
        monkeypatch.setattr(deployment.api.security.live, "change", change)
        body = {} if path == "/policy" else {"subject": "ada"}
        answer = await send(client, "PATCH" if path == "/policy" else "POST", path, body)
    assert (answer.status_code, answer.json()["detail"]) == (422, "revoked: no key would be left.")


async def test_a_pipeline_that_was_started_too_often_is_429() -> None:
    async with serving(Deployment(config(pipeline_rate_limits={"tables": "1/hour"})).api) as client:
        first = await client.execute("tables", PROCESSOR)
        second = await client.execute("tables", PROCESSOR)
    assert first.status_code == 202
    assert (second.status_code, second.json()["reason"]) == (429, "rate_limit")
    assert second.headers["ratelimit-policy"].startswith('"kick_pipeline";q=1;')
    assert 0 < int(second.headers["retry-after"]) <= 3600
