"""No dependency of a refused message is resolved, and every one of an allowed message is."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any

import pytest
from taskiq import Context, TaskiqDepends, TaskiqState

from taskiq_flow_security import AccessDeniedError, Principal, current_principal, guard
from tests.attacks.forging import read, write
from tests.integration.inmemory.fixtures import NewProcess
from tests.integration.inmemory.harness import VIEWER, Process, Task

_log: list[str] = []


def plain() -> str:
    _log.append("plain")
    return "plain"


async def coroutine() -> str:
    _log.append("coroutine")
    return "coroutine"


def generator() -> Generator[str, None, None]:
    _log.append("generator")
    yield "generator"
    _log.append("generator closed")


async def async_generator() -> AsyncGenerator[str, None]:
    _log.append("async_generator")
    yield "async_generator"
    _log.append("async_generator closed")


@contextmanager
def manager() -> Generator[str, None, None]:
    _log.append("manager")
    yield "manager"
    _log.append("manager closed")


@asynccontextmanager
async def async_manager() -> AsyncGenerator[str, None]:
    _log.append("async_manager")
    yield "async_manager"
    _log.append("async_manager closed")


def from_context(context: Context = TaskiqDepends()) -> str:
    _log.append("from_context")
    return context.message.task_name


def from_state(state: TaskiqState = TaskiqDepends()) -> str:
    _log.append("from_state")
    return type(state).__name__


def from_principal(principal: Principal = TaskiqDepends(current_principal)) -> str:
    _log.append("from_principal")
    return principal.subject


def nested(value: str = TaskiqDepends(from_context)) -> str:
    _log.append("nested")
    return value


def uncached() -> str:
    _log.append("uncached")
    return "uncached"


class ByClass:
    """A dependency that is a class."""

    def __init__(self, value: str = TaskiqDepends(nested)) -> None:
        _log.append("ByClass")
        self.value = value


EVERY = ["plain", "coroutine", "generator", "async_generator", "manager", "async_manager", "from_context"]
EVERY += ["from_state", "from_principal", "nested", "uncached", "uncached", "ByClass"]


def _dependent(process: Process, guarded: bool) -> Task:
    async def dependent(
        a: str = TaskiqDepends(plain),
        b: str = TaskiqDepends(coroutine),
        c: str = TaskiqDepends(generator),
        d: str = TaskiqDepends(async_generator),
        e: str = TaskiqDepends(manager),
        f: str = TaskiqDepends(async_manager),
        g: str = TaskiqDepends(from_state),
        h: str = TaskiqDepends(from_principal),
        i: str = TaskiqDepends(uncached, use_cache=False),
        j: str = TaskiqDepends(uncached, use_cache=False),
        k: ByClass = TaskiqDepends(),
        annotated: Annotated[str, TaskiqDepends(plain)] = "",
        context: Context = TaskiqDepends(),
    ) -> list[str]:
        process.ran.append(("dependent", None))
        return [a, b, c, d, e, f, g, h, i, j, k.value, annotated, context.message.task_name]

    function = guard()(dependent) if guarded else dependent
    task: Task = process.broker.task("dependent", pipeline="data")(function)
    return task


each_guard = pytest.mark.parametrize("guarded", [False, True], ids=["unguarded", "guarded"])


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    _log.clear()


@each_guard
async def test_an_allowed_message_resolves_and_closes_all_its_dependencies(process: Process, guarded: bool) -> None:
    task = _dependent(process, guarded)
    outcome = await process.broker.deliver(await process.kick(task))
    assert not outcome.result.is_err, outcome.result.error
    values = ["plain", "coroutine", "generator", "async_generator", "manager", "async_manager", "TaskiqState"]
    assert outcome.result.return_value == [*values, "alice", "uncached", "uncached", "dependent", "plain", "dependent"]
    closed = {"generator closed", "async_generator closed", "manager closed", "async_manager closed"}
    assert sorted(_log) == sorted([*EVERY, *closed])


@each_guard
async def test_a_forged_message_resolves_none(process: Process, guarded: bool) -> None:
    message = read(await process.kick(_dependent(process, guarded)))
    await process.refuses(write(message.model_copy(update={"args": ["x"]})), "bad_signature")
    assert _log == []


@each_guard
async def test_a_denied_message_resolves_none(process: Process, new_process: NewProcess, guarded: bool) -> None:
    api = new_process(pipeline_acls={"data": {"execute": ["viewer"]}})
    _dependent(process, guarded)
    await process.refuses(await api.kick(_dependent(api, guarded), principal=VIEWER), "acl", AccessDeniedError)
    assert _log == []


async def test_a_message_refused_beside_one_that_runs_resolves_none(process: Process) -> None:
    task = _dependent(process, guarded=False)
    forged = write(read(await process.kick(task)).model_copy(update={"args": ["x"]}))
    for _ in range(5):
        await process.broker.deliver(forged)
        await process.broker.deliver(await process.kick(task))
    assert len(process.ran) == 5
    assert _log.count("plain") == 5


async def test_first_level_dependencies_that_the_user_adds_are_there(process: Process) -> None:
    class Database:
        """What a user hands to all tasks."""

    database = Database()
    process.broker.add_dependency_context({Database: database})

    async def dependent(given: Database = TaskiqDepends()) -> bool:
        return given is database

    dependent.__annotations__["given"] = Database
    task = process.broker.task("dependent", pipeline="data")(dependent)
    outcome = await process.broker.deliver(await process.kick(task))
    assert outcome.result.return_value is True


@pytest.mark.parametrize("how", ["item", "assignment", "update"])
async def test_overrides_of_dependencies_are_used_for_allowed_messages_and_resolve_nothing_for_refused_ones(
    process: Process, how: str
) -> None:
    def override() -> str:
        _log.append("override")
        return "overridden"

    async def dependent(value: str = TaskiqDepends(plain)) -> str:
        return value

    task = process.broker.task("dependent", pipeline="data")(dependent)
    if how == "item":
        process.broker.dependency_overrides[plain] = override
    elif how == "assignment":
        process.broker.dependency_overrides = {plain: override}
    else:
        process.broker.dependency_overrides.update({plain: override})
    outcome = await process.broker.deliver(await process.kick(task))
    assert outcome.result.return_value == "overridden"
    assert _log == ["override"]
    forged = read(await process.kick(task)).model_copy(update={"args": ["x"]})
    await process.refuses(write(forged), "bad_signature")
    assert _log == ["override"]
    assert (await process.broker.deliver(await process.kick(task))).result.return_value == "overridden"


async def test_overrides_of_dependencies_that_their_user_adds_later_are_used(process: Process) -> None:
    async def dependent(value: str = TaskiqDepends(plain)) -> str:
        return value

    task = process.broker.task("dependent", pipeline="data")(dependent)
    overrides: dict[Any, Any] = {}
    process.broker.dependency_overrides = overrides
    await process.broker.deliver(await process.kick(task))
    overrides[plain] = lambda: "overridden"
    assert (await process.broker.deliver(await process.kick(task))).result.return_value == "overridden"
