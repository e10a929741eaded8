"""Whatever a task or a middleware does, the context of who kicked it stays as it was."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Annotated, Any

import pytest
from taskiq import Context, InMemoryBroker, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
from taskiq.exceptions import SendTaskError
from taskiq.message import BrokerMessage

from taskiq_flow_security import (
    AccessDeniedError,
    AuthenticationError,
    FlowSecurity,
    FlowSecurityError,
    Principal,
    SecurityMiddleware,
    current_principal,
)
from taskiq_flow_security.broker.delivery import Delivery
from tests.integration.inmemory.harness import PROCESSOR, VIEWER, Queue, Task, config

OUTER = Principal("outer", roles=["processor"])


class BrokenError(Exception):
    """What a broken middleware raises."""


class Broken(TaskiqMiddleware):
    """Fails in one of its hooks."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self._hook = hook

    def _reach(self, hook: str) -> None:
        if hook == self._hook:
            raise BrokenError(hook)

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        self._reach("pre_send")
        return message

    def post_send(self, message: TaskiqMessage) -> None:
        self._reach("post_send")

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._reach("pre_execute")
        return message

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._reach("post_execute")

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._reach("post_save")

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        self._reach("on_error")


HOOKS = ["none", "pre_send", "post_send", "pre_execute", "post_execute", "post_save", "on_error"]


class Deployment:
    """A broker that runs tasks where they are kicked."""

    def __init__(self, hook: str, position: str, await_inplace: bool = True, **settings: Any) -> None:
        self.security = FlowSecurity(config(**settings))
        self.broker = InMemoryBroker(await_inplace=await_inplace)
        both = [Broken(hook), SecurityMiddleware(self.security)]
        self.broker.add_middlewares(*(both if position == "before" else reversed(both)))
        seen = self.seen = []  # type: list[str]

        @self.broker.task("works", pipeline="data")
        async def works() -> str:
            seen.append(current_principal().subject)
            return current_principal().subject

        @self.broker.task("fails", pipeline="data")
        async def fails() -> None:
            seen.append(current_principal().subject)
            raise BrokenError("the task")

        @self.broker.task("kicks", pipeline="data")
        async def kicks() -> str:
            with self.security.acting_as(VIEWER), suppress(AccessDeniedError, SendTaskError):
                await works.kiq()
            await works.kiq()
            return current_principal().subject

        self.tasks: dict[str, Task] = {"works": works, "fails": fails, "kicks": kicks}

    async def forged(self) -> None:
        """Put a message into the queue that nobody has signed."""
        message = TaskiqMessage(task_id="forged", task_name="works", labels={}, args=[], kwargs={})
        data = message.model_dump_json().encode()
        await self.broker.kick(BrokerMessage(task_id="forged", task_name="works", message=data, labels={}))


@contextmanager
def unchanged() -> Iterator[None]:
    """Check that no context variable changes."""
    before = _context()
    yield
    assert _context() == before


def _context() -> dict[ContextVar[Any], object]:
    """All context variables but those that are as good as not set.

    What a middleware made of a kick that it gave up is forgotten with the next kick, and tells nobody who acts.
    """
    given_up = "taskiq_flow_security_kick"
    return {
        variable: value for variable, value in copy_context().items() if value is not None and variable.name != given_up
    }


class Inline:
    """Somebody who hands messages to the receiver in their own context, one after the other."""

    def __init__(self, *before: TaskiqMiddleware) -> None:
        self.security = FlowSecurity(config())
        self.broker = Queue()
        self.broker.add_middlewares(*before, SecurityMiddleware(self.security), Told())

        @self.broker.task("works", pipeline="data")
        async def works() -> None: ...

        @self.broker.task("fails", pipeline="data")
        async def fails() -> None:
            raise BrokenError

        @self.broker.task("requeues", pipeline="data")
        async def requeues(context: Annotated[Context, TaskiqDepends()]) -> None:
            await context.requeue()

        self.tasks: dict[str, Task] = {"works": works, "fails": fails, "requeues": requeues}

    async def message(self, what: str) -> bytes:
        """A message of this kind."""
        forged = TaskiqMessage(task_id="id", task_name="works", labels={}, args=[], kwargs={})
        if what == "unknown":
            forged.task_name = "unknown"
        elif what in self.tasks:
            with self.security.acting_as(PROCESSOR):
                await self.tasks[what].kiq()
            return self.broker.take()
        return forged.model_dump_json().encode() if what != "unreadable" else b"{"


