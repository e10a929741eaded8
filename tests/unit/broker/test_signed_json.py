"""A message that travels as it was signed, with its signature put in and cut out again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from taskiq import InMemoryBroker
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.message import TaskiqMessage
from taskiq.serializers import JSONSerializer, MSGPackSerializer

from taskiq_flow_security.broker import signed_json, wire

hostile = st.text(max_size=8) | st.sampled_from(
    ['"labels":{', '"labels":{"taskiq_flow_signature":"', "labels", '",', "\\", '\\"', "taskiq_flow_signature"]
)


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    message = TaskiqMessage(
        task_id=draw(hostile),
        task_name=draw(hostile),
        labels={**draw(st.dictionaries(hostile, hostile, max_size=3)), "taskiq_flow_principal": "p"},
        args=draw(st.lists(hostile, max_size=3)),
        kwargs=draw(st.dictionaries(hostile, hostile, max_size=3)),
    )
    return wire.signed_payload(wire.to_wire(message))


@given(payloads())
def test_what_was_joined_is_split_into_the_same(payload: bytes) -> None:
    assert signed_json.split(signed_json.join(payload, "a.b_c-d")) == ("a.b_c-d", payload)


@given(payloads())
def test_what_is_joined_is_the_json_of_the_message_with_one_label_more(payload: bytes) -> None:
    expected: dict[str, Any] = json.loads(payload)
    expected["labels"] = {"taskiq_flow_signature": "s", **expected["labels"]}
    assert json.loads(signed_json.join(payload, "s")) == expected


@given(st.binary(max_size=60) | payloads())
def test_what_was_not_joined_is_not_split_or_joins_to_itself(data: bytes) -> None:
    found = signed_json.split(data)
    if found is not None:
        signature, payload = found
        assert signed_json.join(payload, signature) == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"labels":{}}',
        b'{"labels":{"taskiq_flow_signature":"s"}}',
        b'{"labels":{"taskiq_flow_signature":"\xc3\xa9","a":"b"}}',
        b'{"labels":{"taskiq_flow_signature":7,"a":"b"}}',
        b'{"labels": {"taskiq_flow_signature":"s","a":"b"}}',
    ],
)
def test_anything_else_is_left_to_the_formatter(data: bytes) -> None:
    assert signed_json.split(data) is None


class _Json(JSONSerializer):
    """It might do something else."""


class _Formatter(JSONFormatter):
    """It might do something else."""


def test_only_the_formats_of_taskiq_itself_are_plain_json() -> None:
    broker = InMemoryBroker()
    assert signed_json.is_sent_by(ProxyFormatter(broker))
    assert signed_json.is_sent_by(JSONFormatter())
    assert not signed_json.is_sent_by(_Formatter())
    for serializer in (MSGPackSerializer(), _Json()):
        assert not signed_json.is_sent_by(ProxyFormatter(broker.with_serializer(serializer)))
