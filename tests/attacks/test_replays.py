"""Whoever has a copy of a message can make nobody do anything again, nor fill the memory with it."""

from __future__ import annotations

import asyncio
import json

import pytest

from taskiq_flow_security.config import SigningKeyConfig
from tests.attacks.forging import read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Outcome, Process

KEY = "the-key-of-this-deployment-0123456789-abcdefgh"


def key(kid: str) -> SigningKeyConfig:
    """A key that may do everything."""
    return SigningKeyConfig.model_validate({"kid": kid, "alg": "HS256", "uses": ["issue", "send"], "secret": KEY + kid})


def remembered(process: Process) -> int:
    """How many messages the process remembers."""
    assert process.security.replays is not None
    return process.security.replays.own.remembered


async def test_ten_thousand_copies_run_nothing_and_take_no_memory(process: Process) -> None:
    message = await process.genuine()
    await process.runs(message)
    for _ in range(10_000):
        assert await process.broker.deliver(message) == Outcome(acks=1, stored={})
    assert process.ran == []
    assert remembered(process) == 1


async def test_what_is_refused_takes_no_memory(process: Process) -> None:
    message = read(await process.genuine())
    for number in range(100):
        forged = message.model_copy(update={"task_id": f"forged-{number}"})
        await process.broker.deliver(write(forged))
    assert remembered(process) == 0


@pytest.mark.parametrize("change", [b" ", b"\n\t "])
async def test_a_copy_that_is_spelled_otherwise_is_the_same_message(process: Process, change: bytes) -> None:
    message = await process.genuine()
    await process.runs(message)
    respelled = json.dumps(json.loads(message), separators=(", ", ":  ")).encode() + change
    process.audit.take()
    outcome = await process.broker.deliver(respelled)
    assert process.ran == []
    assert outcome == Outcome(acks=1, stored={})
    assert [entry.reason for entry in process.audit.take()] == ["replayed"]


async def test_a_copy_with_another_id_is_no_copy_but_a_forgery(process: Process) -> None:
    message = await process.genuine()
    await process.runs(message)
    moved = read(message).model_copy(update={"task_id": "another"})
    await process.refuses(write(moved), "bad_signature")


async def test_a_message_that_another_key_has_signed_under_the_same_id_keeps_none_from_running(
    new_process: NewProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskiq_flow_security.tokens.message_signature.new_id", lambda: "the-same")
    ours, theirs = key("ours"), key("theirs")
    worker = new_process(signing_keys=[ours, theirs])
    mine, stolen = [new_process(signing_keys=[first, other]) for first, other in ((ours, theirs), (theirs, ours))]
    await worker.runs(await stolen.genuine())
    await worker.runs(await mine.genuine())


async def test_copies_at_the_same_moment_leave_one_result_and_are_all_acked(process: Process) -> None:
    message = await process.genuine()
    outcomes = await asyncio.gather(*(process.broker.deliver(message) for _ in range(50)))
    assert [outcome.acks for outcome in outcomes] == [1] * 50
    assert len(process.broker.result_backend.results) == 1
