"""No message gets to the application that names a pipeline which its sender may not read."""

from __future__ import annotations

import codecs
from collections.abc import Callable

import pytest

from tests.edge import ADMIN, Edge, connect, key

FORBIDDEN = '{"type": "subscribe", "pipeline_id": "p2"}'

TRICKS: dict[str, str | bytes] = {
    "plain": FORBIDDEN,
    "after spaces": " \r\n\t" + FORBIDDEN,
    "a name twice, the good one last": '{"pipeline_id": "p2", "pipeline_id": "p1"}',
    "a name twice, the good one first": '{"pipeline_id": "p1", "pipeline_id": "p2"}',
    "an object twice": '{"a": {"pipeline_id": "p2"}, "a": {"pipeline_id": "p1"}}',
    "escaped name": '{"pipeline\\u005fid": "p2"}',
    "escaped value": '{"pipeline_id": "\\u0070\\u0032"}',
    "in an array": f'[{{"pipeline_id": "p1"}}, {FORBIDDEN}]',
    "deep inside": '{"a":' * 500 + FORBIDDEN + "}" * 500,
    "deeper than parsers go": "[" * 30_000 + FORBIDDEN + "]" * 30_000,
    "beside nan": '{"pipeline_id": "p2", "x": NaN}',
    "beside infinity": '{"pipeline_id": "p2", "x": -Infinity}',
    "beside a huge number": '{"pipeline_id": "p2", "x": ' + "9" * 5000 + "}",
    "beside a lone surrogate": '{"pipeline_id": "p2", "x": "\\ud800"}',
    "beside a control character": '{"pipeline_id": "p2", "x": "\n"}',
    "with a comment": '{/* */"pipeline_id": "p2"}',
    "with a comma at the end": '{"pipeline_id": "p2",}',
    "with single quotes": "{'pipeline_id': 'p2'}",
    "and something after it": FORBIDDEN + " x",
    "two objects": '{"pipeline_id": "p1"}\n' + FORBIDDEN,
    "a list of pipelines": '{"pipeline_id": ["p2"]}',
    "an object as pipeline": '{"pipeline_id": {"$ne": "p1"}}',
    "a number as pipeline": '{"pipeline_id": 2}',
    "null as pipeline": '{"pipeline_id": null}',
    "empty pipeline": '{"pipeline_id": ""}',
    "all pipelines": '{"pipeline_id": "*"}',
    "a task for a pipeline": '{"pipeline_id": "task:purge"}',
    "text with a byte order mark": "\ufeff" + FORBIDDEN,
    "a lone surrogate": '{"pipeline_id": "\\ud800"}',
    "half a pipeline and half of a surrogate": '{"pipeline_id": "p1\\udc00"}',
    "bytes": FORBIDDEN.encode(),
    "bytes with a byte order mark": codecs.BOM_UTF8 + FORBIDDEN.encode(),
    "bytes in UTF-16": FORBIDDEN.encode("utf-16"),
    "bytes in UTF-16 without a mark": FORBIDDEN.encode("utf-16-le"),
    "bytes in UTF-16, the big end first": FORBIDDEN.encode("utf-16-be"),
    "bytes in UTF-32": FORBIDDEN.encode("utf-32"),
    "bytes with an encoded surrogate": b'{"pipeline_id": "p2", "x": "\xed\xa0\x80"}',
    "bytes that are not UTF-8": b'{"pipeline_id": "p2", "x": "\xff"}',
    "bytes in UTF-16 that are broken": FORBIDDEN.encode("utf-16-le") + b"\x00",
    "bytes after zeros": b"\x00\x00" + FORBIDDEN.encode(),
}


@pytest.mark.parametrize("message", TRICKS.values(), ids=TRICKS)
async def test_a_forbidden_subscription_ends_the_connection_also_after_an_allowed_one(message: str | bytes) -> None:
    edge = Edge()
    async with connect(edge.app, key()) as client:
        await client.accepted()
        client.subscribe("p1")
        assert await client.receive() == {"type": "received"}
        client.send(message)
        client.subscribe("p1")
        assert (await client.receive())["type"] == "error"
        assert await client.close_code() in (4400, 4403)
    assert len(edge.reached) == 1
    assert edge.trail.last.outcome == "deny"
    assert edge.trail.last.event == "authz_fail"


async def test_the_refusal_of_a_subscription_names_its_pipeline_in_the_message_and_in_the_audit_event() -> None:
    edge = Edge()
    async with connect(edge.app, key()) as client:
        client.send([{"pipeline_id": "p1"}, {"pipeline_id": "p2"}, {"pipeline_id": "p3"}])
        refusal = await client.receive()
    assert (refusal["reason"], refusal["pipeline_id"]) == ("whitelist", "p2")
    assert edge.trail.last.pipeline == "p2"
    assert edge.trail.last.task == "endpoint:websocket_subscribe"
    assert edge.trail.last.rule == "principal.pipelines"


