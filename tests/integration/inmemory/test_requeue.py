"""`Context.requeue` sends the message again for the same principal, whatever its arguments and labels have become."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel
from taskiq import Context, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.abc.serializer import TaskiqSerializer
from taskiq.formatters.json_formatter import JSONFormatter
from taskiq.serializers import CBORSerializer, JSONSerializer, MSGPackSerializer, ORJSONSerializer

from taskiq_flow_security import current_principal
from tests.attacks.forging import principal_of, read
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process, Task


class Color(Enum):
    """An enumeration."""

    RED = "red"


class Order(BaseModel):
    """A model."""

    number: int
    due: datetime


@dataclass
class Point:
    """A dataclass."""

    x: float
    y: float


CASTS: dict[str, tuple[Any, object, object]] = {
    "an integer": (int, "7", 7),
    "a fraction": (float, "7.5", 7.5),
    "a boolean": (bool, "yes", True),
    "bytes": (bytes, "abc", b"abc"),
    "a time": (datetime, "2026-01-01T00:00:00Z", datetime(2026, 1, 1, tzinfo=timezone.utc)),
    "a duration": (timedelta, "PT90S", timedelta(seconds=90)),
    "a decimal": (Decimal, "1.50", Decimal("1.50")),
    "an id": (UUID, str(UUID(int=7)), UUID(int=7)),
    "an enumeration": (Color, "red", Color.RED),
    "a tuple": (tuple[int, ...], [1, 2], (1, 2)),
    "a set": (set[int], [1], {1}),
    "a model": (
        Order,
        {"number": 1, "due": "2026-01-01T00:00:00Z"},
        Order(number=1, due=datetime(2026, 1, 1, tzinfo=timezone.utc)),
    ),
    "a dataclass": (Point, {"x": 1, "y": 2}, Point(1.0, 2.0)),
    "a list of models": (
        list[Order],
        [{"number": 1, "due": "2026-01-01T00:00:00Z"}],
        [Order(number=1, due=datetime(2026, 1, 1, tzinfo=timezone.utc))],
    ),
    "integer keys": (dict[int, int], {"1": 2}, {1: 2}),
}


def _requeuing(process: Process, annotation: Any, times: int = 2) -> Task:
    async def again(value: Any, context: Context = TaskiqDepends()) -> str:
        process.ran.append((current_principal().subject, value))
        if len(process.ran) <= times:
            await context.requeue()
        return str(context.message.labels["X-Taskiq-requeue"])

    again.__annotations__["value"] = annotation
    task: Task = process.broker.task("again", pipeline="data")(again)
    return task


@pytest.mark.parametrize(("annotation", "sent", "seen"), CASTS.values(), ids=CASTS)
async def test_a_requeued_message_runs_with_the_same_arguments_for_the_same_principal(
    process: Process, annotation: Any, sent: object, seen: object
) -> None:
    task = _requeuing(process, annotation)
    message = await process.kick(task, sent)
    for _ in range(2):
        outcome = await process.broker.deliver(message)
        assert outcome.acks == 1
        assert outcome.stored == {}
        again = process.broker.take()
        assert principal_of(read(again)) == principal_of(read(message))
        assert read(again).task_id == read(message).task_id
        message = again
    outcome = await process.broker.deliver(message)
    assert not outcome.result.is_err, outcome.error
    assert outcome.result.return_value == "2"
    assert process.ran == [("alice", seen)] * 3


SERIALIZERS: dict[str, TaskiqSerializer] = {
    "json": JSONSerializer(),
    "orjson": ORJSONSerializer(),
    "msgpack": MSGPackSerializer(),
    "cbor": CBORSerializer(),
}


@pytest.mark.parametrize("serializer", SERIALIZERS.values(), ids=SERIALIZERS)
@pytest.mark.parametrize("formatter", [None, JSONFormatter()], ids=["as it is", "JSONFormatter"])
async def test_a_message_with_labels_of_every_type_is_requeued_with_them(
    process: Process, serializer: TaskiqSerializer, formatter: TaskiqFormatter | None
) -> None:
    process.broker.with_serializer(serializer)
    if formatter is not None:
        process.broker.with_formatter(formatter)
    seen: list[dict[str, Any]] = []

    @process.broker.task("again", pipeline="data")
    async def again(context: Context = TaskiqDepends()) -> None:
        seen.append({name: value for name, value in context.message.labels.items() if name in labels})
        if len(seen) < 3:
            await context.requeue()

    labels: dict[str, Any] = {"b": b"\x00\xff{}", "i": 7, "f": 7.5, "t": True, "s": "7", "e": "", "n": "None"}
    kicker = again.kicker()
    kicker.labels |= labels
    message = await process.kick(kicker)
    for _ in range(2):
        outcome = await process.broker.deliver(message)
        assert outcome.acks == 1
        message = process.broker.take()
    outcome = await process.broker.deliver(message)
    assert not outcome.result.is_err
    assert seen == [labels] * 3


async def test_a_message_that_is_requeued_keeps_its_labels_for_the_hooks_that_follow(new_process: NewProcess) -> None:
    seen: list[object] = []

    class Reader(TaskiqMiddleware):
        def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
            seen.append(message.labels["b"])

    process = new_process(after=(Reader(),))

    @process.broker.task("again", pipeline="data")
    async def again(context: Context = TaskiqDepends()) -> None:
        await context.requeue()

    kicker = again.kicker()
    kicker.labels |= {"b": b"abc"}  # as libraries of pipelines do
    assert (await process.broker.deliver(await process.kick(kicker))).acks == 1
    assert seen == [b"abc"]


async def test_a_requeued_message_is_decided_about_again(process: Process) -> None:
    task = _requeuing(process, int)
    await process.broker.deliver(await process.kick(task, 7))
    process.ran.clear()
    process.clock.now += 100_000
    await process.refuses(process.broker.take(), "expired")


async def test_a_message_is_requeued_within_the_time_to_live_of_its_first_kick_and_not_after_it(
    process: Process,
) -> None:
    task = _requeuing(process, int)
    message = await process.kick(task, 7)
    for _ in range(2):
        process.clock.now += 40_000
        await process.broker.deliver(message)
        message = process.broker.take()
    process.clock.now += 40_000
    assert (await process.broker.deliver(message)).reason == "expired"
    assert len(process.ran) == 2


async def test_a_requeue_is_one_event_on_each_side_in_the_same_transaction(process: Process) -> None:
    task = _requeuing(process, int, times=1)
    message = await process.kick(task, 7)
    await process.broker.deliver(message)
    await process.broker.deliver(process.broker.take())
    entries = process.audit.take()
    assert [entry.event for entry in entries] == ["task_enqueued", "task_authz_allow"] * 2
    assert len({entry.txn for entry in entries}) == 1
    assert entries[0].jti == entries[1].jti != entries[2].jti == entries[3].jti


async def test_a_requeue_where_security_is_only_monitored_goes_on_for_somebody_unknown(
    new_process: NewProcess,
) -> None:
    process = new_process(enforcement="monitor")
    task = _requeuing(process, int, times=1)
    await task.kiq(7)
    await process.broker.deliver(process.broker.take())
    outcome = await process.broker.deliver(process.broker.take())
    assert not outcome.result.is_err
    assert process.ran == [("anonymous", 7)] * 2
