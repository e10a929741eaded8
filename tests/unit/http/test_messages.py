"""Every pipeline that a message of a WebSocket names is found, or the message is refused."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskiq_flow_security import AccessDeniedError
from taskiq_flow_security.http.messages import pipelines_in, require_size

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("pipeline_id"), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    "message",
    [
        {"type": "websocket.receive", "text": "x" * 100},
        {"type": "websocket.receive", "text": "\U0001f511" * 25},
        {"type": "websocket.receive", "bytes": b"x" * 100},
        {"type": "websocket.receive", "text": None, "bytes": b""},
    ],
)
def test_a_message_is_as_big_as_its_bytes(message: dict[str, Any]) -> None:
    require_size(message, 100)
    bigger = {name: value and value + value[:1] for name, value in message.items() if name != "type"}
    if any(bigger.values()):
        with pytest.raises(AccessDeniedError):
            require_size({**message, **bigger}, 100)


def _all_named(content: Any) -> list[Any]:
    if isinstance(content, list):
        return [name for item in content for name in _all_named(item)]
    if isinstance(content, dict):
        inside = [name for item in content.values() for name in _all_named(item)]
        return inside + ([content["pipeline_id"]] if "pipeline_id" in content else [])
    return []


@given(json_values, st.sampled_from([None, "utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_every_pipeline_that_a_message_names_is_found(content: Any, encoding: str | None) -> None:
    text = json.dumps(content, ensure_ascii=True)
    message = text if encoding is None else text.encode(encoding)
    named = _all_named(content)
    if all(isinstance(name, str) for name in named):
        assert sorted(pipelines_in(message)) == sorted(named)
    else:
        with pytest.raises(AccessDeniedError):
            pipelines_in(message)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_whatever_another_parser_reads_is_refused_or_found(message: str | bytes) -> None:
    try:
        found = pipelines_in(message)
    except AccessDeniedError:
        return
    for loads in (json.loads, orjson.loads):
        try:
            content = loads(message)
        except (ValueError, RecursionError):
            continue
        assert set(_all_named(content)) <= set(found)