class Sends(TaskiqMiddleware):
    """Is told of no task that is over."""

    def post_send(self, message: TaskiqMessage) -> None: ...


class Told(TaskiqMiddleware):
    """Is told who acts when a task is over, by hooks that TaskIQ calls before those of what stands before it."""

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._look(result)

    def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._look(result)

    def _look(self, result: TaskiqResult[Any]) -> None:
        if not isinstance(result.error, FlowSecurityError):
            assert current_principal().subject == "alice"


@pytest.mark.parametrize("what", ["works", "fails", "requeues", "forged", "unknown", "unreadable", "repeated"])
@pytest.mark.parametrize("before", [(), (Sends(),)], ids=["first", "after one that only sends"])
async def test_who_awaits_the_receiver_itself_is_who_they_were(what: str, before: tuple[TaskiqMiddleware, ...]) -> None:
    inline = Inline(*before)
    data = await inline.message("works" if what == "repeated" else what)
    if what == "repeated":
        await inline.broker.receiver.callback(data)
    with unchanged():
        await inline.broker.receiver.callback(data)
    inline.broker.sent.clear()
    with pytest.raises(AuthenticationError):
        await inline.tasks["works"].kiq()
    with inline.security.acting_as(VIEWER), pytest.raises(AccessDeniedError):
        await inline.tasks["works"].kiq()
    assert inline.broker.sent == []


async def test_who_awaits_the_receiver_while_another_middleware_has_a_hook_left_keeps_one_message_at_most() -> None:
    inline = Inline(Broken("none"))
    kept = await _kept_after(20, lambda: _received(inline))
    assert kept <= 1


async def test_who_only_loads_messages_keeps_one_at_most() -> None:
    inline = Inline()

    async def load() -> None:
        inline.broker.formatter.loads(await inline.message("works"))

    assert await _kept_after(20, load) <= 1


async def test_next_steps_in_place_keep_no_message_of_the_steps_before() -> None:
    security, left = FlowSecurity(config()), [20]
    broker = InMemoryBroker(await_inplace=False)

    @broker.task("step", pipeline="data")
    async def step() -> None: ...

    class NextStep(TaskiqMiddleware):
        async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            left[0] -= 1
            if left[0]:
                await step.kiq()
            else:
                done.set_result(_deliveries())

    broker.add_middlewares(SecurityMiddleware(security), NextStep())
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    before = _deliveries()
    with security.acting_as(PROCESSOR):
        await step.kiq()
    assert await done - before <= 2


async def _received(inline: Inline) -> None:
    await inline.broker.receiver.callback(await inline.message("works"))


async def _kept_after(times: int, attempt: Callable[[], Awaitable[None]]) -> int:
    """How many messages are kept in memory after this was done so often."""
    before = _deliveries()
    for _ in range(times):
        await attempt()
    return _deliveries() - before


def _deliveries() -> int:
    gc.collect()
    return sum(isinstance(found, Delivery) for found in gc.get_objects())


async def test_a_task_that_requeues_leaves_other_hooks_their_context() -> None:
    class Last(TaskiqMiddleware):
        seen = ""

        def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            self.seen = current_principal().subject

    last = Last()
    await _received_as(Inline(last), "requeues")
    assert last.seen == "alice"


async def _received_as(inline: Inline, what: str) -> None:
    await inline.broker.receiver.callback(await inline.message(what))


async def test_after_a_message_that_was_left_behind_nobody_acts_who_acted_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inline = Inline()
    first, second = await inline.message("works"), await inline.message("works")

    async def away(*_: object) -> None:
        raise OSError("the result backend is away")

    with inline.security.acting_as(OUTER), monkeypatch.context() as patched:
        patched.setattr(inline.broker.result_backend, "set_result", away)
        await inline.broker.receiver.callback(first)
    with inline.security.acting_as(VIEWER):
        await inline.broker.receiver.callback(second)
        assert current_principal() is VIEWER


