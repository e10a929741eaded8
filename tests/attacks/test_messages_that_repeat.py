"""A short message that says terabytes, by references within it, costs the worker neither its memory nor its time."""

from __future__ import annotations

import subprocess
import sys
from time import perf_counter
from typing import NoReturn

import cbor2
import pytest
from taskiq.exceptions import SendTaskError
from taskiq.serializers import CBORSerializer

from taskiq_flow_security import UnsignableMessageError
from tests.attacks.bombs import BOMBS, message
from tests.attacks.forging import read
from tests.integration.inmemory.harness import Process

SECONDS = 20


@pytest.mark.parametrize("name", BOMBS)
def test_a_message_of_few_bytes_that_says_terabytes_ends_no_worker(name: str) -> None:
    command = [sys.executable, "-m", "tests.attacks.bombs", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 3, check=False)
    assert done.stdout == "1 malformed []", done.stderr[-2000:]


async def test_long_numbers_for_types_of_labels_take_no_time_that_grows_as_their_square(process: Process) -> None:
    forged = read(await process.genuine()).model_dump()
    process.broker.with_serializer(CBORSerializer())
    forged["labels_types"] = {"note": 1 << 8_000_000}
    before = perf_counter()
    await process.refuses(process.broker.serializer.dumpb(forged), "malformed")
    assert perf_counter() - before < SECONDS


@pytest.mark.parametrize("sharing", [False, True])
async def test_a_text_or_list_that_is_sent_a_thousand_times_arrives(process: Process, sharing: bool) -> None:
    process.broker.with_serializer(CBORSerializer(value_sharing=sharing))
    text, row = "what is said again " * 50, ["a", "list"]
    sent = [text] * 1000 + [row] * 1000 + [[]] * 1000
    data = await process.kick(process.echo, sent)
    assert len(data) < 20_000 + 1000 * len(text) / 10
    await process.broker.deliver(data)
    assert process.ran == [("echo", sent)]


async def test_a_text_that_is_sent_too_often_for_any_worker_to_believe_is_an_error_at_the_kick(
    process: Process,
) -> None:
    process.broker.with_serializer(CBORSerializer())
    with pytest.raises(SendTaskError) as error:
        await process.kick(process.echo, ["a" * 10_000] * 10_000)
    assert isinstance(error.value.__cause__, UnsignableMessageError)
    assert "repeat so often" in str(error.value.__cause__)
    assert process.broker.sent == []


async def test_a_long_message_that_repeats_nothing_arrives(process: Process) -> None:
    process.broker.with_serializer(CBORSerializer())
    await process.broker.deliver(await process.kick(process.echo, "a" * 20_000_000))
    assert len(process.ran) == 1


class _WithoutFractions(CBORSerializer):
    """As the README says."""

    def loadb(self, value: bytes) -> object:
        return cbor2.loads(value, semantic_decoders={4: _refuse, 5: _refuse})


def _refuse(_decoder: object, *_: object) -> NoReturn:
    raise ValueError("no message holds decimal fractions or bigfloats")


async def test_a_serializer_that_reads_no_decimal_fractions_spends_no_time_on_them(process: Process) -> None:
    process.broker.with_serializer(_WithoutFractions())
    fraction = b"\x81" + cbor2.dumps(cbor2.CBORTag(4, [0, 1 << 2_000_000]))
    before = perf_counter()
    await process.drops(message(fraction), "unreadable")
    assert perf_counter() - before < 2
