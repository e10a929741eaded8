"""What kicks have in common, signed once for all of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from taskiq.message import TaskiqMessage

from taskiq_flow_security.broker import wire
from taskiq_flow_security.broker.envelope import Envelope
from taskiq_flow_security.errors import UnsignableMessageError
from tests.unit.broker.any_messages import Aliased, AlwaysAliased, messages, quick


def in_an_envelope(message: TaskiqMessage) -> bytes:
    """The bytes to sign, when a message like this one was kicked before."""
    return Envelope.of(message.task_name, message.labels, message.labels_types).payload(message)


def by_itself(message: TaskiqMessage) -> bytes:
    return wire.signed_payload(wire.to_wire(message))


@quick
@given(message=messages())
def test_the_bytes_to_sign_are_those_of_the_message_by_itself(message: TaskiqMessage) -> None:
    assert in_an_envelope(message) == by_itself(message)


def of(task_id: str = "1", task_name: str = "save", **given: Any) -> TaskiqMessage:
    return TaskiqMessage(task_id=task_id, **{"task_name": task_name, "labels": {}, "args": [], "kwargs": {}, **given})


@pytest.mark.parametrize(
    "message",
    [
        of(args=[Aliased(user_id=1)], kwargs={"by": [AlwaysAliased(user_id=2)]}),
        of(task_id='"\\,"args":[1],"kwargs":{}}'),
        of(task_name='","labels":{'),
        of(labels={"args": '"args":[],"kwargs":{}}', '"args":[],"kwargs":{}}': ""}, labels_types=None),
    ],
    ids=["models", "an id like arguments", "a name like labels", "labels like arguments"],
)
def test_nothing_in_a_message_is_taken_for_what_stands_around_it(message: TaskiqMessage) -> None:
    assert in_an_envelope(message) == by_itself(message)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "message",
    [of(args=nested(300)), of(args=[10**5000]), of(args=["\ud800"]), of(task_id="\ud800"), of(kwargs={"a": b"\xff"})],
    ids=["too deep", "a number without an end", "a lone surrogate", "an id that is no text", "bytes that are no text"],
)
def test_what_cannot_be_signed_by_itself_cannot_be_in_an_envelope(message: TaskiqMessage) -> None:
    with pytest.raises(UnsignableMessageError):
        by_itself(message)
    with pytest.raises(UnsignableMessageError):
        in_an_envelope(message)