async def test_a_hook_that_awaits_the_receiver_for_another_message_acts_as_before() -> None:
    seen: list[str] = []

    class Forwards(TaskiqMiddleware):
        data: bytes | None = None

        async def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            data, self.data = self.data, None
            if data is not None:
                await inline.broker.receiver.callback(data)
                seen.append(current_principal().subject)

    inline, forwards = Inline(), Forwards()
    inline.broker.middlewares[1:] = []  # who is told that it is alice who acts
    inline.broker.add_middlewares(forwards)
    with inline.security.acting_as(OUTER):
        await inline.tasks["works"].kiq()
    forwards.data = inline.broker.take()
    await inline.broker.receiver.callback(await inline.message("works"))
    assert seen == ["alice"]


async def test_with_security_off_the_context_stays_as_it_was_too() -> None:
    security, broker = FlowSecurity(config(security_enabled=False)), Queue()
    broker.add_middlewares(SecurityMiddleware(security))

    @broker.task("works")
    async def works() -> None: ...

    await works.kiq()
    with unchanged():
        await broker.receiver.callback(broker.take())


async def _attempt(deployment: Deployment, what: str) -> None:
    with suppress(BrokenError, FlowSecurityError, SendTaskError):
        if what == "forged":
            await deployment.forged()
        else:
            await deployment.tasks[what].kiq()
    await deployment.broker.wait_all()


each_hook = pytest.mark.parametrize("hook", HOOKS)
each_position = pytest.mark.parametrize("position", ["before", "after"])
each_task = pytest.mark.parametrize("what", ["works", "fails", "kicks", "forged"])


@each_hook
@each_position
@each_task
async def test_a_kick_in_place_leaves_the_context_of_who_acts_as_it_was(hook: str, position: str, what: str) -> None:
    deployment = Deployment(hook, position)
    with deployment.security.acting_as(OUTER):
        with unchanged():
            await _attempt(deployment, what)
        assert current_principal() == OUTER


@each_hook
@each_position
@each_task
async def test_a_kick_in_place_leaves_the_context_of_who_does_not_act_as_it_was(
    hook: str, position: str, what: str
) -> None:
    deployment = Deployment(hook, position)
    with unchanged():
        await _attempt(deployment, what)
    with pytest.raises(AuthenticationError):
        current_principal()


@each_task
async def test_a_kick_in_the_background_leaves_the_context_as_it_was(what: str) -> None:
    deployment = Deployment("none", "before", await_inplace=False)
    with deployment.security.acting_as(OUTER), unchanged():
        await _attempt(deployment, what)


async def test_an_explicit_kick_in_place_runs_for_its_principal_and_leaves_the_caller_its_own() -> None:
    deployment = Deployment("none", "before")
    with deployment.security.acting_as(OUTER), unchanged():
        await deployment.tasks["works"].kicker().with_labels(**deployment.security.labels_for(PROCESSOR)).kiq()
    assert deployment.seen == ["alice"]


async def test_a_task_that_kicks_in_place_goes_on_in_its_own_name() -> None:
    deployment = Deployment("none", "before")
    with deployment.security.acting_as(PROCESSOR):
        sent = await deployment.tasks["kicks"].kiq()
    assert (await sent.get_result()).return_value == "alice"
    assert deployment.seen == ["alice"]


async def test_where_security_is_off_a_kick_in_place_leaves_the_context_as_it_was() -> None:
    deployment = Deployment("none", "before", security_enabled=False)
    with unchanged():
        await _attempt(deployment, "works")


async def test_a_kick_that_was_replaced_leaves_the_context_as_it_was() -> None:
    deployment = Deployment("none", "before")
    broker = deployment.broker
    broker.kick = partial(InMemoryBroker.kick, broker)  # type: ignore[method-assign]
    with deployment.security.acting_as(PROCESSOR), unchanged():
        await _attempt(deployment, "works")
    assert deployment.seen == ["alice"]