@pytest.mark.parametrize(
    "message", ["ping", "", "12", "null", "NaN", b"", b"\x82\xa4type", b"\xff\xfe", "pipeline_id=p2"]
)
async def test_what_is_no_json_object_is_passed_on(message: str | bytes) -> None:
    edge = Edge()
    async with connect(edge.app, key()) as client:
        client.send(message)
        assert await client.receive() == {"type": "received"}
    assert edge.reached == [(str(message), "viewer")]


@pytest.mark.parametrize("encode", [str, str.encode], ids=["text", "bytes"])
async def test_a_message_that_is_too_big_ends_the_connection_before_anything_parses_it(
    encode: Callable[[str], str | bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = Edge(settings={"websocket_max_message_size": 2000})
    fits = '{"pipeline_id": "p1", "padding": "' + "x" * 1964 + '"}'
    async with connect(edge.app, key()) as client:
        client.send(encode(fits))
        assert await client.receive() == {"type": "received"}
        monkeypatch.setattr("taskiq_flow_security.http.messages.pipelines_in", None)
        client.send(encode(fits + " "))
        assert (await client.receive())["reason"] == "message_too_big"
        assert await client.close_code() == 1009
    assert len(edge.reached) == 1


async def test_a_message_of_somebody_unknown_may_be_no_bigger() -> None:
    edge = Edge(settings={"websocket_require_auth": False, "websocket_max_message_size": 2000})
    async with connect(edge.app) as client:
        client.send("x" * 2000)
        assert await client.receive() == {"type": "received"}
        client.send("x" * 2001)
        assert (await client.receive())["reason"] == "message_too_big"
        assert await client.close_code() == 1009
    assert len(edge.reached) == 1


async def test_a_pipeline_that_a_message_names_often_is_decided_about_once() -> None:
    edge = Edge()
    async with connect(edge.app, key()) as client:
        client.send([{"pipeline_id": "p1"}] * 1000)
        assert await client.receive() == {"type": "received"}
    assert [event.pipeline for event in edge.trail.events].count("p1") == 1


async def test_a_message_names_no_more_pipelines_than_can_be_recorded() -> None:
    edge = Edge()
    async with connect(edge.app, key(ADMIN)) as client:
        for number in (20, 21):
            client.send([{"pipeline_id": f"p{place}"} for place in range(number)])
        assert await client.receive() == {"type": "received"}
        assert (await client.receive())["reason"] == "message_too_big"
        assert await client.close_code() == 1009


async def test_subscriptions_are_counted_for_each_principal_and_other_messages_are_not() -> None:
    edge = Edge(settings={"rate_limits": {"websocket_subscribe": "3/minute"}})
    async with connect(edge.app, key()) as one, connect(edge.app, key()) as two, connect(edge.app, key(ADMIN)) as admin:
        for client in (one, two, one):
            client.send("ping")
            client.subscribe("p1")
            assert [await client.receive() for _ in range(2)] == [{"type": "received"}] * 2
        two.subscribe("p1")
        refusal = await two.receive()
        assert (refusal["reason"], "pipeline_id" in refusal) == ("rate_limit", False)  # it holds for each of them
        assert await two.close_code() == 4429
        admin.subscribe("p1")
        assert await admin.receive() == {"type": "received"}
    assert ("excess_rate_limit_exceeded", "endpoint:websocket_subscribe") in [
        (event.event, event.task) for event in edge.trail.events
    ]


async def test_an_admin_may_subscribe_to_every_pipeline() -> None:
    edge = Edge()
    async with connect(edge.app, key(ADMIN)) as client:
        for pipeline in ("p1", "p2"):
            client.subscribe(pipeline)
            assert await client.receive() == {"type": "received"}


async def test_an_exception_while_a_message_is_checked_ends_the_connection() -> None:
    edge = Edge()
    async with connect(edge.app, key()) as client:
        await client.accepted()
        edge.security.authorization.decide = lambda *_: 1 / 0  # type: ignore[assignment, method-assign]  # a bug, for this test
        client.subscribe("p1")
        assert (await client.receive())["reason"] == "internal_error"
        assert await client.close_code() == 1011
    assert edge.reached == []


async def test_while_monitoring_a_forbidden_subscription_is_passed_on_and_recorded() -> None:
    edge = Edge(settings={"enforcement": "monitor"})
    async with connect(edge.app, key()) as client:
        client.subscribe("p2")
        assert await client.receive() == {"type": "received"}
    assert (edge.trail.last.event, edge.trail.last.pipeline) == ("authz_shadow_fail", "p2")
