"""CBOR messages of a few hundred bytes that say terabytes, by references to values that they hold once.

Run as a program with the name of one, it delivers that to a worker with little memory, and prints what becomes of it.
"""

from __future__ import annotations

import asyncio
import resource
import sys

import cbor2
from taskiq.serializers import CBORSerializer

from tests.attacks.forging import PRINCIPAL, SIGNATURE
from tests.integration.inmemory.harness import AuditTrail, Clock, Process

MEMORY = 2 * 2**30

_SHARED = b"\xd8\x1c"
"""Tag 28: what follows can be referred to (http://cbor.schmorp.de/value-sharing)."""
_FIRST = b"\xd8\x1d\x00"
"""Tag 29: the first of these again."""
_BREAK = b"\xff"


def _nested() -> bytes:
    nest: object = ["aaaaaaaaaa"]
    for _ in range(12):
        nest = [nest] * 10
    return cbor2.dumps([nest], value_sharing=True)


def _flat(value: object, times: int) -> bytes:
    return b"\x9f" + _SHARED + cbor2.dumps(value) + _FIRST * times + _BREAK


def _cycle(times: int) -> bytes:
    return b"\x81" + _SHARED + b"\x9f" + _FIRST * times + _BREAK


BOMBS = {
    "nested lists": _nested(),
    "a long text again and again": _flat("a" * 1_000_000, 9_999),
    "long bytes again and again": _flat(b"a" * 1_000_000, 9_999),
    "a long number again and again": _flat(1 << 14_000, 1_000_000),
    "a long list again and again": _flat([0] * 1_000_000, 9_999),
    "a list that holds itself": _cycle(1),
    "a list that holds itself again and again": _cycle(100_000),
}


def message(arguments: bytes) -> bytes:
    """A forged message for a task that the worker has, with these arguments."""
    labels = {PRINCIPAL: "a", SIGNATURE: "a.b.c"}
    fields = cbor2.dumps({"task_id": "x", "task_name": "echo", "labels": labels, "kwargs": {}})
    return bytes([fields[0] + 1]) + fields[1:] + cbor2.dumps("args") + arguments


async def _deliver(data: bytes) -> None:
    process = Process(AuditTrail(), Clock())
    process.broker.with_serializer(CBORSerializer())
    outcome = await process.broker.deliver(data)
    sys.stdout.write(f"{outcome.acks} {outcome.reason} {process.ran}")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    asyncio.run(_deliver(message(BOMBS[sys.argv[1]])))
