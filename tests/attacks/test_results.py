"""No forged, stale or refused message replaces or invents a result of something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from taskiq import TaskiqMessage, TaskiqResult
from taskiq.brokers.inmemory_broker import InmemoryResultBackend

from tests.attacks.forging import ABSENT, SIGNATURE, STRANGER_SEND_KEY, read, relabelled, sign, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process

Forge = Callable[[TaskiqMessage], TaskiqMessage]

FORGERIES: dict[str, Forge] = {
    "unsigned": lambda message: message.model_copy(update={"labels": {}, "labels_types": None}),
    "without a signature": lambda message: relabelled(message, SIGNATURE, ABSENT),
    "altered": lambda message: message.model_copy(update={"args": [[9, 9, 9]]}),
    "signed by a stranger": lambda message: sign(message, STRANGER_SEND_KEY),
    "expired": lambda message: sign(message, header={"exp": 1_799_999_000}),
    "not valid yet": lambda message: sign(message, header={"iat": 1_800_009_000}),
    "for a task in another pipeline": lambda message: sign(message.model_copy(update={"task_name": "report"})),
    "with an unknown ack type": lambda message: sign(relabelled(message, "ack_type", "never")),
}

each_forgery = pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)


@each_forgery
async def test_a_result_stays_as_it_is_whatever_comes_under_its_task_id(process: Process, forge: Forge) -> None:
    data = await process.genuine()
    task_id = read(data).task_id
    result = (await process.runs(data)).result
    outcome = await process.broker.deliver(write(forge(read(data))))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.stored == {}
    assert process.broker.result_backend.results[task_id] is result


@each_forgery
async def test_what_is_refused_writes_one_result_under_its_own_task_id_at_most(process: Process, forge: Forge) -> None:
    data = await process.genuine()
    outcome = await process.broker.deliver(write(forge(read(data))))
    assert outcome.stored.keys() <= {read(data).task_id}


@each_forgery
async def test_the_genuine_message_still_gives_its_result_after_a_forgery_under_its_task_id(
    process: Process, forge: Forge
) -> None:
    data = await process.genuine()
    await process.broker.deliver(write(forge(read(data))))
    assert (await process.runs(data)).result.return_value == 6


@each_forgery
async def test_the_result_of_a_forgery_holds_nothing_of_what_it_brought(process: Process, forge: Forge) -> None:
    message = relabelled(read(await process.genuine()), "planted", "planted-by-the-attacker")
    message = message.model_copy(update={"args": ["planted-by-the-attacker"]})
    outcome = await process.broker.deliver(write(forge(message)))
    unauthentic = forge(message).labels.get(SIGNATURE) in (None, message.labels[SIGNATURE])
    if unauthentic or forge is FORGERIES["signed by a stranger"]:
        assert "planted-by-the-attacker" not in outcome.result.model_dump_json()


class BrokenBackend(InmemoryResultBackend[Any]):
    """A result backend that cannot be reached."""

    async def is_result_ready(self, task_id: str) -> bool:
        raise ConnectionError("the store is away")


class ReadOnlyBackend(InmemoryResultBackend[Any]):
    """A result backend that takes nothing."""

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        raise ConnectionError("the store is away")


@each_forgery
@pytest.mark.parametrize("backend", [BrokenBackend, ReadOnlyBackend])
async def test_what_is_refused_is_acked_though_the_result_backend_is_away(
    process: Process, forge: Forge, backend: type[InmemoryResultBackend[Any]]
) -> None:
    data = await process.genuine()
    process.broker.result_backend = backend()
    outcome = await process.broker.deliver(write(forge(read(data))))
    assert process.ran == []
    assert outcome.acks == 1
    assert outcome.stored == {}


async def test_a_forgery_cannot_report_progress_or_results_for_another_task(
    process: Process, new_process: NewProcess
) -> None:
    data = await process.genuine()
    other = read(await process.genuine())
    await process.broker.deliver(write(read(data).model_copy(update={"task_id": other.task_id})))
    backend = process.broker.result_backend
    assert read(data).task_id not in backend.results
    assert backend.progress == {}
