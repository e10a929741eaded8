"""A format that knows more types than JSON cannot make a task see anything else than what was signed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import cbor2
import msgpack  # type: ignore[import-untyped]
import pytest
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.serializers import CBORSerializer, MSGPackSerializer

from tests.attacks.forging import PRINCIPAL, SIGNATURE
from tests.integration.inmemory.harness import Process

Pack = Callable[[object], bytes]


def _pack(content: object) -> bytes:
    packed = msgpack.packb(content, datetime=True)
    assert isinstance(packed, bytes)
    return packed


FORMATS: dict[str, tuple[type[TaskiqSerializer], Pack]] = {
    "msgpack": (MSGPackSerializer, _pack),
    "cbor": (CBORSerializer, cbor2.dumps),
}


@pytest.fixture(params=FORMATS.values(), ids=list(FORMATS))
def pack(request: pytest.FixtureRequest, process: Process) -> Pack:
    """Packs a message in the format that the process speaks."""
    serializer, pack = request.param
    process.broker.with_serializer(serializer())
    return pack  # type: ignore[no-any-return]


async def _sent(process: Process, value: object) -> dict[str, Any]:
    """A genuine message that carries this value, as it lies on the wire."""
    content = process.broker.serializer.loadb(await process.kick(process.echo, value))
    assert isinstance(content, dict)
    return content


async def _seen(process: Process, body: bytes) -> object:
    """What the task is given if it runs."""
    outcome = await process.broker.deliver(body)
    assert outcome.acks == 1
    if process.ran == []:
        return None
    ((_, value),) = process.ran
    process.ran.clear()
    return value


CONFUSIONS: dict[str, tuple[object, object]] = {
    "bytes for a string": ("abc", b"abc"),
    "a byte array for a string": ("", b""),
    "an integer key for a string": ({"1": "a"}, {1: "a"}),
    "a bytes key for a string": ({"a": 1}, {b"a": 1}),
    "a time for a string": ("2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=timezone.utc)),
    "nested": ({"a": ["abc"]}, {"a": [b"abc"]}),
}


@pytest.mark.parametrize(("signed", "sent"), CONFUSIONS.values(), ids=CONFUSIONS)
async def test_a_value_of_another_type_arrives_as_it_was_signed_or_not_at_all(
    process: Process, pack: Pack, signed: object, sent: object
) -> None:
    content = await _sent(process, signed)
    content["args"] = [sent]
    seen = await _seen(process, pack(content))
    assert seen is None or (seen == signed and type(seen) is type(signed) and repr(seen) == repr(signed))
    await process.serves()


CBOR_ONLY: dict[str, tuple[object, object]] = {
    "a decimal for a string": ("1.5", Decimal("1.5")),
    "an id for a string": (str(UUID(int=7)), UUID(int=7)),
    "a set for a list": ([1], {1}),
    "a tuple key for a string": ({"1,2": 1}, {(1, 2): 1}),
    "a tag for a string": ("a", cbor2.CBORTag(6000, "a")),
    "undefined for null": (None, cbor2.undefined),
    "a simple value for a number": (99, cbor2.CBORSimpleValue(99)),
    "a boolean key for a string": ({"true": 1}, {True: 1}),
    "a null key for a string": ({"None": 1}, {None: 1}),
}


@pytest.mark.parametrize(("signed", "sent"), CBOR_ONLY.values(), ids=CBOR_ONLY)
async def test_a_value_of_a_type_of_cbor_arrives_as_it_was_signed_or_not_at_all(
    process: Process, signed: object, sent: object
) -> None:
    process.broker.with_serializer(CBORSerializer())
    content = await _sent(process, signed)
    content["args"] = [sent]
    seen = await _seen(process, cbor2.dumps(content))
    assert seen is None or (seen == signed and repr(seen) == repr(signed))
    await process.serves()


@pytest.mark.parametrize("field", ["task_id", "task_name"])
async def test_bytes_in_the_place_of_a_name_mean_what_was_signed(process: Process, pack: Pack, field: str) -> None:
    content = await _sent(process, "abc")
    content[field] = content[field].encode()
    assert await _seen(process, pack(content)) in (None, "abc")


@pytest.mark.parametrize("name", [PRINCIPAL, SIGNATURE, "pipeline"])
async def test_bytes_in_the_place_of_a_label_are_refused_or_mean_what_was_signed(
    process: Process, pack: Pack, name: str
) -> None:
    content = await _sent(process, "abc")
    content["labels"][name] = content["labels"][name].encode()
    outcome = await process.broker.deliver(pack(content))
    assert outcome.acks == 1
    assert outcome.result.labels.get(name) in (None, "data")
    assert process.ran in ([], [("echo", "abc")])


async def test_a_key_given_twice_under_two_types_is_refused_or_means_what_was_signed(
    process: Process, pack: Pack
) -> None:
    content = await _sent(process, {"1": "signed"})
    for sent in ({1: "other", "1": "signed"}, {"1": "signed", 1: "other"}):
        content["args"] = [sent]
        assert await _seen(process, pack(content)) in (None, {"1": "signed"})


async def test_a_keyword_given_twice_under_two_types_is_refused_or_means_what_was_signed(
    process: Process, pack: Pack
) -> None:
    content = process.broker.serializer.loadb(await process.kick(process.clean, [1], scale=1))
    for kwargs in ({b"scale": 9, "scale": 1}, {"scale": 1, b"scale": 9}):
        content["kwargs"] = kwargs
        assert await _seen(process, pack(content)) in (None, ([1], 1))


@pytest.mark.parametrize(
    "value", [{1: 1}, {b"\xff": 1}, b"\xff\xfe", float("nan"), float("inf"), 2**63, -(2**63)], ids=repr
)
async def test_a_forged_message_with_any_value_is_refused(process: Process, pack: Pack, value: object) -> None:
    content = await _sent(process, "abc")
    content["args"] = [value]
    assert await _seen(process, pack(content)) is None
    await process.serves()


async def test_an_expired_message_shows_other_middlewares_only_what_was_signed(process: Process, pack: Pack) -> None:
    content = await _sent(process, "abc")
    content["labels"]["pipeline"] = content["labels"]["pipeline"].encode()
    process.clock.now += 90_000
    outcome = await process.broker.deliver(pack(content))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.result.labels.get("pipeline") in (None, "data")


async def test_a_value_that_refers_to_itself_is_refused(process: Process) -> None:
    process.broker.with_serializer(CBORSerializer())
    content = await _sent(process, "abc")
    cycle: list[object] = []
    cycle.append(cycle)
    content["args"] = cycle
    body = cbor2.dumps(content, value_sharing=True)
    assert await _seen(process, body) is None
    await process.serves()
