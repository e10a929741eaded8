"""A kick that a middleware makes in a hook and that is refused keeps no message from being acked and answered."""

from __future__ import annotations

from typing import Any

import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow_security import AuthenticationError, guard
from tests.attacks.forging import claims_of, principal_of, read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import PROCESSOR, Kickable, Process


class Kicker(TaskiqMiddleware):
    """Kicks a task in one of its hooks, for every message but those that it has kicked itself."""

    def __init__(self, hook: str, task_name: str) -> None:
        super().__init__()
        self._hook = hook
        self._task_name = task_name
        self.labels: dict[str, str] = {}

    async def _reach(self, hook: str, message: TaskiqMessage) -> None:
        if hook == self._hook and message.task_name != self._task_name:
            task = self.broker.find_task(self._task_name)
            assert task is not None
            kicker: Kickable = task.kicker().with_labels(**self.labels)
            await kicker.kiq()

    async def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        await self._reach("on_error", message)

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        await self._reach("post_execute", message)

    async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        await self._reach("post_save", message)


each_hook = pytest.mark.parametrize("hook", ["on_error", "post_execute", "post_save"])
each_position = pytest.mark.parametrize("position", ["before", "after"])
each_hook_of_an_answered_task = pytest.mark.parametrize(
    ("position", "hook"),
    # Where the other middleware stands after, TaskIQ calls its `on_error` first, when nothing tells it from the task's
    # own function yet; the README says so.
    [
        ("before", "on_error"),
        *((position, hook) for position in ("before", "after") for hook in ("post_execute", "post_save")),
    ],
)


def _process(new_process: NewProcess, kicker: Kicker, position: str) -> Process:
    process = new_process(before=(kicker,)) if position == "before" else new_process(after=(kicker,))

    @process.broker.task("failing", pipeline="data")
    async def failing() -> None:
        raise LookupError("no such row")

    @process.broker.task("rare", pipeline="data")
    @guard(rate_limit="1/hour")
    async def rare() -> None: ...

    return process


async def _fails(process: Process) -> None:
    """Check that a task that fails is acked, and that its waiter is told why."""
    failing = process.broker.local_task_registry["failing"]
    outcome = await process.broker.deliver(await process.kick(failing))
    assert outcome.acks == 1
    assert isinstance(outcome.error, LookupError)


@each_hook_of_an_answered_task
async def test_a_kick_that_is_denied_keeps_no_task_that_has_failed_from_being_answered(
    new_process: NewProcess, hook: str, position: str
) -> None:
    await _fails(_process(new_process, Kicker(hook, "report"), position))


@each_hook_of_an_answered_task
async def test_a_kick_beyond_a_rate_limit_keeps_no_task_that_has_failed_from_being_answered(
    new_process: NewProcess, hook: str, position: str
) -> None:
    process = _process(new_process, Kicker(hook, "rare"), position)
    for _ in range(3):
        await _fails(process)
        process.broker.sent.clear()


@each_hook
@each_position
async def test_a_kick_in_the_name_of_a_principal_of_its_own_is_sent_for_a_refused_message_too(
    new_process: NewProcess, hook: str, position: str
) -> None:
    kicker = Kicker(hook, "echo")
    process = _process(new_process, kicker, position)
    kicker.labels = process.security.labels_for(PROCESSOR)
    forged = TaskiqMessage(task_id="forged", task_name="clean", labels={}, args=[[1]], kwargs={})
    outcome = await process.broker.deliver(write(forged))
    assert outcome.acks == 1
    assert isinstance(outcome.error, AuthenticationError)
    assert claims_of(principal_of(read(process.broker.take())))["sub"] == "alice"
