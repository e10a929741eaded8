"""What a task does in a worker process is seen in the process that watches its pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from taskiq_flow_security.runs.events import RunEvent, RunEventKind
from tests.integration.client import Client, result_of
from tests.integration.conftest import NewTransport, StartWorker
from tests.integration.messages import FORGERIES
from tests.integration.settings import PROCESSOR, SECRETS
from tests.integration.worker_app import clean, crunch, purge
from tests.services import REDIS_URL

SECONDS = 30


async def take(events: AsyncIterator[RunEvent], number: int) -> list[RunEvent]:
    """The next events. Those of one process come in their order; what another one says may overtake them."""
    taken = [await asyncio.wait_for(anext(events), SECONDS) for _ in range(number)]
    of_worker = [event.time for event in taken if event.kind != RunEventKind.ENQUEUED]
    assert of_worker == sorted(of_worker)
    return sorted(taken, key=lambda event: event.time)


async def test_events_of_workers_arrive_in_order(new_transport: NewTransport, start_worker: StartWorker) -> None:
    transport = new_transport("redis-stream")
    variables = {"TASKIQ_FLOW_SHARED_STORE": REDIS_URL, "TASKIQ_FLOW_PRINCIPAL_AUDIENCE": transport.name}
    worker = start_worker(transport, "--max-async-tasks", "1", **variables)
    async with Client(transport, shared_store=REDIS_URL, principal_audience=transport.name) as client:
        events = client.security.run_events
        async with events.subscribe("data") as data, events.subscribe("restricted") as restricted:
            kicked = await client.kick(clean, PROCESSOR, client.new_marker(), [1, 2])
            seen = await take(data, 3)
            assert [event.kind for event in seen] == ["enqueued", "started", "completed"]
            assert {event.task_id for event in seen} == {kicked.task_id}
            assert {event.task for event in seen} == {clean.task_name}
            assert {event.subject for event in seen} == {"alice"}
            assert len({event.run_id for event in seen}) == 1

            for forgery in FORGERIES:
                await client.inject(forgery("forged", client.new_marker()))
            await client.kick(crunch, PROCESSOR, client.new_marker())
            assert [(event.kind, event.task) for event in await take(data, 3)] == [
                ("enqueued", crunch.task_name),
                ("started", crunch.task_name),
                ("completed", crunch.task_name),
            ]

            failing = await client.kick(clean, PROCESSOR, client.new_marker(), ["not a number"])  # type: ignore[list-item]  # so that it fails
            assert (await result_of(failing)).is_err
            assert [(event.kind, event.reason) for event in await take(data, 3)] == [
                ("enqueued", None),
                ("started", None),
                ("failed", "TypeError"),
            ]

            await client.kick(purge, PROCESSOR, client.new_marker())
            assert [(event.kind, event.reason) for event in await take(restricted, 2)] == [
                ("enqueued", None),
                ("refused", "acl"),
            ]

            last = await client.kick(clean, PROCESSOR, client.new_marker(), [])
            await result_of(last)
            worker.stop()  # it sends what is left
            assert [event.task_id for event in await take(data, 3)] == [last.task_id] * 3
        await events.close()
    assert "could not be told" not in worker.output
    assert not any(secret in worker.output for secret in SECRETS)
