"""What is stored for a scheduler: it lets nobody send in another's name, and loses nothing."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from taskiq import ScheduledTask, ScheduleSource, SmartRetryMiddleware, TaskiqScheduler

from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Process


class Store(ScheduleSource):
    """A place for schedules, which others may be able to write to as well."""

    def __init__(self) -> None:
        self.schedules: list[ScheduledTask] = []

    async def get_schedules(self) -> list[ScheduledTask]:
        return list(self.schedules)

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.schedules.append(schedule)


@pytest.mark.xfail(strict=True, reason="schedules carry no grant of their own yet: see the README")
async def test_a_principal_taken_from_the_store_of_schedules_runs_nothing_else(process: Process) -> None:
    store = Store()
    kicker = process.clean.kicker().with_labels(**process.security.labels_for(PROCESSOR))
    await kicker.schedule_by_time(store, datetime.now(timezone.utc), [1])
    (stored,) = store.schedules
    moved = stored.model_copy(update={"task_name": "purge", "args": [[6, 6, 6]]})
    try:
        await TaskiqScheduler(process.broker, [store]).on_ready(store, moved)
    except Exception:
        return
    await process.broker.deliver(process.broker.take())
    assert process.ran == []


@pytest.mark.xfail(strict=True, reason="schedules carry no grant of their own yet: see the README")
async def test_a_retry_through_a_schedule_is_made_for_who_kicked_the_task(new_process: NewProcess) -> None:
    store = Store()
    process = new_process(after=(SmartRetryMiddleware(schedule_source=store),))

    @process.broker.task("fail", pipeline="data", retry_on_error=True)
    async def fail() -> None:
        process.ran.append(("fail", None))
        raise ValueError

    await process.broker.deliver(await process.kick(fail))
    (retry,) = store.schedules
    await TaskiqScheduler(process.broker, [store]).on_ready(store, retry)
    await process.broker.deliver(process.broker.take())
    assert process.ran == [("fail", None), ("fail", None)]
