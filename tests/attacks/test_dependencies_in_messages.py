"""Arguments in a message do not stand in for what TaskIQ's dependencies tell a task."""

from __future__ import annotations

from typing import Annotated

from taskiq import Context, TaskiqDepends

from taskiq_flow_security import Principal, current_principal, guard
from tests.integration.inmemory.harness import PROCESSOR, Process, Task

ROOT = {
    "subject": "root",
    "roles": ["administrator"],
    "permissions": ["admin"],
    "pipelines": [],
    "api_key_id": None,
    "txn": None,
    "expires_at": None,
}
"""What TaskIQ would make a `Principal` of, where a parameter is declared as one."""


async def _callers(process: Process, task: Task, seen: list[object]) -> list[object]:
    """Who the task believes to be its caller, when it is kicked with a caller among its arguments."""
    try:
        data = await process.kick(task, [1], caller=ROOT)
    except Exception:
        return []
    await process.broker.deliver(data)
    return seen


async def test_a_message_does_not_say_who_its_caller_is(process: Process) -> None:
    seen: list[object] = []

    @process.broker.task("whose", pipeline="data")
    async def whose(rows: list[int], caller: Principal = TaskiqDepends(current_principal)) -> None:
        seen.append(caller)

    assert await _callers(process, whose, seen) in ([], [PROCESSOR])


async def test_a_message_does_not_tell_a_guarded_task_who_its_caller_is(process: Process) -> None:
    seen: list[object] = []

    @process.broker.task("whose", pipeline="data")
    @guard(roles=["processor"])
    async def whose(rows: list[int], caller: Annotated[Principal, TaskiqDepends(current_principal)]) -> None:
        seen.append(caller)

    assert await _callers(process, whose, seen) in ([], [PROCESSOR])


async def test_a_message_does_not_stand_in_for_its_tasks_context(process: Process) -> None:
    seen: list[object] = []

    @process.broker.task("whose", pipeline="data")
    async def whose(rows: list[int], caller: Context = TaskiqDepends()) -> None:
        seen.append(type(caller))

    assert await _callers(process, whose, seen) in ([], [Context])
