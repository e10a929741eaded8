"""Messages that travel as the bytes that were signed mean just that, wherever somebody puts the signature."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from taskiq.serializers import MSGPackSerializer

from tests.attacks.forging import SIGNATURE, read, signature_of
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process

VALUE = {"labels": {"note": "7"}, "kwargs": {"labels": {}}}
"""An argument that looks like a message."""


def _label(signature: str) -> bytes:
    return f'"{SIGNATURE}":"{signature}",'.encode()


def _in_an_argument(data: bytes, signature: str) -> bytes:
    head, _, tail = data.replace(_label(signature), b"").rpartition(b'"labels":{"note"')
    return head + b'"labels":{' + _label(signature) + b'"note"' + tail


def _among_the_fields(data: bytes, signature: str) -> bytes:
    return b"{" + _label(signature) + data.replace(_label(signature), b"")[1:]


def _twice(data: bytes, signature: str) -> bytes:
    return data.replace(_label(signature), _label(signature) + _label("a..b"))


def _twice_the_other_first(data: bytes, signature: str) -> bytes:
    return data.replace(_label(signature), _label("a..b") + _label(signature))


def _with_labels_twice(data: bytes, signature: str) -> bytes:
    return b'{"labels":{"pipeline":"reports"},' + data[1:]


def _with_another_message_behind(data: bytes, signature: str) -> bytes:
    return data + b'{"task_name":"purge"}'


def _with_another_message_in_front(data: bytes, signature: str) -> bytes:
    return b'{"task_name":"purge"}' + data


def _with_a_byte_order_mark(data: bytes, signature: str) -> bytes:
    return b"\xef\xbb\xbf" + data


def _as_utf_16(data: bytes, signature: str) -> bytes:
    return data.decode().encode("utf-16")


Move = Callable[[bytes, str], bytes]
MOVES: tuple[Move, ...] = (
    _in_an_argument,
    _among_the_fields,
    _twice,
    _twice_the_other_first,
    _with_labels_twice,
    _with_another_message_behind,
    _with_another_message_in_front,
    _with_a_byte_order_mark,
    _as_utf_16,
)


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__.strip("_"))
async def test_a_message_means_what_was_signed_or_nothing(process: Process, move: Move) -> None:
    data = await process.kick(process.echo, VALUE)
    moved = move(data, signature_of(read(data)))
    assert moved != data
    outcome = await process.broker.deliver(moved)
    assert outcome.acks == 1
    assert process.ran in ([], [("echo", VALUE)])
    process.ran.clear()
    await process.serves()


async def test_a_message_of_another_format_means_what_was_signed(process: Process, new_process: NewProcess) -> None:
    worker = new_process()
    worker.broker.with_serializer(MSGPackSerializer())
    await worker.broker.deliver(await process.kick(process.echo, VALUE))
    assert worker.ran == [("echo", VALUE)]
