"""Middlewares that kick tasks of their own when one fails."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult

from tests.attacks.forging import write
from tests.integration.inmemory.fixtures import NewProcess


class Alarm(TaskiqMiddleware):
    """Kicks a task for each one that fails."""

    rung = 0

    async def on_error(self, message: TaskiqMessage, _result: TaskiqResult[Any], _exception: BaseException) -> None:
        self.rung += 1
        task = self.broker.find_task("clean")
        assert task is not None
        await task.kiq([1])


@pytest.mark.parametrize("position", ["before", "after"])
async def test_an_alarm_over_a_forged_message_kicks_nothing_and_does_not_keep_it_from_being_acked(
    new_process: NewProcess, position: str
) -> None:
    alarm = Alarm()
    process = new_process(before=(alarm,)) if position == "before" else new_process(after=(alarm,))
    forged = TaskiqMessage(task_id="forged", task_name="clean", labels={}, args=[[1]], kwargs={})
    outcome = await process.broker.deliver(write(forged))
    assert alarm.rung == 1
    assert outcome.acks == 1
    assert outcome.reason == "unsigned"
    assert process.broker.sent == []
