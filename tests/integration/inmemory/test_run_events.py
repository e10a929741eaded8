"""Whoever watches a pipeline sees what becomes of its tasks, and nothing that only an unknown sender says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from taskiq import Context, SimpleRetryMiddleware, TaskiqDepends
from taskiq_pipelines import Pipeline, PipelineMiddleware

from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from tests.attacks.forging import PRINCIPAL, SIGNATURE, read, relabelled, sign, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process

SECRET = "hunter2"


async def happened(process: Process, pipeline: str, subscription: AsyncIterator[RunEvent]) -> list[RunEvent]:
    """All events so far."""
    end = RunEvent(pipeline, "end", RunEventKind.COMPLETED, 0, "end", "end")
    process.security.run_events.publish(end)
    events = []
    while (event := await asyncio.wait_for(anext(subscription), 10)) != end:
        events.append(event)
    return events


def steps(events: list[RunEvent]) -> list[tuple[str, str, str | None]]:
    """What happened to which task, and why."""
    return [(event.kind.value, event.task, event.reason) for event in events]


@pytest.mark.parametrize("later", [0, 10_000])
async def test_of_a_copy_of_what_was_told_nothing_is_told(process: Process, later: float) -> None:
    async with process.security.run_events.subscribe("data") as subscription:
        message = await process.genuine()
        await process.broker.deliver(message)
        process.clock.now += later  # the copy is a replay, or has expired
        await process.broker.deliver(message)
        kinds = [event.kind for event in await happened(process, "data", subscription)]
    assert kinds == [RunEventKind.ENQUEUED, RunEventKind.STARTED, RunEventKind.COMPLETED]


async def test_a_task_is_enqueued_started_and_completed(process: Process) -> None:
    async with process.security.run_events.subscribe("data") as subscription:
        message = await process.genuine()
        process.clock.now += 5
        await process.broker.deliver(message)
        events = await happened(process, "data", subscription)
    assert steps(events) == [("enqueued", "clean", None), ("started", "clean", None), ("completed", "clean", None)]
    assert [event.time - events[0].time for event in events] == [0, 5, 5]
    assert {event.subject for event in events} == {"alice"}
    assert {event.task_id for event in events} == {read(message).task_id}
    assert len({event.run_id for event in events}) == 1


async def test_all_tasks_of_a_run_carry_its_id(new_process: NewProcess) -> None:
    process = new_process(after=(PipelineMiddleware(),))

    @process.broker.task("first", pipeline="data")
    async def first(value: int) -> int:
        return value + 1

    pipeline: Pipeline[Any, Any] = Pipeline(process.broker, first).call_next(process.clean.kicker(), param_name="scale")
    async with process.security.run_events.subscribe("data") as subscription:
        with process.security.acting_as(PROCESSOR):
            await pipeline.kiq(1)
            actor = process.security.actor()
            assert actor is not None
        await process.broker.deliver(process.broker.take())
        await process.broker.deliver(process.broker.take())
        events = await happened(process, "data", subscription)
    assert [(event.kind.value, event.task) for event in events] == [
        ("enqueued", "first"),
        ("started", "first"),
        ("completed", "first"),
        ("enqueued", "clean"),
        ("started", "clean"),
        ("failed", "clean"),  # it lacks an argument
    ]
    assert {event.run_id for event in events} == {actor.txn}


async def test_a_task_that_raises_has_failed_and_its_message_is_told_to_nobody(process: Process) -> None:
    @process.broker.task("failing", pipeline="data")
    async def failing(password: str) -> None:
        raise LookupError(password)

    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(await process.kick(failing, SECRET))
        events = await happened(process, "data", subscription)
    assert steps(events)[-1] == ("failed", "failing", "LookupError")
    assert SECRET not in repr(events)


@pytest.mark.parametrize("before", [True, False])
async def test_a_retry_is_enqueued_and_started_again(new_process: NewProcess, before: bool) -> None:
    retries = (SimpleRetryMiddleware(default_retry_count=2, default_retry_label=True),)
    process = new_process(before=retries) if before else new_process(after=retries)

    @process.broker.task("failing", pipeline="data")
    async def failing() -> None:
        raise LookupError

    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(await process.kick(failing))
        await process.broker.deliver(process.broker.take())
        events = await happened(process, "data", subscription)
    attempt = ["enqueued", "started", "failed"]
    assert sorted(event.kind for event in events) == sorted(2 * attempt)
    assert [event.kind for event in events if event.kind != "enqueued"] == 2 * attempt[1:]
    assert len({(event.run_id, event.task_id) for event in events}) == 1


async def test_a_task_that_is_requeued_has_not_failed(process: Process) -> None:
    @process.broker.task("undecided", pipeline="data")
    async def undecided(context: Context = TaskiqDepends()) -> None:
        if not process.ran:
            process.ran.append(("undecided", None))
            await context.requeue()

    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(await process.kick(undecided))
        await process.broker.deliver(process.broker.take())
        events = await happened(process, "data", subscription)
    assert [event.kind for event in events] == ["enqueued", "started", "enqueued", "started", "completed"]


async def test_a_refusal_is_told_with_its_reason(process: Process, new_process: NewProcess) -> None:
    worker = new_process(pipeline_acls={"data": {"execute": ["somebody else"]}})
    message = await process.genuine()
    async with worker.security.run_events.subscribe("data") as subscription:
        await worker.broker.deliver(message)
        events = await happened(worker, "data", subscription)
    assert steps(events) == [("refused", "clean", "acl")]
    assert events[0].subject == "alice"


async def test_a_message_that_came_too_late_is_told_to_those_who_wait_for_it(process: Process) -> None:
    message = await process.genuine()
    process.clock.now += process.security.config.queue_ttl + 60
    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(message)
        events = await happened(process, "data", subscription)
    assert steps(events) == [("refused", "clean", "expired")]


async def test_a_pipeline_named_by_a_signed_label_counts_and_the_registered_one_first(process: Process) -> None:
    async with (
        process.security.run_events.subscribe("reports") as reports,
        process.security.run_events.subscribe("data") as data,
    ):
        with process.security.acting_as(PROCESSOR, pipeline="data"):
            await process.loose.kiq()
        await process.broker.deliver(process.broker.take())
        mismatched = sign(relabelled(read(await process.genuine()), "pipeline", "reports"))
        await process.broker.deliver(write(mismatched))
        assert await happened(process, "reports", reports) == []
        assert steps(await happened(process, "data", data)) == [
            ("enqueued", "loose", None),
            ("started", "loose", None),
            ("completed", "loose", None),
            ("enqueued", "clean", None),
            ("refused", "clean", "pipeline_mismatch"),
        ]


@pytest.mark.parametrize("enforcement", ["enforce", "monitor"])
@pytest.mark.parametrize("missing", [(SIGNATURE,), (PRINCIPAL,), (PRINCIPAL, SIGNATURE)])
async def test_nothing_is_told_of_a_message_that_is_not_authentic(
    new_process: NewProcess, missing: tuple[str, ...], enforcement: str
) -> None:
    process = new_process(enforcement=enforcement)
    message = read(await process.genuine())
    for label in missing:
        del message.labels[label]
    forged = message.model_copy(update={"task_id": "forged"})
    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(write(forged))
        assert await happened(process, "data", subscription) == []


@pytest.mark.parametrize(
    "forgery", [{"task_id": "another"}, {"task_name": "purge"}, {"args": [[9]]}, {"labels_types": {}}], ids=str
)
async def test_nothing_is_told_of_a_message_that_was_altered(process: Process, forgery: dict[str, object]) -> None:
    message = read(await process.genuine()).model_copy(update=forgery)
    async with process.security.run_events.subscribe("data") as subscription:
        await process.broker.deliver(write(message))
        assert await happened(process, "data", subscription) == []


async def test_nothing_is_told_of_a_task_without_a_pipeline_nor_where_security_is_off(
    new_process: NewProcess, caplog: pytest.LogCaptureFixture
) -> None:
    process = new_process(task_acls={"loose": {"execute": ["processor"]}})
    off = new_process(security_enabled=False)
    for running in (process, off):
        async with running.security.run_events.subscribe("data") as subscription:
            await running.broker.deliver(await running.kick(running.loose))
            if running is off:
                await running.broker.deliver(await running.genuine())
            assert await happened(running, "data", subscription) == []
    assert "could not be told" not in caplog.text


async def test_a_channel_that_fails_touches_no_task(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        watched = True

        def publish(self, event: RunEvent) -> None:
            raise OSError(SECRET)

        async def flush(self) -> None:
            raise OSError(SECRET)

    monkeypatch.setattr(process.security, "run_events", Broken())
    await process.runs(await process.genuine())
    await process.broker.shutdown()
    assert SECRET not in caplog.text
