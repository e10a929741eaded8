"""What is no message of TaskIQ's is acked, recorded and dropped, and the worker goes on."""

from __future__ import annotations

import json
import logging

import pytest
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.message import TaskiqMessage
from taskiq.serializers import CBORSerializer, MSGPackSerializer, ORJSONSerializer

from tests.attacks.forging import read, sign, write
from tests.integration.inmemory.harness import AuditTrail, Clock, Process

_FIELDS: dict[str, object] = {"task_id": "x", "task_name": "clean", "labels": {}, "args": [], "kwargs": {}}


def _message(**changes: object) -> bytes:
    return json.dumps({**_FIELDS, **changes}).encode()


UNREADABLE: dict[str, bytes] = {
    "nothing": b"",
    "a null byte": b"\x00",
    "not UTF-8": b"\xff\xfe\xfd",
    "text": b"run clean please",
    "half a message": _message()[:20],
    "null": b"null",
    "a number": b"7",
    "a string": b'"clean"',
    "an array": b"[]",
    "an empty object": b"{}",
    "deep arrays": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep and closed": b"[" * 100_000 + b"]" * 100_000,
    "deep arguments": _message(args=[])[:-2] + b"," + b'"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a null id": _message(task_id=None),
    "a list as id": _message(task_id=["x"]),
    "a number as id": _message(task_id=7),
    "a number as name": _message(task_name=7),
    "labels a list": _message(labels=[]),
    "labels null": _message(labels=None),
    "args an object": _message(args={}),
    "args a string": _message(args="abc"),
    "kwargs a list": _message(kwargs=[]),
    "label types a list": _message(labels_types=[1]),
    "label types of words": _message(labels_types={"note": "string"}),
    "label types of lists": _message(labels_types={"note": [3]}),
    "label types of fractions": _message(labels_types={"note": 3.5}),
    "label types null": _message(labels_types={"note": None}),
    "a pickle": b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_body_that_is_no_message_is_dropped(process: Process, body: bytes) -> None:
    await process.drops(body, "unreadable")


SERIALIZERS = {"orjson": ORJSONSerializer, "msgpack": MSGPackSerializer, "cbor": CBORSerializer}


@pytest.mark.parametrize("serializer", SERIALIZERS.values(), ids=SERIALIZERS)
@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_body_that_is_no_message_is_dropped_whatever_the_serializer(
    process: Process, serializer: type[ORJSONSerializer], body: bytes
) -> None:
    process.broker.with_serializer(serializer())
    outcome = await process.broker.deliver(body)
    assert process.ran == []
    assert outcome.acks == 1
    await process.serves()


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
async def test_a_body_that_is_no_message_is_dropped_whatever_the_formatter(
    audit: AuditTrail, clock: Clock, process: Process, body: bytes
) -> None:
    process.broker.with_formatter(JSONFormatter())
    await process.broker.startup()
    await process.drops(body, "unreadable")


async def test_a_body_that_is_no_message_is_not_logged(process: Process, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await process.drops(b'{"password": "hunter2"', "unreadable")
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("name", ["", "nothing", "clean ", "Clean", "../clean", "clean\x00", "\u202eclean"])
async def test_a_forged_message_for_a_task_that_does_not_exist_is_dropped(process: Process, name: str) -> None:
    await process.drops(_message(task_name=name), "unsigned")


async def test_the_task_of_unreadable_messages_cannot_be_asked_for(process: Process) -> None:
    await process.drops(_message(task_name="taskiq_flow_security:unreadable"), "unsigned")


@pytest.mark.parametrize("label_type", [0, 7, -1, 10**30])
async def test_a_label_of_an_unknown_type_is_refused_as_a_forgery(process: Process, label_type: int) -> None:
    message = read(await process.genuine())
    types = {**(message.labels_types or {}), "note": label_type}
    await process.refuses(write(message.model_copy(update={"labels_types": types})), "bad_signature")


LABELS: dict[str, tuple[object, int]] = {
    "an unknown type": ("7", 99),
    "type zero": ("7", 0),
    "a word as a number": ("seven", 2),
    "a word as a fraction": ("half", 4),
    "not base64 as bytes": ("a", 6),
    "a number as bytes": (7, 6),
    "a list as a number": ([], 2),
    "null as a number": (None, 2),
    "a huge number": ("9" * 10_000, 2),
}


@pytest.mark.parametrize(("value", "label_type"), LABELS.values(), ids=LABELS)
async def test_a_label_that_is_not_of_its_type_is_refused_even_from_a_holder_of_the_key(
    process: Process, value: object, label_type: int
) -> None:
    message = read(await process.genuine())
    labels = {**message.labels, "note": value}
    types = {**(message.labels_types or {}), "note": label_type}
    forged = sign(message.model_copy(update={"labels": labels, "labels_types": types}))
    await process.refuses(write(forged), "invalid_label")


async def test_an_expired_message_with_a_label_that_is_not_of_its_type_is_refused_without_being_logged(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    message = read(await process.genuine())
    forged = message.model_copy(update={"labels_types": {"note": 99}})
    expired = sign(forged, header={"iat": 1_799_000_000, "exp": 1_799_000_001})
    with caplog.at_level(logging.DEBUG):
        outcome = await process.broker.deliver(write(expired))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.reason in ("expired", "invalid_label")
    assert str(message.labels["taskiq_flow_principal"]) not in caplog.text


@pytest.mark.parametrize("size", [257, 20_000])
async def test_a_huge_task_id_is_refused_and_stored_nowhere(process: Process, size: int) -> None:
    outcome = await process.broker.deliver(_message(task_id="x" * size))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.stored == {}
    await process.serves()


async def test_a_huge_task_id_fills_neither_the_audit_trail_nor_the_log(
    process: Process, audit: AuditTrail, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await process.broker.deliver(_message(task_id="x" * 20_000))
    (entry,) = audit.take()
    assert len(str(entry.task_id)) < 300
    assert max(len(record.getMessage()) for record in caplog.records) < 5_000


async def test_a_huge_task_name_fills_neither_the_audit_trail_nor_the_log(
    process: Process, audit: AuditTrail, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await process.broker.deliver(_message(task_name="x" * 20_000))
    (entry,) = audit.take()
    assert len(str(entry.task)) < 300
    assert max(len(record.getMessage()) for record in caplog.records) < 5_000


async def test_an_empty_task_id_is_refused(process: Process) -> None:
    await process.refuses(_message(task_id=""), "unsigned")


@pytest.mark.parametrize("depth", [300, 900])
async def test_a_forged_message_with_deep_arguments_is_refused(process: Process, depth: int) -> None:
    message = read(await process.genuine())
    body = json.loads(write(message))
    nest: list[object] = []
    for _ in range(depth):
        nest = [nest]
    body["args"] = nest
    outcome = await process.broker.deliver(json.dumps(body).encode())
    assert process.ran == []
    assert outcome.acks == 1
    await process.serves()


async def test_fields_that_taskiq_does_not_know_are_of_no_use(process: Process) -> None:
    body = json.loads(await process.genuine())
    body |= {"admin": True, "labels_parsed": True, "__class__": "Principal"}
    await process.runs(json.dumps(body).encode())


async def test_fields_given_twice_are_refused_or_mean_what_was_signed(process: Process) -> None:
    genuine = (await process.genuine()).decode()
    outcome = await process.broker.deliver(('{"args":[[9]],' + genuine[1:]).encode())
    assert process.ran == [("clean", ([1, 2], 3))]
    process.ran.clear()
    outcome = await process.broker.deliver((genuine[:-1] + ',"args":[[9]]}').encode())
    assert process.ran == []
    assert outcome.acks == 1


async def test_a_genuine_message_that_grew_by_white_space_still_means_what_was_signed(process: Process) -> None:
    await process.runs(b"\n " + json.dumps(json.loads(await process.genuine()), indent=2).encode() + b"\n")


async def test_the_model_of_a_message_has_no_fields_that_the_signature_leaves_out() -> None:
    assert set(TaskiqMessage.model_fields) == {"task_id", "task_name", "labels", "labels_types", "args", "kwargs"}
