"""Arguments in a message do not stand in for what TaskIQ's dependencies tell a task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import pytest
from fastapi import Depends
from taskiq import Context, TaskiqDepends

from taskiq_flow_security import AccessDeniedError, Principal, current_principal, guard
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import Process, Task

F = TypeVar("F", bound=Callable[..., Any])

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


async def _is_refused(process: Process, function: Callable[..., Any], api: Process) -> None:
    """Check that a caller among the arguments of a task that runs this is refused at the kick, where the task is known
    as it is; and by the worker, where `api` knows another one under its name.
    """
    task: Task = process.broker.register_task(function, "whose", pipeline="data")
    with pytest.raises(AccessDeniedError) as denied:
        await process.kick(task, [1], caller=ROOT)
    assert denied.value.reason == "dependency_in_arguments"
    assert process.broker.sent == []

    async def anything(rows: list[int], caller: object = None) -> None: ...

    unlike = api.broker.register_task(anything, "whose", pipeline="data")
    await process.refuses_authentic(await api.kick(unlike, [1], caller=ROOT), "dependency_in_arguments")


async def test_a_message_does_not_say_who_its_caller_is(process: Process, new_process: NewProcess) -> None:
    async def whose(rows: list[int], caller: Principal = TaskiqDepends(current_principal)) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())


async def test_a_message_does_not_tell_a_guarded_task_who_its_caller_is(
    process: Process, new_process: NewProcess
) -> None:
    @guard(roles=["processor"])
    async def whose(rows: list[int], caller: Annotated[Principal, TaskiqDepends(current_principal)]) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())


async def test_a_message_does_not_stand_in_for_its_tasks_context(process: Process, new_process: NewProcess) -> None:
    async def whose(rows: list[int], caller: Context = TaskiqDepends()) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())


async def test_a_message_does_not_stand_in_for_a_dependency_of_fastapi(
    process: Process, new_process: NewProcess
) -> None:
    @guard(roles=["processor"])
    async def whose(rows: list[int], caller: Principal = Depends(current_principal)) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())


async def test_a_message_does_not_stand_in_for_a_dependency_that_a_decorator_hides(
    process: Process, new_process: NewProcess
) -> None:
    def decorated(function: F) -> F:
        @functools.wraps(function, assigned=("__name__", "__qualname__", "__module__"))
        async def wrapper(*args: object, **kwargs: object) -> object:
            return await function(*args, **kwargs)

        return cast("F", wrapper)

    @decorated
    async def whose(rows: list[int], caller: Annotated[Principal, TaskiqDepends(current_principal)]) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())


async def test_a_message_does_not_stand_in_for_a_dependency_that_may_be_left_out(
    process: Process, new_process: NewProcess
) -> None:
    async def whose(
        rows: list[int],
        caller: Annotated[Principal, TaskiqDepends(current_principal)] = None,  # type: ignore[assignment]  # as many write it
    ) -> None:
        process.ran.append(("whose", caller))

    await _is_refused(process, whose, new_process())
